# SPDX-License-Identifier: BSD-3-Clause
"""Times of CUDA calls beside each other: captured into graphs, replayed in turn, medians."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

__all__ = ["captured", "contest"]

_GRAPH_SECONDS = 2e-3


def contest(
    rivals: Mapping[str, Sequence[Callable[[], Any]]],
    rounds: int,
    seconds: float = _GRAPH_SECONDS,
) -> dict[str, float]:
    """Median milliseconds of one call of each rival on the current device.

    Args:
        rivals: for each name the calls to make in turn, e.g. one for each copy of a weight.
        rounds: how often each rival's graph is replayed, taking turns with the others.
        seconds: what a graph is filled up to.
    """
    graphs = {name: captured(calls, seconds) for name, calls in rivals.items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for graph, _ in graphs.values():
        graph.replay()
    for _, (name, (graph, count)) in itertools.product(range(rounds), graphs.items()):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times[name].append(start.elapsed_time(end) / count)
    return {name: statistics.median(values) for name, values in times.items()}


def captured(
    calls: Sequence[Callable[[], Any]], seconds: float = _GRAPH_SECONDS
) -> tuple[torch.cuda.CUDAGraph, int]:
    """A graph of enough calls to fill that many seconds, and how many they are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
        stream.synchronize()
        start = time.perf_counter()
        for call in calls:
            call()
        stream.synchronize()
        once = (time.perf_counter() - start) / len(calls)
        turns = max(1, math.ceil(seconds / (once * len(calls))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(turns):
                for call in calls:
                    call()
    torch.cuda.current_stream().wait_stream(stream)
    return graph, turns * len(calls)
