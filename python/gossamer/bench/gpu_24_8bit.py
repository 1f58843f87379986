# SPDX-License-Identifier: BSD-3-Clause
"""The float8 and int8 lines of suite `gpu-24`: the product alone, X quantized beforehand.

Peers: `torch._scaled_mm` with a scale a row and with one a tensor, `torch._int_mm` (which leaves
its sums in int32 and takes no fewer than 17 tokens: it is given 32 then), cuSPARSELt where it takes
the type (of 16 tokens at least: X is filled up beforehand), and the dense layer in bfloat16.
Quantizing X is part of the lines of `gpu-model`.

Of eager calls (`gpu_eager`) there is `gossamer_layer` beside the product alone: `F.linear` with the
planned weight, which quantizes X or runs dense as the plan says; `cublas_bfloat16` is what it
replaces.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer as gs
from gossamer._cuda_timing import contest
from gossamer._quantization import VALUE_DTYPES, pack_quantized, quantize_rows
from gossamer._quantized_check import discrepancy
from gossamer.bench.gpu_24 import (
    QUICK_SHAPES,
    QUICK_TOKENS,
    SHAPES,
    TOKENS,
    Ceilings,
    cusparselt,
    gpu_name,
    measured_ceilings,
    planned_layer,
)
from gossamer.bench.gpu_eager import Eager, eager
from gossamer.bench.gpu_sensors import Load, under_load
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, now
from gossamer.config import Config
from gossamer.weight import SparseWeight

__all__ = ["DENSE_PEERS", "Layer", "ceilings_of", "measure", "record", "run"]

DENSE_PEERS = {"float8": ("scaled_mm_rows", "scaled_mm_tensor"), "int8": ("int_mm",)}
"""Dense products of the same type; the quickest is what a line is compared with."""

_CONFIGS: dict[str, Config] = {
    "float8": gs.Float8DynamicActivationSemiSparseWeightConfig(),
    "int8": gs.Int8DynamicActivationSemiSparseWeightConfig(),
}
_ACCURATE = gs.Float8DynamicActivationSemiSparseWeightConfig(accurate=True)
_L2_TIMES = 4
_LEAST_INT_MM_TOKENS = 32
_ROUNDS = 5

Calls = list[Callable[[], Any]]


@torch.no_grad()
def run(options: Options) -> Iterator[Record]:
    """Measures case by case on the current CUDA device.

    Raises:
        RuntimeError: there is no CUDA device, or a product is wrong.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("suite gpu-24 needs a CUDA device; torch sees none")
    bandwidth = measured_ceilings().bandwidth
    for kind in DENSE_PEERS:
        ceilings = ceilings_of(kind, bandwidth)
        for name in QUICK_SHAPES if options.quick else SHAPES:
            counts = QUICK_TOKENS if options.quick else TOKENS
            chosen = [n for n in counts if options.wants(f"{name} {kind} {n}")]
            if not chosen:
                continue
            layer = Layer(kind, *SHAPES[name])
            for tokens in chosen:
                options.progress(f"{name}, {kind}, {tokens} tokens")
                yield measure(layer, tokens, options, ceilings)


def ceilings_of(kind: str, bandwidth: float) -> Ceilings:
    """What this GPU reached in dense products of a type of `DENSE_PEERS`."""
    return Ceilings(2e3 * 8192**3 / _square(kind), bandwidth)


def measure(
    layer: Layer, tokens: int, options: Options, ceilings: Ceilings, name: str = ""
) -> Record:
    """The line of one case, called `name` where the sizes do not say it all."""
    rivals = layer.rivals(tokens)
    calls = eager(layer.eager_rivals(tokens, rivals))
    times = contest(rivals, options.rounds)
    load = under_load(rivals["gossamer"])
    return record(
        layer.weight,
        layer.kernel(tokens),
        tokens,
        times,
        calls,
        ceilings,
        gpu_name(),
        load=load,
        name=name,
    )


