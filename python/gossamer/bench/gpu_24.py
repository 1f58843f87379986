# SPDX-License-Identifier: BSD-3-Clause
"""Suite `gpu-24`: 2:4 weights on a GPU beside cuBLAS and cuSPARSELt, its lines in 16 bits.

Layers are planned as `sparsify_` plans them, with a dense copy beside the packed weight: where the
plan runs dense, so does the line, and its kernel is `dense`.

Every contestant's calls are captured into a CUDA graph; the graphs are replayed in turn, and the
median of the rounds counts. Weights rotate through copies larger than L2, so that few tokens read
them from memory, those of every contestant. cuSPARSELt runs the best of its own algorithms,
searched for each shape; fewer tokens than it takes are filled up beforehand (`for_cusparselt`).

The same calls are made eagerly too, beside torch's own 2:4 tensors (`gpu_eager`): what a call takes
in a loop, and what the host spends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer import _plan_cuda
from gossamer._cuda_timing import contest
from gossamer.bench.gpu_eager import eager, semi_structured, semi_structured_calls
from gossamer.bench.gpu_sensors import under_load
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, now
from gossamer.config import Config
from gossamer.explanation import LayerReport
from gossamer.weight import SparseWeight

__all__ = [
    "MORE_SHAPES",
    "QUICK_SHAPES",
    "QUICK_TOKENS",
    "SHAPES",
    "TOKENS",
    "Ceilings",
    "Layer",
    "cusparselt",
    "for_cusparselt",
    "gpu_name",
    "measure",
    "measured_ceilings",
    "planned_kernel",
    "planned_layer",
    "run",
]

SHAPES: dict[str, tuple[int, int]] = {
    "llama8b.qkv": (6144, 4096),
    "llama8b.o": (4096, 4096),
    "llama8b.gate_up": (28672, 4096),
    "llama8b.up": (14336, 4096),
    "llama8b.down": (4096, 14336),
    "llama70b.o": (8192, 8192),
    "llama70b.up": (28672, 8192),
    "llama70b.down": (8192, 28672),
}
"""[out, in] of linear layers of Llama 3."""
MORE_SHAPES: dict[str, tuple[int, int]] = {
    "square.1024": (1024, 1024),
    "square.2048": (2048, 2048),
    "square.16384": (16384, 16384),
    "qwen7b.qkv": (4608, 3584),
    "qwen7b.o": (3584, 3584),
    "qwen7b.gate_up": (37888, 3584),
    "qwen7b.down": (3584, 18944),
    "qwen14b.qkv": (7168, 5120),
    "qwen14b.o": (5120, 5120),
    "qwen14b.gate_up": (27648, 5120),
    "qwen14b.down": (5120, 13824),
}
"""Squares beside those of Llama, and layers of Qwen 2.5, in bfloat16 at fewer token counts."""
MORE_TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
QUICK_SHAPES = ("llama8b.qkv", "llama8b.up", "llama8b.down", "llama70b.o")
QUICK_TOKENS = (1, 16, 64, 128, 512, 2048, 8192)

_L2_TIMES = 4
_CHECKED_OUTPUTS = 64


@dataclass(frozen=True)
class Ceilings:
    """What this GPU reached: dense operations and bytes read a second."""

    flops: float
    bandwidth: float

    def bound_speedup(
        self, tokens: int, out: int, inputs: int, packed_bytes: int, bits: int = 16
    ) -> float:
        """The ratio of the least times, dense over 2:4 (half the operations).

        `bits` are those of weights and inputs; outputs have 16.
        """
        flops = 2.0 * tokens * out * inputs
        activations = tokens * (2.0 * out + bits / 8 * inputs)
        weights = bits / 8 * out * inputs
        dense = max(flops / self.flops, (weights + activations) / self.bandwidth)
        sparse = max(flops / 2 / self.flops, (packed_bytes + activations) / self.bandwidth)
        return dense / sparse


def run(options: Options) -> Iterator[Record]:
    """Measures case by case on the current CUDA device.

    Raises:
        RuntimeError: there is no CUDA device, or it computes no 2:4 weights.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("suite gpu-24 needs a CUDA device; torch sees none")
    ceilings = measured_ceilings()
    cases: list[tuple[str, tuple[int, int], Sequence[int]]]
    if options.quick:
        cases = [(name, SHAPES[name], QUICK_TOKENS) for name in QUICK_SHAPES]
    else:
        cases = [(name, shape, TOKENS) for name, shape in SHAPES.items()]
        cases += [(name, shape, MORE_TOKENS) for name, shape in MORE_SHAPES.items()]
    for name, (out, inputs), counts in cases:
        chosen = [tokens for tokens in counts if options.wants(f"{name} {tokens}")]
        if chosen:
            layer = Layer(out, inputs)
            for tokens in chosen:
                options.progress(f"{name}, {tokens} tokens")
                yield measure(layer, tokens, options, ceilings)


