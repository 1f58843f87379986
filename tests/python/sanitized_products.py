# SPDX-License-Identifier: BSD-3-Clause
"""Products of every kind of kernel, for compute-sanitizer (scripts/sanitize_cuda.sh).

`sanitized_products.py [PART PARTS]`: all of them, or one of so many parts.

Rows of the kernel table are forced, and cut so that what can go wrong between blocks and between
stages happens: a place for a stage is taken again, a block computes a second tile, the last round
is divided, a cluster walks over four row tiles, sums are exchanged, blocks reach past the last
output, tiles end inside, X is copied by threads, results leave on each of the three ways.

Sums are exact, so that results are compared too. Operands are made and products checked on the
CPU: what the tools slow down is our kernels and a few copies.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass

os.environ["GOSSAMER_CACHE"] = "off"

import torch
from torch import Tensor
from torch.nn import functional as F

import gossamer as gs  # noqa: F401
from gossamer._activation import Activation
from gossamer._layout_argument import RESULT_SHIFT

TILES = 33
FLOAT32 = TILES | 3 << RESULT_SHIFT
DTYPES = {"bf16": torch.bfloat16, "i8": torch.int8, "f8e4m3": torch.float8_e4m3fn}


@dataclass(frozen=True)
class Product:
    """One forced product.

    Attributes:
        row: of the kernel table; `{}` is the type.
        cut: as GOSSAMER_CUT has it.
        out: outputs; a tile of W has 64.
        tiles: of inputs, 64 each with 16 bits and 128 with 8.
        tokens: rows of X.
        missing: inputs of the last tile that are not there; a few leave rows of X unaligned.
        types: of `DTYPES`.
    """

    row: str
    cut: str
    out: int
    tiles: int
    tokens: int
    missing: int = 0
    types: tuple[str, ...] = ("bf16", "i8", "f8e4m3")


PRODUCTS = (
    # More stages than places for them (4 to 14); blocks that share X, divide the inputs, or both.
    Product("sm90_gemm_sp24_{}_128x64", "4x1", 1000, 16, 33),
    Product("sm90_gemm_sp24_{}_128x64", "2x2", 512, 28, 17),
    Product("sm90_gemm_sp24_{}_128x32", "1x4", 256, 60, 40),
    Product("sm90_gemm_sp24_{}_128x96", "4x1", 512, 12, 100),
    Product("sm90_gemm_sp24_{}_128x192", "1x2", 128, 12, 200),
    Product("sm90_gemm_sp24_{}_128x256", "2x1", 256, 9, 300),
    # Blocks, or halves of them, past the last output.
    Product("sm90_gemm_sp24_{}_128x128", "2x1", 300, 12, 129),
    Product("sm90_gemm_sp24_{}_256x128", "1x2", 320, 14, 130),
    Product("sm90_gemm_sp24_{}_256x192", "2x1", 640, 9, 200),
    # A second tile: of blocks in fours; of pairs, which divide the inputs of the last round.
    Product("sm90_gemm_sp24_{}_128x32", "4x1", 512, 8, 1277),
    Product("sm90_gemm_sp24_{}_128x32", "2x1", 256, 8, 2553),
    # X loaded by threads, in words of eight, four, and two or one bytes.
    Product("sm90_gemm_sp24_{}_128x128_unaligned", "1x1", 200, 16, 150, missing=60),
    Product("sm90_gemm_sp24_{}_128x128_unaligned", "1x2", 128, 16, 17, missing=61),
    # Sums in float32 every 256 inputs.
    Product("sm90_gemm_sp24_{}_128x128_accurate", "2x1", 300, 11, 129, types=("f8e4m3",)),
    Product("sm90_gemm_sp24_{}_128x64_accurate", "2x2", 256, 28, 17, types=("f8e4m3",)),
    Product(
        "sm90_gemm_sp24_{}_128x128_unaligned_accurate", "1x1", 200, 9, 150, 61, types=("f8e4m3",)
    ),
    # Few tokens: four row tiles a cluster; X that does not stay; X by threads.
    Product("sm90_decode_sp24_{}_8", "1x8", 3200, 64, 5),
    Product("sm90_decode_sp24_{}_16", "1x4", 128, 16, 9),
    Product("sm90_decode_sp24_{}_64", "1x2", 128, 8, 50),
    Product("sm90_decode_sp24_{}_64", "1x1", 64, 64, 64),
    Product("sm90_decode_sp24_{}_32", "1x2", 192, 9, 20, missing=61),
    Product("sm90_decode_sp24_{}_16", "1x1", 64, 40, 11, missing=60),
    Product("sm80_mma_sp24_{}_128x64", "", 256, 8, 40, types=("bf16", "i8")),
    Product("sm80_mma_sp24_{}_128x16", "", 192, 5, 9, types=("bf16", "i8")),
    Product("sm80_mma_sp24_{}_128x128", "", 300, 5, 130, types=("bf16", "i8")),
    Product("sm80_mma_sp24_{}_128x64_unaligned", "", 200, 5, 70, missing=61, types=("bf16", "i8")),
)


class Operands:
    """Small integers, so that sums are exact in every type; on the CPU.

    Attributes:
        x: [tokens, in] of the product's type.
        packed: W in tiles.
        bias: [out], bfloat16.
        residual: [tokens, out], bfloat16.
        sums: X·Wᵀ, float32.
    """

    def __init__(self, product: Product, dtype: torch.dtype) -> None:
        inputs = product.tiles * 128 // dtype.itemsize - product.missing
        w = torch.randint(-2, 3, (product.out, inputs)).float()
        # Two of four, other ones in other groups; a last group that is cut off keeps them too.
        group = torch.arange(-(-inputs // 4)) + torch.arange(product.out)[:, None]
        kept = torch.eye(4)[group % 4] + torch.eye(4)[(group + 1 + group // 4 % 2) % 4]
        w *= kept.flatten(1)[:, :inputs]
        self.x = torch.randint(-2, 3, (product.tokens, inputs)).float().to(dtype)
        self.packed = torch.ops.gossamer.pack(w.to(dtype), None, "2:4", "nm24_tiles", False, "w")
        self.bias = torch.randint(-16, 17, (product.out,)).bfloat16() / 16
        self.residual = torch.randint(-16, 17, (product.tokens, product.out)).bfloat16() / 16
        self.sums = self.x.float() @ w.T


def multiply(
    operands: Operands, product: Product, activation: Activation, y_dtype: torch.dtype
) -> Tensor:
    """The product on the GPU, with bias and residual unless the activation is none."""
    x, packed = operands.x.cuda(), operands.packed.cuda()
    bias = residual = None
    if activation is not Activation.NONE:
        bias, residual = operands.bias.cuda(), operands.residual.to(y_dtype).cuda()
    ops = torch.ops.gossamer
    if x.dtype is torch.bfloat16:
        layout = FLOAT32 if y_dtype is torch.float32 else TILES
        return ops.linear(x, packed, layout, product.out, None, bias, activation, residual)
    ones = torch.ones(max(product.tokens, product.out)).cuda()
    scales = ones[: product.tokens], ones[: product.out]
    return ops.linear_quantized(
        x,
        scales[0],
        packed,
        TILES,
        product.out,
        scales[1],
        None if bias is None else bias.to(y_dtype),
        activation,
        residual,
        y_dtype,
        False,
    )


def expected(operands: Operands, activation: Activation) -> Tensor:
    if activation is Activation.NONE:
        return operands.sums
    y = operands.sums + operands.bias.float() + operands.residual.float()
    return F.gelu(y) if activation is Activation.GELU else y.relu()


def main(part: int, parts: int) -> None:
    """Each of `parts` processes takes every so manieth product: racecheck takes minutes."""
    torch.manual_seed(0)
    count, done, begin = 0, 0, time.monotonic()
    # Registers that are unrolled over, rounded; the same to float32; groups of eight.
    ends = (
        (Activation.NONE, torch.bfloat16),
        (Activation.RELU, torch.bfloat16),
        (Activation.GELU, torch.bfloat16),
        (Activation.RELU, torch.float32),
    )
    for product in PRODUCTS:
        for kind in product.types:
            activation, y_dtype = ends[count % len(ends)]
            count += 1
            if count % parts != part:
                continue
            done += 1
            os.environ["GOSSAMER_KERNEL"] = product.row.format(kind)
            os.environ["GOSSAMER_CUT"] = product.cut
            operands = Operands(product, DTYPES[kind])
            y = multiply(operands, product, activation, y_dtype).cpu().float()
            # One rounding to bfloat16 is half of this; the activation's own error is less.
            torch.testing.assert_close(
                y,
                expected(operands, activation),
                rtol=2**-8,
                atol=2**-8,
                msg=lambda text, name=f"{kind} {product}": f"{name}: {text}",
            )
    print(f"{done} of {count} products, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or (0, 1)))
