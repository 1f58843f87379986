# SPDX-License-Identifier: BSD-3-Clause
"""Suite `gpu-model`: transformer blocks on a GPU, dense in bfloat16 beside 2:4 in 16 and 8 bits.

Whole blocks, quantization of activations included, each captured into a CUDA graph; the graphs are
replayed in turn. What `sparsify_` leaves dense runs dense. Eager calls of the same blocks tell what
the host spends on them. Lines name no bound: of attention and norms nobody derived one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer._cuda_timing import contest
from gossamer.bench.blocks import Case, block_cases, pruned_24
from gossamer.bench.gpu_24 import gpu_name
from gossamer.bench.gpu_eager import Eager, eager
from gossamer.bench.gpu_sensors import Load, under_load
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, now
from gossamer.config import Config
from gossamer.weight import SparseWeight

__all__ = ["VARIANTS", "check", "run"]

VARIANTS: dict[str, Config] = {
    "bfloat16": gs.SemiSparseWeightConfig(),
    "float8_e4m3": gs.Float8DynamicActivationSemiSparseWeightConfig(),
    "int8": gs.Int8DynamicActivationSemiSparseWeightConfig(),
}
"""The `dtype` of a line, and how its block was packed."""

_DTYPE = torch.bfloat16


@torch.no_grad()
def run(options: Options) -> Iterator[Record]:
    """Measures case by case on the current CUDA device.

    Raises:
        RuntimeError: there is no CUDA device, or a packed block is wrong.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("suite gpu-model needs a CUDA device; torch sees none")
    for case in block_cases(options.quick):
        if options.wants(str(case)):
            options.progress(str(case))
            yield from _measure(case, options)


def _measure(case: Case, options: Options) -> Iterator[Record]:
    torch.manual_seed(0)
    with torch.device("cuda"):
        dense = pruned_24(case.make().to(_DTYPE).eval())
        x = torch.randn(case.batch, case.tokens, case.hidden, dtype=_DTYPE)
    blocks = {}
    for dtype, config in VARIANTS.items():
        blocks[dtype] = gs.sparsify_(copy.deepcopy(dense), config, memory="speed")
        check(f"{case}, {dtype}", blocks[dtype], dense, x)
    everybody: dict[str, list[Callable[[], Tensor]]] = {
        dtype: [partial(block, x)] for dtype, block in {**blocks, "torch_dense": dense}.items()
    }
    times = contest(everybody, options.rounds)
    calls = eager(everybody)
    for dtype, block in blocks.items():
        yield _record(case, dtype, block, times, calls, under_load(everybody[dtype]))


def check(name: str, packed: nn.Module, dense: nn.Module, x: Tensor) -> None:
    """Compares a packed block with the same zeros computed densely.

    Unquantized, both are compared with float64: the packed one may be off by no more than eight
    times what the dense one is, since both round the same number of sums, in another order. How far
    rounding to eight bits leads depends on the data: there each layer was checked when it was
    planned, and the block has to be finite.

    Raises:
        RuntimeError: the packed block is wrong.
    """
    y = packed(x).double()
    if any(isinstance(p, SparseWeight) and p.scale is not None for p in packed.parameters()):
        if not bool(torch.isfinite(y).all()):
            raise RuntimeError(f"{name}: the packed block gives NaN or infinity")
        return
    exact = copy.deepcopy(dense).double()(x.double())
    theirs = float((dense(x).double() - exact).abs().max())
    mine = float((y - exact).abs().max())
    if not mine <= 8 * theirs:
        raise RuntimeError(f"{name}: the packed block is off by {mine:.3g}, dense by {theirs:.3g}")


def _record(
    case: Case, dtype: str, block: nn.Module, times: dict[str, float], calls: Eager, load: Load
) -> Record:
    reports = list(gs.explain(block))
    packed = sum(report.packed for report in reports)
    held = sum(report.packed_bytes or report.dense_bytes for report in reports)
    ms, dense_ms = times[dtype], times["torch_dense"]
    return Record(
        suite="gpu-model",
        kernel=f"{packed} of {len(reports)} packed",
        machine=gpu_name(),
        device="cuda",
        threads=torch.get_num_threads(),
        dtype=dtype,
        pattern="2:4",
        sparsity=0.5,
        tokens=case.batch * case.tokens,
        out=case.hidden,
        inputs=case.hidden,
        ms=ms,
        dense_ms=dense_ms,
        dense_impl=f"the block in bfloat16, torch {torch.__version__}",
        speedup=dense_ms / ms,
        peers={"torch_dense": dense_ms},
        bytes=held,
        bound_speedup=None,
        host_us=calls.host_us[dtype],
        version=gs.__version__,
        date=now(),
        layer=str(case),
        eager_ms=_of_two(calls.ms, dtype),
        eager_host_us=_of_two(calls.host_us, dtype),
        clock_mhz=load.clock_mhz,
        power_w=load.power_w,
    )


def _of_two(values: dict[str, float], dtype: str) -> dict[str, float]:
    return {"gossamer": values[dtype], "torch_dense": values["torch_dense"]}
