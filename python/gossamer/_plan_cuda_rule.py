# SPDX-License-Identifier: BSD-3-Clause
"""The rule by which a 2:4 weight on a GPU runs packed or dense, on times that are given.

Packed must win by 5 % at some token count and lose nowhere by more than the 3 % that timing can
tell apart; where it loses, a dense copy kept beside it runs, unless `memory="low"` keeps none: the
layer stays dense then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gossamer._tune_cuda import operator_bucket
from gossamer._weight_facts import (
    EIGHTHS_BUCKET,
    EIGHTHS_DENSE_SHIFT,
    FIRST_HALVED_BUCKET,
    UPPER_PACKED_SHIFT,
)

BUCKETS: tuple[tuple[int, ...], ...] = (
    (1,),
    (2, 8),
    (9, 32),
    (33, 64),
    (65, 128),
    (129, 144),
    (145, 256),
    (257, 288),
    (289, 512),
    (513, 576),
    (577, 1024),
    (1025, 1152),
    (1153, 2048),
    (2049, 8192),
)
"""Buckets of token counts, of src/torch/cuda_layout_argument.h or parts of them, by the counts at
which each is timed: both ends, the last one's where activations of most models end. Parts are
halves, and the first eighth of each half of two: a further column of tiles has begun there that is
all but empty, which costs what dense kernels pay elsewhere."""

BUCKET_ENDS = [counts[-1] for counts in BUCKETS[:-1]]

BUCKET_OF = [operator_bucket(counts[-1]) for counts in BUCKETS]
_OPERATOR_BUCKETS = 7
_PARTS = [
    [i for i, of in enumerate(BUCKET_OF) if of == bucket] for bucket in range(_OPERATOR_BUCKETS)
]
"""For each bucket of the operators' argument its places in BUCKETS."""

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
        rows: bits of the operators' argument `layout` that name a row of the table for each bucket,
            0 where the cost model chooses, and `packed_parts`.
    """

    sparse: bool
    choices: list[dict[str, Any]]
    reason: str
    rows: int = 0

    @property
    def dense_buckets(self) -> list[str | None]:
        """What `dense_buckets` makes of the plan."""
        return dense_buckets([choice["kernel"] for choice in self.choices])

    @property
    def packed_parts(self) -> int:
        """Bits of `layout` for the parts of these buckets that are packed all the same."""
        bits = 0
        for bucket, parts in enumerate(_PARTS if self.choices else ()):
            packed = [self.choices[i]["kernel"] != "dense" for i in parts]
            if all(packed) or not any(packed):
                continue
            if not packed[-1 - len(packed) // 2]:  # the lower half, or what is not its first eighth
                bits |= 1 << (UPPER_PACKED_SHIFT + bucket - FIRST_HALVED_BUCKET)
            if len(packed) == 4 and not packed[2]:
                bits |= 1 << (EIGHTHS_DENSE_SHIFT + bucket - EIGHTHS_BUCKET)
        return bits


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


def dense_buckets(kernels: Sequence[str]) -> list[str | None]:
    """For each bucket of gossamer/linear.h "dense", where a part of it is, or None.

    As the packed weight's header keeps it. `kernels` are those of BUCKETS in turn, or none.
    """
    dense = _dense_operator_buckets(kernels)
    names = ["dense" if bucket in dense else None for bucket in range(_OPERATOR_BUCKETS)]
    return [names[0], names[1], *names[1:]]  # the header tells 2–4 tokens from 5–8


def _dense_operator_buckets(kernels: Sequence[str]) -> set[int]:
    return {b for b, kernel in zip(BUCKET_OF, kernels, strict=False) if kernel == "dense"}


def _agree_in_parts(choices: list[dict[str, Any]]) -> None:
    """Runs dense what the operators' argument cannot tell apart from parts that do.

    These are a bucket below its last part where that is dense, a first eighth where the rest of its
    half is, and the other half's first eighth.
    """
    for parts in _PARTS:
        packed = [choices[i]["kernel"] != "dense" for i in parts]
        if not packed[-1]:
            _run_dense(choices, parts[:-1], "the last part of its bucket is")
        elif len(parts) == 4 and not packed[1]:
            _run_dense(choices, parts[:1], "the rest of its half is")
        elif len(parts) == 4 and not (packed[0] and packed[2]):
            _run_dense(choices, [parts[0], parts[2]], "the other half begins dense")


def _run_dense(choices: list[dict[str, Any]], which: Sequence[int], why: str) -> None:
    for i in which:
        if choices[i]["kernel"] != "dense":
            choices[i]["reason"] += f"; dense, as {why}"
        (choices[i],) = _all_dense(choices[i : i + 1])


def rows_of_buckets(rows: Sequence[str], choices: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each bucket of the operators' argument the row that its packed parts agree on, or ""."""
    found: list[set[str]] = [set() for _ in range(_OPERATOR_BUCKETS)]
    for bucket, row, choice in zip(BUCKET_OF, rows, choices, strict=True):
        if choice["kernel"] != "dense":
            found[bucket].add(row)
    return [next(iter(names)) if len(names) == 1 else "" for names in found]


def _all_dense(choices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**choice, "kernel": "dense", "milliseconds": choice["dense_milliseconds"]}
        for choice in choices
    ]
