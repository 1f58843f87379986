# SPDX-License-Identifier: BSD-3-Clause
"""Bits of the argument `layout` that say more than the layout (src/torch/cuda_layout_argument.h).

On a CPU the argument is the layout alone; on a GPU, whose operator reads no header, it carries what
a call has to know: `_weight_facts` puts it together. The plan among it is a code of four bits for
each part of the token counts, and travels as long as the weight lives.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

RESULT_SHIFT = 6
PLAN_SHIFT = 8
CODE_BITS = 4
PART_ENDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
"""The largest token counts of all parts but the last."""
PARTS = len(PART_ENDS) + 1
_BUCKET_ENDS = (1, 4, 8, 32, 128, 512, 2048)
"""The same of the header's buckets (gossamer/linear.h, token_bucket)."""
_SIZES = 64
MODEL, DENSE = 0, 15
"""Codes that name no row: the cost model chooses one, or the dense copy runs."""
FIRST_PAIR = 5
"""The part of 129 tokens: from there to 2048 parts go in pairs, each with a bit which says that the
first quarter of both runs dense, a further column of tiles being all but empty there."""
PAIRS = 2
QUARTERS_SHIFT = PLAN_SHIFT + CODE_BITS * PARTS
TOLD_SHIFT = 50
INPUTS_SHIFT = 51
INPUTS = 128
FLOAT8_SHIFT = 58
ACCURATE_SHIFT = 59
BFLOAT16_SHIFT = 58
FLOAT16_SHIFT = 59
STACK_SHIFT = 60
TABLE_SHIFT = 61

_RESULT_DTYPES = (None, torch.bfloat16, torch.float16, torch.float32)

# Parts by the header's buckets (gossamer/linear.h), 1, 2–4, 5–8, 9–32, 33–128, 129–512, 513–2048
# tokens and more.
_PARTS_OF_BUCKETS = ((0,), (0,), (0,), (1, 2), (3, 4), (5, 6), (7, 8), (9,))


def part_of(tokens: int) -> int:
    """Which part so many tokens are in."""
    return bisect_left(PART_ENDS, tokens)


def plan_bits(codes: Sequence[int], quarters: Sequence[bool] = (), table: int = 0) -> int:
    """The bits of a plan.

    Args:
        codes: for each part MODEL, DENSE or a row's number.
        quarters: for each pair whether its parts' first quarters run dense.
        table: what the numbers count in, 0 to 3.
    """
    bits = table << TABLE_SHIFT
    for part, code in enumerate(codes):
        bits |= code << (PLAN_SHIFT + CODE_BITS * part)
    for pair, is_dense in enumerate(quarters):
        bits |= int(is_dense) << (QUARTERS_SHIFT + pair)
    return bits


def plan_of_buckets(dense_buckets: int) -> int:
    """The bits of a plan that runs the header's buckets dense whose bits are set."""
    codes = [MODEL] * PARTS
    for bucket, parts in enumerate(_PARTS_OF_BUCKETS):
        for part in parts if dense_buckets >> bucket & 1 else ():
            codes[part] = DENSE
    return plan_bits(codes)


def header_buckets(dense_parts: set[int]) -> list[str | None]:
    """For each of the header's buckets "dense", where one of its parts is, or None."""
    return ["dense" if dense_parts & set(parts) else None for parts in _PARTS_OF_BUCKETS]


def code_at(argument: int, tokens: int) -> int:
    """The code for so many tokens."""
    return argument >> (PLAN_SHIFT + CODE_BITS * part_of(tokens)) & DENSE


def runs_dense(argument: int, tokens: int) -> bool:
    """Whether the operator multiplies so many tokens with the dense copy."""
    part = part_of(tokens)
    if argument >> (PLAN_SHIFT + CODE_BITS * part) & DENSE == DENSE:
        return True
    pair = (part - FIRST_PAIR) // 2
    if not 0 <= pair < PAIRS or not argument >> (QUARTERS_SHIFT + pair) & 1:
        return False
    before = PART_ENDS[part - 1]
    return (tokens - before) * 4 <= before


@lru_cache
def dense_sizes(plan: int, dense_buckets: int) -> tuple[int, int]:
    """For which token counts dense runs, as a call asks it: by `(tokens - 1).bit_length()`.

    Args:
        plan: bits of a plan; 0 leaves the choice to the header.
        dense_buckets: the header's buckets that run dense.

    Returns:
        One bit for each bit length: dense for all of its counts; dense for their first quarter.
    """

    def is_dense(tokens: int) -> bool:
        if plan:
            return runs_dense(plan, tokens)
        return bool(dense_buckets >> bisect_left(_BUCKET_ENDS, tokens) & 1)

    whole = quarter = 0
    for size in range(_SIZES):  # of 2**(size - 1) + 1 to 2**size tokens; both tables part there
        whole |= is_dense(1 << size) << size
        quarter |= is_dense(1 + (1 << size >> 1)) << size
    return whole, quarter & ~whole


def dtype_bits(values: torch.dtype, *, quantized: bool, accurate: bool) -> int:
    """The bits that tell values apart which take as many bytes.

    Args:
        values: the dtype of what is kept.
        quantized: scales belong to the values.
        accurate: of quantized float8 values: their sums are.
    """
    if not quantized:
        return (values is torch.bfloat16) << BFLOAT16_SHIFT | (
            values is torch.float16
        ) << FLOAT16_SHIFT
    is_float8 = values is torch.float8_e4m3fn
    return is_float8 << FLOAT8_SHIFT | (is_float8 and accurate) << ACCURATE_SHIFT


def with_result_dtype(layout: int, x: Tensor, dtype: torch.dtype) -> int:
    """The argument `layout` of a product on a GPU whose result has another dtype than x.

    Raises:
        ValueError: no kernel writes that dtype.
    """
    if dtype == x.dtype:
        return layout
    if x.device.type != "cuda":
        raise ValueError(
            f"output_dtype {dtype} of x {x.dtype} on {x.device.type}: kernels outside of a GPU "
            f"write x's dtype; convert x or the result with .to({dtype})"
        )
    if dtype not in _RESULT_DTYPES:
        raise ValueError(
            f"output_dtype {dtype}: torch.bfloat16, torch.float16 and torch.float32 are accepted"
        )
    return layout | _RESULT_DTYPES.index(dtype) << RESULT_SHIFT


def result_dtype(layout: int, x: Tensor) -> torch.dtype:
    """The dtype of a product of x: what the argument `layout` asks for, else x's."""
    return _RESULT_DTYPES[layout >> RESULT_SHIFT & 3] or x.dtype
