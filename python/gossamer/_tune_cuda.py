# SPDX-License-Identifier: BSD-3-Clause
"""Which row of the GPU's kernel table runs at how many tokens: checked first, then measured.

The cost model proposes: the rows that it puts within `NEAR` of its best at every token count where
a bucket is timed. Each one's product is compared with a reference that another library computes,
within a bound that follows from the number of additions; a row that is off by more is left out.
The others are timed beside the dense layer. A row and token count takes about eight milliseconds:
`ROUNDS` + 2 graphs of a millisecond each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer._cuda_timing import contest
from gossamer._layout_argument import PARTS, part_of, plan_bits
from gossamer.weight import SparseWeight

__all__ = [
    "Measured",
    "Reference",
    "candidates",
    "choose",
    "discrepancy",
    "measure",
]

NEAR = 1.4
"""A row that the cost model thinks slower than this times the best is not tried."""

MOST = 4
"""Rows that are tried at most for a bucket."""

MOST_SHARED = 8
"""Rows that are tried at most for a part of several buckets, which share a row."""

SAME = 1.02
"""A fixed row must be better than the cost model's choices by more than timing can tell apart."""

ROUNDS = 5
_SECONDS = 1e-3
_L2_TIMES = 2
_MOST_COPIES = 32

_TOKENS_AT_ONCE = 1024
_FLOAT8_TERMS = 33
_FLOAT8_BITS = 13

Row = Mapping[str, Any]

InTheEnd = Callable[[Sequence[float]], Sequence[float]]
"""Of a row's milliseconds at each token count, those of what the plan then runs there."""

Packs = Callable[[Sequence[Sequence[int]], Sequence[Sequence[float]]], Sequence[bool]]
"""`_plan_cuda_rule.runs_packed`."""


@dataclass(frozen=True)
class Measured:
    """What was found for one shape.

    Attributes:
        times: for each timed token count milliseconds of packed and dense.
        rows: for each bucket the row that packed ran, empty where the cost model chooses.
        left_out: sentences about rows whose products were wrong.
    """

    times: list[list[float]]
    rows: list[str]
    left_out: list[str] = field(default_factory=list)


def candidates(tables: Sequence[Sequence[Row]]) -> list[str]:
    """Rows worth trying in a bucket, the most promising first.

    Args:
        tables: for each token count where the bucket is timed, the rows that compute the product,
            with `name`, `seconds` (predicted) and `row` (its number, 0 where it has none).
    """
    behind = []
    for rows in tables:
        least = min(row["seconds"] for row in rows)
        behind.append({row["name"]: row["seconds"] / least for row in rows if row["row"]})
    common = set(behind[0]).intersection(*behind[1:])
    found = sorted((max(ratios[name] for ratios in behind), name) for name in common)
    return [name for ratio, name in found if ratio <= NEAR][:MOST]


def choose(
    times: Sequence[Mapping[str, float]], picks: Sequence[str], in_the_end: InTheEnd
) -> tuple[str, Sequence[float]]:
    """The row for a bucket, empty where the cost model does as well, and its milliseconds.

    Rows are ranked by what runs in the end: where a row loses to dense, dense runs, and it does not
    count how much it loses.

    Args:
        times: at each token count the milliseconds of every row that was timed there.
        picks: what the cost model takes at each.
        in_the_end: what runs with a row of such milliseconds.

    Returns:
        Infinite times where nothing is left that computes every count.
    """
    options = {
        name: [row[name] for row in times]
        for name in (times[0] if times else {})
        if all(name in row for row in times)
    }
    model: list[float] | None = None
    if all(pick in row for pick, row in zip(picks, times, strict=True)):
        model = [row[pick] for pick, row in zip(picks, times, strict=True)]
    found = {name: in_the_end(option) for name, option in options.items()}
    models = [] if model is None else [in_the_end(model)]
    best = [min(at) for at in zip(*found.values(), *models, strict=True)]

    def behind(ends: Sequence[float]) -> float:
        return max(ms / least for ms, least in zip(ends, best, strict=True))

    first = min(options, key=lambda name: behind(found[name]), default=None)
    if first is None:
        return "", [math.inf] * len(times) if model is None else model
    if model is not None and behind(*models) <= SAME * behind(found[first]):
        return "", model
    return first, options[first]


