# SPDX-License-Identifier: BSD-3-Clause
"""One race: the dense peers, and the same layer or network at several sparsities, in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

import gossamer as gs
from gossamer.bench.engines import ENGINES, INT8, describe
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, now
from gossamer.bench.timing import contest

__all__ = ["Entry", "Track", "kernel_at", "race"]


@dataclass(frozen=True)
class Track:
    """What all contestants compute.

    Attributes:
        suite: its name.
        layer: network, layer and what else the sizes do not say.
        dtype: as torch spells it, without the prefix.
        tokens: rows of the input; of a convolution, pixels of the result; of a network, its batch.
        out: outputs.
        inputs: inputs.
        read_gbs: see `Record`.
    """

    suite: str
    layer: str
    tokens: int
    out: int
    inputs: int
    dtype: str = "float32"
    read_gbs: float = 0.0


@dataclass(frozen=True)
class Entry:
    """The packed contestant at one sparsity.

    Attributes:
        pattern: of its weights.
        sparsity: fraction of zeros.
        call: without arguments.
        kernel: that it runs.
        held_bytes: of its weights.
        bound_speedup: of the roofline.
        peers: name to calls that compute the same with the same zeros; the quickest one counts.
    """

    pattern: str
    sparsity: float
    call: Callable[[], object]
    kernel: str
    held_bytes: int
    bound_speedup: float
    peers: Mapping[str, Sequence[Callable[[], object]]] = field(default_factory=dict)


def race(
    options: Options,
    track: Track,
    dense: Mapping[str, Callable[[], object]],
    entries: Sequence[Entry],
) -> Iterator[Record]:
    """Times everybody in the same rounds; one record for each entry.

    Dense peers do not look for zeros, so one measurement of each serves all sparsities.

    Args:
        options: of the command.
        track: what is computed.
        dense: name to call of each dense peer.
        entries: the packed contestants.
    """
    calls = {f"dense {name}": call for name, call in dense.items()}
    for entry in entries:
        calls[f"packed {entry.pattern}"] = entry.call
        for name, ways in entry.peers.items():
            for index, way in enumerate(ways):
                calls[f"{name} {entry.pattern} {index}"] = way
    pools = {f"dense {name}": name for name in dense if name.removesuffix(INT8) in ENGINES}
    spin = torch.get_num_threads() > 1
    times = contest(calls, options.rounds, pools=pools if spin else None).median_ms
    dense_times = {name: times[f"dense {name}"] for name in dense}
    best = min(dense_times, key=dense_times.__getitem__)
    for entry in entries:
        ms = times[f"packed {entry.pattern}"]
        others = {
            name: min(times[f"{name} {entry.pattern} {index}"] for index in range(len(ways)))
            for name, ways in entry.peers.items()
        }
        yield Record(
            suite=track.suite,
            kernel=entry.kernel,
            machine=gs.machine().name,
            device="cpu",
            threads=torch.get_num_threads(),
            dtype=track.dtype,
            pattern=entry.pattern,
            sparsity=entry.sparsity,
            tokens=track.tokens,
            out=track.out,
            inputs=track.inputs,
            ms=ms,
            dense_ms=dense_times[best],
            dense_impl=describe(best),
            speedup=dense_times[best] / ms,
            peers={**dense_times, **others},
            bytes=entry.held_bytes,
            bound_speedup=entry.bound_speedup,
            host_us=options.host_us,
            version=gs.__version__,
            date=now(),
            layer=track.layer,
            read_gbs=track.read_gbs,
        )


def kernel_at(report: gs.LayerReport, tokens: int) -> str:
    """The row of the kernel table that a layer runs at a count of tokens or pixels."""
    if not report.packed:
        return "dense"
    for bucket in report.plan:
        last = bucket.tokens.rstrip("+").split("–")[-1]
        if bucket.tokens.endswith("+") or not last.isdigit() or tokens <= int(last):
            return bucket.kernel
    return report.kernel
