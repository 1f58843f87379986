# SPDX-License-Identifier: BSD-3-Clause
"""Suite `host`: what a call costs before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

import gossamer as gs
from gossamer.bench.record import Record
from gossamer.bench.subject import check
from gossamer.bench.suite import Options, now
from gossamer.bench.timing import Contest, contest

__all__ = ["PATTERNS", "SIDE", "call_overhead", "run"]

SIDE = 16
"""Inputs and outputs of a layer that has next to nothing to compute."""
PATTERNS = ("unstructured:0.9", "2:4")


def tiny(pattern: str) -> tuple[torch.Tensor, gs.SparseWeight]:
    """A 16x16 weight with zeros, dense and packed in its format."""
    values = torch.randn(SIDE, SIDE)
    dense = torch.where(torch.ops.gossamer.magnitude_mask(values, pattern, "row"), values, 0.0)
    return dense, gs.SparseWeight.from_dense(dense, pattern)


def call_overhead(dense: torch.Tensor, packed: gs.SparseWeight, rounds: int) -> Contest:
    """`F.linear` with one token and both weights, in turn: `torch_dense` and `gossamer`."""
    x = torch.randn(1, SIDE)
    check("gossamer", lambda x: F.linear(x, packed), x, dense)
    return contest(
        {"torch_dense": lambda: F.linear(x, dense), "gossamer": lambda: F.linear(x, packed)},
        rounds,
    )


def run(options: Options) -> Iterator[Record]:
    """One record for each pattern, under `no_grad`."""
    for pattern in PATTERNS:
        if not options.wants(pattern):
            continue
        options.progress(f"call of a {SIDE}x{SIDE} layer, {pattern}")
        torch.manual_seed(0)
        dense, packed = tiny(pattern)
        times = call_overhead(dense, packed, options.rounds).median_ms
        density = int(torch.count_nonzero(dense)) / dense.numel()
        yield Record(
            suite="host",
            kernel=packed.layout_name,
            machine=gs.machine().name,
            device="cpu",
            threads=torch.get_num_threads(),
            dtype="float32",
            pattern=pattern,
            sparsity=1.0 - density,
            tokens=1,
            out=SIDE,
            inputs=SIDE,
            ms=times["gossamer"],
            dense_ms=times["torch_dense"],
            dense_impl="torch.nn.functional.linear",
            speedup=times["torch_dense"] / times["gossamer"],
            peers={"torch_dense": times["torch_dense"]},
            bytes=packed.packed_bytes,
            bound_speedup=options.roofline.bound_speedup(
                1, SIDE, SIDE, density, packed.packed_bytes
            ),
            host_us=1e3 * times["gossamer"],
            version=gs.__version__,
            date=now(),
        )