# --- Products -------------------------------------------------------------------------------------


def discrepancy(y: Tensor, expected: Tensor, allowed: Tensor) -> str | None:
    """Where |y − expected| exceeds what rounding allows, as the end of a sentence; None: nowhere.

    Args:
        y: [tokens, out].
        expected: the same in float32, another library's product.
        allowed: the same, not negative.
    """
    off = (y.float() - expected).abs_()
    if bool((off <= allowed).all()):
        return None
    worst = int((off - allowed).nan_to_num_(nan=math.inf).argmax())
    found, most = float(off.flatten()[worst]), float(allowed.flatten()[worst])
    return f"is off by {found:.3g} where rounding explains {most:.3g}"


@contextmanager
def _full_precision_sums() -> Iterator[None]:
    """Products of torch whose partial sums stay in float32."""
    settings = torch.backends.cuda.matmul
    names = (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
    )
    before = {name: getattr(settings, name) for name in names}
    try:
        for name in names:
            setattr(settings, name, False)
        yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


class Reference:
    """Products of a weight by torch's dense kernels, and how far a right product may be from them.

    Both add `in` products in float32, each addition losing at most a unit (tensor cores truncate)
    of the sum of magnitudes, and round once to their dtype. Sums of float8 products keep 14 bits of
    the largest term at each of their instructions (64 inputs).
    """

    def __init__(self, weight: SparseWeight, dense: Tensor) -> None:
        """`dense` [out, in] is what was packed."""
        self.values = weight._facts.dtype
        self.scale = weight.scale
        self.dense = dense
        if self.scale is not None:
            shape = weight._facts.logical_shape
            values = torch.ops.gossamer.unpack(weight.packed, shape, self.values)
            self.dense = values.to(torch.bfloat16)  # exact for both types of eight bits
        self.magnitude = self.dense.abs().to(torch.bfloat16)

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The product with x [tokens, in] and the bound, both float32 [tokens, out]."""
        a, scales = x, None
        if self.scale is not None:
            q, x_scale = torch.ops.gossamer.quantize_rows(x, self.values)
            a, scales = q.to(torch.bfloat16), x_scale[:, None] * self.scale[None]
        with _full_precision_sums():
            expected = F.linear(a, self.dense).float()
            # Rounding of three numbers to bfloat16, 8 bits each, is less than 2^-6 of the product.
            magnitude = F.linear(a.abs().to(torch.bfloat16), self.magnitude).float()
        magnitude *= 1 + 2.0**-6
        inputs, eps = x.shape[1], torch.finfo(torch.float32).eps
        lost = 2 * (inputs + 2) * eps
        if self.values is torch.float8_e4m3fn:
            lost += _FLOAT8_TERMS * math.ceil(inputs / 64) * 2.0**-_FLOAT8_BITS
        # Two roundings: that of the reference in its own dtype, that of the result in x's.
        off = lost * magnitude + torch.finfo(a.dtype).eps / 2 * expected.abs()
        if scales is not None:
            expected, off = expected * scales, off * scales
            off += 4 * eps * expected.abs()
        off += torch.finfo(x.dtype).eps / 2 * (expected.abs() + off)
        return expected, off + torch.finfo(x.dtype).tiny


# --- Times ----------------------------------------------------------------------------------------

Calls = dict[str, list[Callable[[], Tensor]]]

Table = Callable[[int], Sequence[Row]]
"""The rows that compute the product of so many tokens, with what the cost model says of them."""


def measure(
    weight: SparseWeight,
    dense: Tensor,
    bias: bool,
    buckets: Sequence[Sequence[int]],
    table: Table,
    packs: Packs,
) -> Measured:
    """Checks and times rows and the dense layer, weights read from memory.

    Args:
        weight: packed, on a GPU.
        dense: [out, in], what was packed.
        bias: the layer adds one.
        buckets: the token counts at which each is timed.
        table: the rows of the kernel table.
        packs: the rule by which buckets run packed.
    """
    with torch.cuda.device(dense.device), torch.no_grad():
        copies = _copies(weight.packed, dense)
        return _measure_here(weight, dense, bias, buckets, table, packs, copies)


def _copies(packed: Tensor, dense: Tensor) -> int:
    """As many as overflow L2."""
    l2 = torch.cuda.get_device_properties(dense.device).L2_cache_size
    return min(_MOST_COPIES, 1 + math.ceil(_L2_TIMES * l2 / max(packed.numel(), 1)))


def _measure_here(
    weight: SparseWeight,
    dense: Tensor,
    bias: bool,
    buckets: Sequence[Sequence[int]],
    table: Table,
    packs: Packs,
    copies: int,
) -> Measured:
    tiles = [weight.packed.clone() for _ in range(copies)]
    theirs = [dense.clone() for _ in range(copies)]
    offset = dense.new_zeros(dense.shape[0]) if bias else None
    reference = Reference(weight, dense)
    result = Measured([], [])
    for _, sharing in itertools.groupby(buckets, key=lambda counts: part_of(counts[-1])):
        group = list(sharing)
        tables = {tokens: table(tokens) for counts in group for tokens in counts}
        near = [candidates([tables[n] for n in counts]) for counts in group]
        everywhere = set.intersection(*({r["name"] for r in rows} for rows in tables.values()))
        # The best of each bucket, then the second of each.
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*near, fillvalue=""))
        tried = [name for name in dict.fromkeys(in_turn) if name in everywhere][:MOST_SHARED]
        picks = [min(rows, key=lambda row: row["seconds"])["name"] for rows in tables.values()]
        found: list[dict[str, float]] = []
        dense_ms: list[float] = []
        for (tokens, rows), pick in zip(tables.items(), picks, strict=True):
            x = torch.randn(tokens, dense.shape[1], device=dense.device).to(dense.dtype)
            calls = {
                name: _calls(weight, x, tiles, offset, _forced(weight, rows, tokens, name))
                for name in dict.fromkeys([pick, *tried])
            }
            right, sentences = _right(calls, reference, x)
            result.left_out.extend(sentences)
            usual: Calls = {"dense": [partial(F.linear, x, w, offset) for w in theirs]}
            times = contest(usual | right, ROUNDS, _SECONDS)
            dense_ms.append(times.pop("dense"))
            found.append(times)
        row, packed_ms = choose(found, picks, partial(_in_the_end, group, dense_ms, packs))
        result.rows.extend([row] * len(group))
        result.times.extend(map(list, zip(packed_ms, dense_ms, strict=True)))
    return result


def _in_the_end(
    buckets: Sequence[Sequence[int]],
    dense_ms: Sequence[float],
    packs: Packs,
    packed_ms: Sequence[float],
) -> list[float]:
    """Milliseconds of what runs at each token count: packed, or dense in buckets that lose."""
    timed = list(zip(packed_ms, dense_ms, strict=True))
    is_packed = itertools.chain.from_iterable(
        [packed] * len(counts)
        for counts, packed in zip(buckets, packs(buckets, timed), strict=True)
    )
    return [ms if packed else other for (ms, other), packed in zip(timed, is_packed, strict=True)]


def _forced(weight: SparseWeight, rows: Sequence[Row], tokens: int, name: str) -> int:
    """The argument `layout` of a call that runs this row, the model's where it has no number."""
    plain = weight._facts._replace(plan=0, dense_buckets=0).layout_argument(weight.device)
    row = next(row for row in rows if row["name"] == name)
    codes = [0] * PARTS
    codes[part_of(tokens)] = row["row"]
    return plain | plan_bits(codes, table=row["table"] if row["row"] else 0)


def _calls(
    weight: SparseWeight, x: Tensor, tiles: Sequence[Tensor], offset: Tensor | None, argument: int
) -> list[Callable[[], Tensor]]:
    linear = torch.ops.gossamer.linear
    out, scale = weight.out_features, weight.scale
    return [partial(linear, x, packed, argument, out, scale, offset) for packed in tiles]


def _right(calls: Calls, reference: Reference, x: Tensor) -> tuple[Calls, list[str]]:
    """The rows whose product is right, and a sentence about each other one."""
    right: Calls = {}
    sentences = []
    for name, ways in calls.items():
        parts = zip(ways[0]().split(_TOKENS_AT_ONCE), x.split(_TOKENS_AT_ONCE), strict=True)
        wrong = next(filter(None, (discrepancy(y, *reference.of(a)) for y, a in parts)), None)
        if wrong is None:
            right[name] = ways
        else:
            sentences.append(f"{name} is left out: its product of {x.shape[0]} tokens {wrong}")
    return right, sentences