class Layer:
    """Copies of one 2:4 layer in every contestant's form."""

    def __init__(self, out: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> None:
        """A random layer in bfloat16 or float16."""
        self.out, self.inputs, self.dtype = out, inputs, dtype
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        # The packed form is the smallest: enough copies of it overflow L2 too.
        self.copies = 1 + math.ceil(_L2_TIMES * l2 / (out * inputs * 9 / 8))
        torch.manual_seed(0)
        self.dense = [self._pruned() for _ in range(self.copies)]
        planned = [planned_layer(w, gs.SemiSparseWeightConfig()) for w in self.dense]
        self.packed = [layer.weight for layer in planned]
        self.plan = next(iter(gs.explain(planned[0])))
        self.compressed: list[Tensor] = []
        if torch.backends.cusparselt.is_available():
            self.compressed = [torch._cslt_compress(w) for w in self.dense]
        self.semi_structured = semi_structured(self.dense)

    def _pruned(self) -> Tensor:
        w = torch.randn(self.out, self.inputs, device="cuda", dtype=self.dtype)
        packed = torch.ops.gossamer.prune_pack_24(w)
        return torch.ops.gossamer.unpack(packed, w.shape, self.dtype)


def planned_layer(w: Tensor, config: Config) -> nn.Linear:
    """A layer as `sparsify_` makes it; a shape is measured once a process."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.weight = nn.Parameter(w, requires_grad=False)
    layer.out_features, layer.in_features = w.shape
    gs.sparsify_(layer, config, memory="speed")
    return layer


def planned_kernel(report: LayerReport, weight: Tensor, x: Tensor) -> str:
    """What runs for x [tokens, in]: a row of the kernel table, or `dense`.

    Args:
        report: of the layer.
        weight: of the layer.
        x: bfloat16 or float16.
    """
    if not isinstance(weight, SparseWeight):
        return "dense"
    place = sum(len(x) > end for end in _plan_cuda.BUCKET_ENDS)
    if report.plan and report.plan[place].kernel == "dense":
        return "dense"
    return str(torch.ops.gossamer.cuda_kernel(x, weight.out_features, weight._layout_argument))


def for_cusparselt(x: Tensor) -> Tensor:
    """X [tokens, in] with tokens of zeros behind it, as many as cuSPARSELt asks for.

    It takes multiples of 8 tokens with 16 bits, of 16 with 8 bits.
    """
    missing = -len(x) % (16 // x.element_size())
    if missing == 0:
        return x
    return torch.cat(
        [x.view(torch.uint8), x.new_zeros(missing, x.shape[1]).view(torch.uint8)]
    ).view(x.dtype)


def cusparselt(
    compressed: Sequence[Tensor], x: Tensor, out_dtype: torch.dtype | None = None
) -> list[Callable[[], Any]]:
    """Calls of cuSPARSELt by the best of its algorithms, one for each copy of a weight.

    Args:
        compressed: what `torch._cslt_compress` made.
        x: [tokens, in].
        out_dtype: of the result; None: that of x.

    Returns:
        The calls; none without copies, for rows of x that do not follow each other (torch tells it
        no stride), and where it refuses the product.
    """
    if not compressed or not x.is_contiguous():
        return []
    padded = for_cusparselt(x)
    multiply = torch._cslt_sparse_mm
    try:
        best = int(torch._cslt_sparse_mm_search(compressed[0], padded.t(), out_dtype=out_dtype))
    except RuntimeError:
        return []
    return [partial(multiply, w, padded.t(), out_dtype=out_dtype, alg_id=best) for w in compressed]


def measure(
    layer: Layer,
    tokens: int,
    options: Options,
    ceilings: Ceilings,
    x: Tensor | None = None,
    name: str = "",
) -> Record:
    """The line of one case.

    Args:
        layer: that is multiplied.
        tokens: rows of x.
        options: of the command.
        ceilings: of this GPU.
        x: [tokens, in] that is like no other, of the layer's dtype; None: random, as torch lays it.
        name: of the case where the sizes do not say it all.
    """
    if x is None:
        x = torch.randn(tokens, layer.inputs, device="cuda", dtype=layer.dtype)
    _check(layer, x)
    rivals: dict[str, list[Callable[[], Any]]] = {
        "gossamer": [lambda w=w: F.linear(x, w) for w in layer.packed],  # type: ignore[misc]
        "cublas": [lambda w=w: F.linear(x, w) for w in layer.dense],  # type: ignore[misc]
    }
    if found := cusparselt(layer.compressed, x):
        rivals["cusparselt"] = found
    calls = eager(
        {
            "gossamer": rivals["gossamer"],
            "cublas": rivals["cublas"],
            "torch_semi_structured": semi_structured_calls(x, layer.semi_structured),
        }
    )
    times = contest(rivals, options.rounds)
    load = under_load(rivals["gossamer"])
    ms, dense_ms = times.pop("gossamer"), times["cublas"]
    first = layer.packed[0]
    packed_bytes = first.packed_bytes if isinstance(first, SparseWeight) else first.nbytes
    return Record(
        suite="gpu-24",
        kernel=planned_kernel(layer.plan, first, x),
        machine=gpu_name(),
        device="cuda",
        threads=torch.get_num_threads(),
        dtype=str(layer.dtype).removeprefix("torch."),
        pattern="2:4",
        sparsity=0.5,
        tokens=tokens,
        out=layer.out,
        inputs=layer.inputs,
        ms=ms,
        dense_ms=dense_ms,
        dense_impl=f"torch.nn.functional.linear, torch {torch.__version__}",
        speedup=dense_ms / ms,
        peers=times,
        bytes=packed_bytes,
        bound_speedup=ceilings.bound_speedup(tokens, layer.out, layer.inputs, packed_bytes),
        host_us=calls.host_us["gossamer"],
        version=gs.__version__,
        date=now(),
        eager_ms=calls.ms,
        eager_host_us=calls.host_us,
        clock_mhz=load.clock_mhz,
        power_w=load.power_w,
        layer=name,
    )


def gpu_name() -> str:
    """Short name of the current GPU, e.g. `h100`."""
    words = torch.cuda.get_device_name().lower().split()
    return next((word for word in words if any(c.isdigit() for c in word)), words[-1])


def _check(layer: Layer, x: Tensor) -> None:
    """A wrong product is not worth timing.

    Raises:
        AssertionError: a result differs from float64 by more than its rounding and float32 sums.
    """
    w = layer.dense[0][:_CHECKED_OUTPUTS].double()
    y = F.linear(x, layer.packed[0])[:, :_CHECKED_OUTPUTS].double()
    exact = x.double() @ w.T
    sums = (layer.inputs + 1) * torch.finfo(torch.float32).eps * (x.double().abs() @ w.abs().T)
    bound = torch.finfo(layer.dtype).eps / 2 * (exact.abs() + sums) + sums
    if not ((y - exact).abs() <= bound).all():
        raise AssertionError(f"{x.shape[0]} tokens: the product is wrong, nothing was timed")


def measured_ceilings() -> Ceilings:
    """Of the current GPU, in bfloat16."""
    side, size = 8192, 1 << 30
    a = torch.randn(side, side, device="cuda", dtype=torch.bfloat16)
    source = torch.ones(size, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    times = contest(
        {"product": [lambda: a @ a], "copy": [lambda: target.copy_(source)]},
        rounds=5,
    )
    return Ceilings(2e3 * side**3 / times["product"], 2e3 * size / times["copy"])