class Layer:
    """One 2:4 layer in eight bits in every contestant's form, in copies that overflow L2."""

    def __init__(self, kind: str, out: int, inputs: int, accurate: bool = False) -> None:
        """A random layer.

        Args:
            kind: of `DENSE_PEERS`.
            out: its outputs.
            inputs: its inputs.
            accurate: sums of float8 products in float32 throughout, those of torch's products too.
        """
        self.kind, self.out, self.inputs, self.accurate = kind, out, inputs, accurate
        self.dtype = VALUE_DTYPES[kind]
        torch.manual_seed(0)
        w = torch.randn(out, inputs, device="cuda", dtype=torch.bfloat16)
        w = torch.ops.gossamer.unpack(torch.ops.gossamer.prune_pack_24(w), w.shape, w.dtype)
        tiles, self.scale = pack_quantized(w, "2:4", dtype=self.dtype, layout="nm24_tiles")
        self.weight = SparseWeight.from_quantized(
            tiles, self.scale, torch.bfloat16, accurate=accurate
        )
        # With the rows that the plan found for calls which quantize X too; where it found none,
        # as in buckets that run dense, the cost model's row multiplies here.
        planned = planned_layer(w, _ACCURATE if accurate else _CONFIGS[kind])
        if isinstance(planned.weight, SparseWeight):
            self.weight = planned.weight
        wrong = discrepancy(self.weight, w)
        if wrong is not None:
            raise RuntimeError(f"{out}x{inputs} {kind}: {wrong}; nothing was timed")
        l2 = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
        copies = 1 + math.ceil(_L2_TIMES * l2 / tiles.numel())
        self.tiles = [tiles.clone() for _ in range(copies)]
        values = quantize_rows(w, self.dtype)[0]
        self.dense = [values.clone() for _ in range(copies)]
        self.compressed = _compressed(self.dense)
        self.wide = [w.clone() for _ in range(copies)]
        self.layers = [copy.deepcopy(planned.weight) for _ in range(copies)]

    def kernel(self, tokens: int) -> str:
        """The row that multiplies."""
        q = self.quantized(tokens)[0]
        return str(torch.ops.gossamer.cuda_kernel(q, self.out, self.weight._layout_argument))

    def quantized(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Random X [tokens, in] in eight bits, and a scale a token."""
        x = torch.randn(tokens, self.inputs, device="cuda", dtype=torch.bfloat16)
        return torch.ops.gossamer.quantize_rows(x, self.dtype)

    def rivals(self, tokens: int) -> dict[str, Calls]:
        """Every contestant's calls with the same X, one for each copy of its weight."""
        q, scale = self.quantized(tokens)
        layout = self.weight._layout_argument
        multiply = torch.ops.gossamer.linear_quantized
        rest = (None, 0, None, torch.bfloat16, False)
        rivals: dict[str, Calls] = {
            "gossamer": [
                partial(multiply, q, scale, tiles, layout, self.out, self.scale, *rest)
                for tiles in self.tiles
            ],
            "cublas_bfloat16": [partial(F.linear, q.bfloat16(), w) for w in self.wide],
        }
        if self.kind == "int8":
            rows = max(tokens, _LEAST_INT_MM_TOKENS)
            padded = F.pad(q, (0, 0, 0, rows - tokens)).contiguous()
            rivals["int_mm"] = [partial(torch._int_mm, padded, w.t()) for w in self.dense]
        else:
            one = torch.ones((), device="cuda")
            pairs = {"scaled_mm_rows": (scale[:, None], self.scale[None]), "scaled_mm_tensor": None}
            for name, pair in pairs.items():
                a, b = (one, one) if pair is None else pair
                rivals[name] = [
                    partial(
                        torch._scaled_mm,
                        q,
                        w.t(),
                        scale_a=a.contiguous(),
                        scale_b=b.contiguous(),
                        out_dtype=torch.bfloat16,
                        use_fast_accum=not self.accurate,
                    )
                    for w in self.dense
                ]
        # Without scales.
        if found := cusparselt(self.compressed, q, torch.bfloat16):
            rivals["cusparselt"] = found
        return rivals

    def eager_rivals(self, tokens: int, rivals: Mapping[str, Calls]) -> dict[str, Calls]:
        """Those of `rivals` that are timed eagerly too, and the whole layer."""
        x = torch.randn(tokens, self.inputs, device="cuda", dtype=torch.bfloat16)
        names = ("gossamer", "cublas_bfloat16", *DENSE_PEERS[self.kind])
        return {
            **{name: rivals[name] for name in names if name in rivals},
            "gossamer_layer": [partial(F.linear, x, weight) for weight in self.layers],
        }


def _compressed(dense: Sequence[Tensor]) -> list[Tensor]:
    """The weights as cuSPARSELt wants them; none where it does not take the type."""
    if not torch.backends.cusparselt.is_available():
        return []
    try:
        return [torch._cslt_compress(w) for w in dense]
    except RuntimeError:
        return []


def _square(kind: str) -> float:
    """Milliseconds of the quickest dense product of 8192x8192x8192."""
    side = 8192
    w = torch.randn(side, side, device="cuda").to(VALUE_DTYPES[kind])
    if kind == "int8":
        return contest({"it": [partial(torch._int_mm, w, w.t())]}, _ROUNDS)["it"]
    one = torch.ones((), device="cuda")
    call = partial(torch._scaled_mm, w, w.t(), one, one, None, None, torch.bfloat16, True)
    return contest({"it": [call]}, _ROUNDS)["it"]


def record(
    weight: SparseWeight,
    kernel: str,
    tokens: int,
    times: Mapping[str, float],
    calls: Eager,
    ceilings: Ceilings,
    machine: str,
    *,
    load: Load | None = None,
    name: str = "",
) -> Record:
    """The line of a case.

    Args:
        weight: quantized.
        kernel: the row that ran.
        tokens: rows of x.
        times: of `gossamer` and its peers, milliseconds.
        calls: eager ones of the same, of the whole layer too.
        ceilings: of this GPU for the type.
        machine: its short name.
        load: what its sensors said; None: nothing.
        name: of the case where the sizes do not say it all.
    """
    load = load or Load()
    kind = "int8" if weight.quantization == "int8" else "float8"
    peers = {name: ms for name, ms in times.items() if name != "gossamer"}
    quickest = min((name for name in DENSE_PEERS[kind] if name in peers), key=peers.__getitem__)
    out, inputs, ms = weight.out_features, weight.in_features, times["gossamer"]
    return Record(
        suite="gpu-24",
        kernel=kernel,
        machine=machine,
        device="cuda",
        threads=torch.get_num_threads(),
        dtype="int8" if kind == "int8" else "float8_e4m3",
        pattern="2:4",
        sparsity=0.5,
        tokens=tokens,
        out=out,
        inputs=inputs,
        ms=ms,
        dense_ms=peers[quickest],
        dense_impl=f"torch {torch.__version__}, {quickest}",
        speedup=peers[quickest] / ms,
        peers=peers,
        bytes=weight.packed_bytes,
        bound_speedup=ceilings.bound_speedup(tokens, out, inputs, weight.packed_bytes, bits=8),
        host_us=calls.host_us["gossamer"],
        version=gs.__version__,
        date=now(),
        eager_ms=calls.ms,
        eager_host_us=calls.host_us,
        clock_mhz=load.clock_mhz,
        power_w=load.power_w,
        layer=name,
    )
