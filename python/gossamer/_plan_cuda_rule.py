# SPDX-License-Identifier: BSD-3-Clause
"""The rule by which a 2:4 weight on a GPU runs packed or dense, on times that are given.

Packed must win by 5 % at some token count and lose nowhere by more than the 3 % that timing can
tell apart; where it loses, a dense copy kept beside it runs, unless `memory="low"` keeps none: the
layer stays dense then.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossamer._layout_argument import (
    DENSE,
    FIRST_PAIR,
    PAIRS,
    PARTS,
    header_buckets,
    part_of,
    plan_bits,
)

BUCKETS: tuple[tuple[int, ...], ...] = (
    (1, 8),
    (9, 16),
    (17, 32),
    (33, 64),
    (65, 128),
    (129, 160),
    (161, 256),
    (257, 320),
    (321, 512),
    (513, 640),
    (641, 1024),
    (1025, 1280),
    (1281, 2048),
    (2049, 8192),
)
"""Buckets of token counts, by the counts at which each is timed: both ends, the last one's where
activations of most models end. They are the parts of `_layout_argument`, but that four of these
are two buckets each, their first quarter and the rest: where a further column of tiles has just
begun it is all but empty, which costs what dense kernels pay elsewhere. The packed weight's header
knows eight buckets of its own (gossamer/linear.h)."""

BUCKET_ENDS = [counts[-1] for counts in BUCKETS[:-1]]

PART_OF = [part_of(counts[-1]) for counts in BUCKETS]
"""For each bucket its part."""

_BUCKETS_OF = [[i for i, of in enumerate(PART_OF) if of == part] for part in range(PARTS)]

_PAIRS_OF_QUARTERS = [
    [
        (_BUCKETS_OF[part][0], _BUCKETS_OF[part][1])
        for part in (FIRST_PAIR + 2 * pair, FIRST_PAIR + 2 * pair + 1)
    ]
    for pair in range(PAIRS)
]
"""The buckets of the two parts that share a bit for their first quarters."""

WIN = 1.05
NOT_SLOWER = 0.97


@dataclass(frozen=True)
class CudaPlan:
    """What was decided for one shape.

    Attributes:
        sparse: packed at some token count; False: the layer stays dense.
        choices: empty where nothing was compared, else for each bucket `tokens` (where it
            counted), `kernel` (a row of the GPU's table, or `dense`), `milliseconds`,
            `dense_milliseconds` and `reason`, as the CPU's plan has them.
        reason: one sentence.
        plan: bits of the operators' argument `layout`, 0 where nothing was compared.
    """

    sparse: bool
    choices: list[dict[str, Any]]
    reason: str
    plan: int = 0

    @property
    def dense_buckets(self) -> list[str | None]:
        """What `dense_buckets` makes of the plan."""
        return dense_buckets([choice["kernel"] for choice in self.choices])

    def bits(self, rows: Sequence[str], numbers: Mapping[str, int], table: int) -> int:
        """`plan`.

        Args:
            rows: for each bucket the row that was the fastest there, "" for the cost model's.
            numbers: a row's name to its number; one without is left to the cost model.
            table: what the numbers count in.
        """
        packed = [choice["kernel"] != "dense" for choice in self.choices]
        codes = []
        for buckets in _BUCKETS_OF:
            rest = buckets[-1]
            codes.append(numbers.get(rows[rest], 0) if packed[rest] else DENSE)
        quarters = [
            any(packed[rest] and not packed[first] for first, rest in pair)
            for pair in _PAIRS_OF_QUARTERS
        ]
        return plan_bits(codes, quarters, table)


def decide(times: list[list[float]], kernels: list[str], memory: str, dense_bytes: int) -> CudaPlan:
    """The rule, on milliseconds: for each token count of BUCKETS in turn packed and dense."""
    rows = iter(times)
    choices: list[dict[str, Any]] = []
    losses: list[str] = []
    gains: list[bool] = []
    for counts, kernel in zip(BUCKETS, kernels, strict=True):
        timed = [(tokens, *next(rows)) for tokens in counts]
        tokens, ms, dense_ms = min(timed, key=lambda row: row[2] / row[1])
        ratio = dense_ms / ms
        loses = ratio < NOT_SLOWER
        gains.append(max(row[2] / row[1] for row in timed) >= WIN)
        if loses:
            losses.append(f"{tokens} tokens ({ratio:.2f}x)")
        choices.append(
            {
                "tokens": tokens,
                "kernel": "dense" if loses else kernel,
                "milliseconds": dense_ms if loses else ms,
                "dense_milliseconds": dense_ms,
                "reason": f"packed {ms:.4f} ms, dense {dense_ms:.4f} ms at {tokens} tokens",
            }
        )
    _agree_in_parts(choices)
    wins = any(gain and c["kernel"] != "dense" for gain, c in zip(gains, choices, strict=True))
    size = f"{dense_bytes / 1e6:.3g} MB"
    if not wins:
        return CudaPlan(False, _all_dense(choices), "plain: no token count gains 5 % packed")
    if losses and memory == "low":
        return CudaPlan(
            False,
            _all_dense(choices),
            f'plain: dense is faster at {", ".join(losses)}, and memory="low" keeps no dense copy '
            f"({size}) for those",
        )
    if losses:
        return CudaPlan(
            True,
            choices,
            f"faster packed; dense, from a copy of {size}, where that is faster: "
            f"{', '.join(losses)}",
        )
    return CudaPlan(True, choices, "faster packed, and nowhere slower")


def runs_packed(buckets: Sequence[Sequence[int]], times: Sequence[Sequence[float]]) -> list[bool]:
    """Whether each of the buckets of one part runs packed with these times, in a packed layer.

    Args:
        buckets: of `BUCKETS`.
        times: milliseconds of packed and dense at each of their token counts in turn.
    """
    rows = iter(times)
    packed = [
        min(dense / ms for ms, dense in itertools.islice(rows, len(counts))) >= NOT_SLOWER
        for counts in buckets
    ]
    return [wins and packed[-1] for wins in packed]


def dense_buckets(kernels: Sequence[str]) -> list[str | None]:
    """The plan as the packed weight's header keeps it.

    Args:
        kernels: those of BUCKETS in turn, or none.

    Returns:
        For each of the header's buckets "dense", where some token counts of it run dense, or None.
    """
    return header_buckets(
        {part for part, kernel in zip(PART_OF, kernels, strict=False) if kernel == "dense"}
    )


def _agree_in_parts(choices: list[dict[str, Any]]) -> None:
    """Runs dense what the operators' argument cannot tell apart from what does.

    These are a first quarter where the rest of its part is dense, and where that of the part beside
    it is.
    """
    for pair in _PAIRS_OF_QUARTERS:
        dense = [[choices[i]["kernel"] == "dense" for i in part] for part in pair]
        for (first, _), (_, rest_is_dense) in zip(pair, dense, strict=True):
            if rest_is_dense:
                _run_dense(choices, [first], "the rest of its part is")
        if any(first and not rest for first, rest in dense):
            both = [first for first, _ in pair]
            _run_dense(choices, both, "that of the part beside it is")


def _run_dense(choices: list[dict[str, Any]], which: Sequence[int], why: str) -> None:
    for i in which:
        if choices[i]["kernel"] != "dense":
            choices[i]["reason"] += f"; dense, as {why}"
        (choices[i],) = _all_dense(choices[i : i + 1])


def _all_dense(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**choice, "kernel": "dense", "milliseconds": choice["dense_milliseconds"]}
        for choice in choices
    ]
