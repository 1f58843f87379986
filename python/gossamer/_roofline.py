# SPDX-License-Identifier: BSD-3-Clause
"""The most that sparsity can gain in one layer on this machine.

By the roofline model (Williams, Waterman, Patterson, CACM 52(4), 2009) a call takes at least
max(flops / peak, bytes / bandwidth). Dense: 2*tokens*out*in flops and 4*out*in bytes of weight;
sparse: density times the flops, and the bytes of the packed weight; x and y, 4*tokens*(in + out)
bytes, are the same for both. The bound is the ratio of the two: where computing binds it is
1 / density, where reading the weight binds it is dense bytes / packed bytes. It bounds what a
sparse kernel can gain over a dense one that reaches its own roof; where torch's dense product stays
below its roof, a measured speed-up may be greater.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Roofline", "measure_product", "measure_reading", "measure_roofline"]

_COMPUTE_SIDE = 1024
_ROUNDS = 7
_CACHES = 4
"""What is read is so many times larger than the last-level cache."""
_ROW = 4096
_PLAIN: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
"""Whatever torch's defaults are."""


@dataclass(frozen=True)
class Roofline:
    """Two ceilings, with torch's present number of threads.

    Attributes:
        flops: float32 operations a second, by torch's dense 1024x1024x1024 product.
        bandwidth: bytes a second read from memory by all threads: the quicker of a sum and of a
            matrix-vector product over more than the last-level cache.
    """

    flops: float
    bandwidth: float

    def bound_speedup(
        self,
        tokens: int,
        out: int,
        inputs: int,
        density: float,
        packed_bytes: int,
        width: int = 4,
        activation_width: int = 4,
    ) -> float:
        """The ratio of the least times, dense over sparse.

        Args:
            tokens: rows of x.
            out: outputs.
            inputs: inputs.
            density: fraction of the weight that is kept.
            packed_bytes: of the packed weight.
            width: bytes of a dense weight's element; arithmetic on narrower ones than float32 is
                taken to be faster in proportion.
            activation_width: bytes of an element of x and y.
        """
        flops = 2.0 * tokens * out * inputs * width / 4
        activations = float(activation_width * tokens * (out + inputs))
        dense = self.seconds(flops, float(width * out * inputs) + activations)
        return dense / self.seconds(flops * density, packed_bytes + activations)

    def seconds(self, flops: float, moved: float) -> float:
        """The least time of so many operations and so many bytes moved."""
        return max(flops / self.flops, moved / self.bandwidth)


def measure_roofline(cache_bytes: int) -> Roofline:
    """Measures both ceilings; the best of a few rounds, since ceilings are what they are.

    Args:
        cache_bytes: of the last-level cache.
    """
    return Roofline(
        measure_product(_COMPUTE_SIDE, _ROUNDS),
        measure_reading(max(_CACHES * cache_bytes, 1 << 26), _ROUNDS),
    )


def measure_product(side: int, rounds: int) -> float:
    """Float32 operations a second of torch's product of two [side, side] matrices, the quickest.

    Torch's random numbers stay as they were.
    """
    numbers = torch.Generator().manual_seed(0)
    a, b = (torch.rand(side, side, generator=numbers, **_PLAIN) for _ in range(2))
    return 2.0 * side**3 / min(_seconds(lambda: torch.mm(a, b)) for _ in range(rounds))


def measure_reading(size: int, rounds: int) -> float:
    """Bytes a second at which torch reads `size` bytes over and over, the quickest way and time.

    A size that a cache holds is read from there.
    """
    read = torch.ones(max(size // 4, 1), **_PLAIN)
    rows = read.reshape(-1, _ROW) if read.numel() % _ROW == 0 else read.reshape(1, -1)
    ones = torch.ones(rows.shape[1], **_PLAIN)
    # Whichever reads faster: a kernel can come close to what the machine reads, not beyond it.
    calls = (read.sum, lambda: torch.mv(rows, ones))
    return 4.0 * read.numel() / min(_seconds(call) for _ in range(rounds) for call in calls)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
