# SPDX-License-Identifier: BSD-3-Clause
"""The least that a call can take on this machine: the longer of its bytes and its arithmetic.

The roofline of `gossamer._roofline`, for what `explain` prints. Its two ceilings are what
torch reaches: the rate of a dense float32 product, and that of reading as many bytes as the weight
has, over and over, so that a weight which a cache holds is not judged by memory. They are measured
once a process, thread count and size, and are at least what the cost model (src/plan/dense_model)
takes a core to do: other work on the machine slows a measurement down, and a bound has to err on
the low side. There is none for weights on a GPU.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gossamer._roofline import Roofline, measure_product, measure_reading
from gossamer.host import kernels, machine

__all__ = ["Bound", "Work", "bound_of", "bound_text"]

# Short calls, so that some of them are not interrupted.
_SIDE = 512
_ROUNDS = 12
# Below it what a call costs would count as reading, above it nothing but memory reads.
_LEAST_READ, _MOST_READ = 1 << 18, 1 << 26

# The cost model's core: float32 operations a second by its widest vectors, and bytes a second.
_CORE_FLOPS = (("avx512", 192e9), ("avx2", 96e9))
_CORE_FLOPS_GENERIC = 24e9
_CORE_READS = 12e9
_SOCKET_READS = 100e9

# Arithmetic of a type beside float32's, by the first instruction set that the machine has; types
# without instructions of their own are widened first.
_FASTER: dict[str, tuple[tuple[str, float], ...]] = {
    "bfloat16": (("amx_bf16", 16.0), ("avx512_bf16", 2.0)),
    "float16": (("avx512_fp16", 2.0),),
    "int8": (("amx_int8", 32.0), ("avx512_vnni", 4.0), ("avx_vnni", 4.0), ("avx2", 2.0)),
}


@dataclass(frozen=True)
class Bound:
    """The least time of a call, and which of the two ceilings it is."""

    ms: float
    by: str
    """`bytes` or `arithmetic`."""


@dataclass(frozen=True)
class Work:
    """What a layer computes and reads.

    Attributes:
        out: outputs, of all matrices of a stack.
        inputs: inputs of one token; of a convolution, channels of a pixel.
        positions: of the weight.
        kept: those that are packed.
        dtype: of the weight's values, without the prefix.
        held: layout to the bytes of the packed weight in it; empty where it is plain.
    """

    out: int
    inputs: int
    positions: int
    kept: int
    dtype: str
    held: dict[str, int]

    @staticmethod
    def of_packed(info: dict[str, Any]) -> Work:
        """From what a packed weight says of itself."""
        first, _, second = info["layout"].partition("+")
        held = {first: info["bytes"]}
        if second:
            # Of two layouts only the first one's arrays are told, and they if it is a format.
            arrays = sum(_array_bytes(array) for array in info["arrays"])
            held = {first: arrays, second: info["bytes"] - arrays} if arrays else {}
        taps = math.prod(info.get("kernel", (1,)))
        rows = info["batch"] * info["out"]
        return Work(
            out=rows,
            inputs=info["batch"] * info["in"] // taps,
            positions=rows * info["in"],
            kept=info["kept"],
            dtype=info["dtype"],
            held=held,
        )

    @staticmethod
    def of_plain(weight: torch.Tensor) -> Work:
        """Of a dense weight [out, in], [batch, out, in] or [out, channels, height, width]."""
        taps = math.prod(weight.shape[2:]) if weight.dim() == 4 else 1
        batch = weight.shape[0] if weight.dim() == 3 else 1
        rows = batch * weight.shape[-2] if weight.dim() < 4 else weight.shape[0]
        inputs = batch * weight.shape[-1] if weight.dim() < 4 else weight[0].numel() // taps
        dtype = str(weight.dtype).removeprefix("torch.")
        return Work(rows, inputs, weight.numel(), weight.numel(), dtype, {})

    def weight_bytes(self, kernel: str) -> int:
        """Those that a call of the kernel has to read."""
        size = _dtype_bytes(self.dtype)
        if kernel == "dense":
            return self.positions * size
        # A kept value is in every layout.
        return self.held.get(_layouts().get(kernel, ""), self.kept * size)


def bound_of(work: Work, kernel: str, tokens: int) -> Bound:
    """The least time of one call.

    Args:
        work: of the layer.
        kernel: a row of the kernel table, or `dense`.
        tokens: of the call; of a convolution, pixels of the result.
    """
    read = work.weight_bytes(kernel)
    # Results of int8 layers are float32, and so are their inputs.
    activation = 4 if work.dtype == "int8" else _dtype_bytes(work.dtype)
    moved = read + activation * tokens * (work.inputs + work.out)
    flops = 2.0 * tokens * (work.positions if kernel == "dense" else work.kept)
    roof = _ceilings(torch.get_num_threads(), _rounded(read))
    arithmetic = flops / (roof.flops * _times_float32(work.dtype))
    reading = moved / roof.bandwidth
    by = "arithmetic" if arithmetic > reading else "bytes"
    return Bound(1e3 * max(arithmetic, reading), by)


def bound_text(buckets: Sequence[Any], unit: str = "token") -> str:
    """A line on the smallest and the largest of the buckets (`BucketPlan`) that were timed."""
    timed = [bucket for bucket in buckets if bucket.bound_ms > 0 and bucket.ms > 0]
    ends = timed if len(timed) < 2 else [timed[0], timed[-1]]
    parts = [
        f"{_time(b.bound_ms)} at {b.timed_at} {unit}{'' if b.timed_at == 1 else 's'} "
        f"(by {b.bound_by}; {b.kernel} takes {_time(b.ms)})"
        for b in ends
    ]
    return f"bound: {', '.join(parts)}" if parts else ""


@functools.cache
def _ceilings(threads: int, size: int) -> Roofline:
    reads = min(_CORE_READS * _cores(threads), _SOCKET_READS)
    return Roofline(_product(threads), max(measure_reading(size, _ROUNDS), reads))


@functools.cache
def _product(threads: int) -> float:
    isa = machine().isa
    core = next((flops for name, flops in _CORE_FLOPS if name in isa), _CORE_FLOPS_GENERIC)
    return max(measure_product(_SIDE, _ROUNDS), core * _cores(threads))


def _cores(threads: int) -> int:
    return min(threads, max(machine().cores, 1))


def _rounded(size: int) -> int:
    """To a power of two, so that few sizes are measured."""
    return min(max(1 << max(size - 1, 1).bit_length(), _LEAST_READ), _MOST_READ)


@functools.cache
def _layouts() -> dict[str, str]:
    return {row.name: row.layout for row in kernels()}


def _times_float32(dtype: str) -> float:
    if dtype == "float64":
        return 0.5
    isa = machine().isa
    return next((factor for name, factor in _FASTER.get(dtype, ()) if name in isa), 1.0)


def _array_bytes(array: dict[str, Any]) -> int:
    return math.prod(array["shape"]) * _dtype_bytes(array["dtype"])


def _dtype_bytes(name: str) -> int:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype.itemsize


def _time(ms: float) -> str:
    return f"{1e3 * ms:.1f} µs" if ms < 1 else f"{ms:.2f} ms"
