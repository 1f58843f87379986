# SPDX-License-Identifier: BSD-3-Clause
"""Eager calls on a GPU: what a caller without CUDA graphs waits for, and what the host spends.

The calls of a loop follow each other without synchronization, so that small products wait for the
host and large ones for the GPU. Loops are short: at most `MOST_CALLS` calls, fewer of large
products, which keeps them far from a full launch queue.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "LEAST_CALLS",
    "MOST_CALLS",
    "ROUNDS",
    "Eager",
    "eager",
    "semi_structured",
    "semi_structured_calls",
]

LEAST_CALLS = 5
MOST_CALLS = 30
ROUNDS = 3
_SECONDS = 2e-3
_WARM_UP = 2

Call = Callable[[], Any]


@dataclass(frozen=True)
class Eager:
    """What one call of each contestant took.

    Attributes:
        ms: name to milliseconds of a call in a loop, between CUDA events around the loop; the
            median of the rounds.
        host_us: name to microseconds until the call returned to the host, nothing synchronized: the
            median of a loop's calls, of the best round.
    """

    ms: dict[str, float]
    host_us: dict[str, float]


def eager(rivals: Mapping[str, Sequence[Call]], rounds: int = ROUNDS) -> Eager:
    """Times contestants in turn on the current device and stream.

    Args:
        rivals: for each name the calls to make in turn, e.g. one for each copy of a weight. One
            without calls is left out.
        rounds: loops of each.
    """
    turns = {name: itertools.cycle(calls) for name, calls in rivals.items() if calls}
    counts = {name: _count(calls) for name, calls in turns.items()}
    ms: dict[str, list[float]] = {name: [] for name in turns}
    host: dict[str, list[float]] = {name: [] for name in turns}
    for _, (name, calls) in itertools.product(range(rounds), turns.items()):
        elapsed, spent = _loop(calls, counts[name])
        ms[name].append(elapsed / counts[name])
        host[name].append(1e6 * statistics.median(spent))
    return Eager(
        {name: statistics.median(values) for name, values in ms.items()},
        {name: min(values) for name, values in host.items()},
    )


def _count(calls: Iterator[Call]) -> int:
    """Calls of a loop: as many as fill `_SECONDS`, within the bounds above."""
    for _ in range(_WARM_UP):
        next(calls)()
    torch.cuda.synchronize()
    start = perf_counter()
    next(calls)()
    torch.cuda.synchronize()
    once = perf_counter() - start
    return min(MOST_CALLS, max(LEAST_CALLS, math.ceil(_SECONDS / max(once, 1e-9))))


def _loop(calls: Iterator[Call], count: int) -> tuple[float, list[float]]:
    """Milliseconds of the loop on the device, and the host's seconds of each call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    spent = []
    torch.cuda.synchronize()
    start.record()
    for call in itertools.islice(calls, count):
        before = perf_counter()
        call()
        spent.append(perf_counter() - before)
    end.record()
    end.synchronize()
    return start.elapsed_time(end), spent


def semi_structured_calls(x: Tensor, weights: Sequence[Tensor]) -> list[Call]:
    """Calls of `F.linear` with torch's own 2:4 tensors, by the backend that is torch's default.

    Args:
        x: [tokens, in]; torch pads tokens to what its backend wants, in each call.
        weights: what `semi_structured` made; none where torch refused.

    Returns:
        A call for each weight; none where the first one is refused.
    """
    calls: list[Call] = [lambda w=w: F.linear(x, w) for w in weights]  # type: ignore[misc]
    try:
        for call in calls[:1]:
            call()
    except RuntimeError:  # NotImplementedError is one
        return []
    return calls


def semi_structured(dense: Sequence[Tensor]) -> list[Tensor]:
    """Weights [out, in], 2:4 on a GPU, as torch's own tensors; none where torch refuses them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are a prototype
        try:
            return [torch.sparse.to_sparse_semi_structured(w) for w in dense]
        except RuntimeError:
            return []
