# SPDX-License-Identifier: BSD-3-Clause
"""Patterns as sparsifiers need them: read, checked, and at a lower sparsity than their own."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gossamer import _ops  # noqa: F401  (loads the operators)
from gossamer.prune.transposable import Transposable

__all__ = [
    "CustomPattern",
    "PatternFields",
    "column_block",
    "is_grouped",
    "own_sparsity",
    "parse_pattern",
    "pattern_at",
    "pattern_with",
    "read_pattern",
]

_VNM_LIVE_COLUMNS = 4


@runtime_checkable
class CustomPattern(Protocol):
    """A pattern of one's own: anything that selects a mask from scores.

    Where it has an attribute `grouped` that is True, convolutions come as one matrix a tap. Where
    it has an attribute `any_device` that is True, scores may come on the device of the weight. With
    an attribute `sparsity` and a method `at(sparsity)`, which gives the pattern at a lower one,
    its sparsity can grow (`GradualMagnitude`).
    """

    def select(self, scores: Tensor) -> Tensor:
        """Selects what is kept.

        Args:
            scores: [out, in] (stacked weights: [batch, out, in]), float32 or float64, on the CPU.

        Returns:
            A bool mask of that shape, on the same device; True is kept.
        """


@dataclass(frozen=True)
class PatternFields:
    """What a pattern's text says; the fields that its kind does not have are 0.

    Attributes:
        text: the shortest text that reads back to the same pattern.
        kind: "unstructured", "nm", "block", "vnm" or "fanin".
        sparsity: fraction of zeros; for `N:M` and `vnm` it follows from the numbers.
        n: kept of every M inputs.
        m: inputs in a group.
        v: rows in a panel.
        block_rows: rows of a block.
        block_cols: columns of a block.
    """

    text: str
    kind: str
    sparsity: float
    n: int
    m: int
    v: int
    block_rows: int
    block_cols: int

    @property
    def grouped(self) -> bool:
        """Whether it groups neighbouring inputs."""
        return self.kind in ("nm", "vnm")


@functools.lru_cache(maxsize=1024)
def parse_pattern(text: str) -> PatternFields:
    """Reads a pattern (docs/patterns.md).

    Raises:
        ValueError: the text is no pattern; the message says what would do.
    """
    return PatternFields(**json.loads(torch.ops.gossamer.parse_pattern(text)))


def read_pattern(pattern: str | CustomPattern) -> str | CustomPattern:
    """A pattern as sparsifiers hold it: `transposable:N:M` is an object, other texts stay texts.

    Raises:
        ValueError: the text is no pattern.
    """
    if not isinstance(pattern, str):
        return pattern
    transposable = Transposable.read(pattern)
    if transposable is None:
        parse_pattern(pattern)
        return pattern
    return transposable


def own_sparsity(pattern: str | CustomPattern) -> float | None:
    """The fraction of zeros that a pattern asks for; None for an object that does not say."""
    if isinstance(pattern, str):
        return parse_pattern(pattern).sparsity
    found = getattr(pattern, "sparsity", None)
    return float(found) if callable(getattr(pattern, "at", None)) and found is not None else None


def is_grouped(pattern: str | CustomPattern) -> bool:
    """Whether a pattern groups neighbouring inputs; an object does where its `grouped` is True."""
    if isinstance(pattern, str):
        return parse_pattern(pattern).grouped
    return bool(getattr(pattern, "grouped", False))


def pattern_with(pattern: str, sparsity: float) -> str:
    """A pattern that has a sparsity of its own (`unstructured`, `block`, `fanin`) with another."""
    fields = parse_pattern(pattern)
    if fields.kind == "block":
        return f"block:{fields.block_rows}x{fields.block_cols}:{sparsity}"
    return f"{fields.kind}:{sparsity}"


def pattern_at(pattern: str | CustomPattern, sparsity: float) -> str | CustomPattern:
    """The pattern of the same shape with fewer zeros, for a sparsity that is still growing.

    `unstructured`, `block` and `fanin` take the sparsity as it is. `N:M` keeps the fewest of every
    M that drop no more than the sparsity asks, and never fewer than N: 2:4 goes 4:4, 3:4, 2:4.
    `vnm` does the same; while it would keep more than the 4 columns that its groups can hold, it
    is `unstructured`. An object is asked for itself at that sparsity.

    Args:
        pattern: a pattern's text, or an object with `sparsity` and `at`.
        sparsity: fraction of zeros at present, from 0 to the pattern's own.

    Returns:
        A pattern's text, or an object; `pattern` itself (in its shortest form) at its own sparsity.
    """
    if not isinstance(pattern, str):
        grown: CustomPattern = pattern.at(sparsity)  # type: ignore[attr-defined]
        return grown
    fields = parse_pattern(pattern)
    if sparsity >= fields.sparsity:
        return fields.text
    if not fields.grouped:
        return pattern_with(pattern, sparsity)
    kept = max(fields.n, fields.m - math.floor(sparsity * fields.m))
    if fields.kind == "nm":
        return f"{kept}:{fields.m}"
    if kept > _VNM_LIVE_COLUMNS:
        return f"unstructured:{sparsity}"
    return f"vnm:{fields.v}:{kept}:{fields.m}"


def column_block(scope: str) -> int:
    """How many columns compete together with scope "columns:N"; 0 with any other scope.

    Raises:
        ValueError: N is no positive number.
    """
    kind, separator, count = str(scope).partition(":")
    if kind != "columns":
        return 0
    if not separator or not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"scope {scope!r}: 'columns:N' with N from 1 is accepted, e.g. columns:128"
        )
    return int(count)
