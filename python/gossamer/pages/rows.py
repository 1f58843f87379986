# SPDX-License-Identifier: BSD-3-Clause
"""One row a layer, with a bar for each of several quantities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.pages.page import Markup
from gossamer.pages.plot import svg, text_at

__all__ = ["Column", "row_chart"]

_WIDTH, _NAME, _ROW, _HEAD = 980, 260, 24, 30
_VALUE = 62
"""Units that a bar's figure takes at its right."""


@dataclass(frozen=True)
class Column:
    """One quantity.

    Attributes:
        heading: its name.
        values: one a row, 0 or more; None where a row has none.
        texts: what each bar says, one a row.
        series: 0 to 5, the colour.
        full: the value of a bar of full length; the greatest where None.
    """

    heading: str
    values: Sequence[float | None]
    texts: Sequence[str]
    series: int
    full: float | None = None


def row_chart(names: Sequence[str], columns: Sequence[Column], *, title: str) -> Markup:
    """Draws a table of bars.

    Args:
        names: of the rows, from the top.
        columns: from the left.
        title: for those who do not see the chart.

    Returns:
        An `<svg>` in a frame that scrolls where there are many rows.
    """
    room = (_WIDTH - _NAME) / max(len(columns), 1)
    parts = []
    for index, column in enumerate(columns):
        parts.append(text_at(_NAME + index * room, 16, column.heading, "start", "strong"))
    for row, name in enumerate(names):
        middle = _HEAD + row * _ROW + _ROW / 2
        if row:
            parts.append(f'<path class="grid" d="M0 {middle - _ROW / 2}H{_WIDTH}"/>')
        parts.append(text_at(0, middle + 4.5, _short(name), "start", "code"))
        for index, column in enumerate(columns):
            parts += _bar(column, row, _NAME + index * room, middle, room - _VALUE - 20)
    height = _HEAD + _ROW * len(names)
    return Markup(f'<div class="tall">{svg(parts, title, _WIDTH, height)}</div>')


def _bar(column: Column, row: int, left: float, middle: float, room: float) -> list[str]:
    value = column.values[row]
    if value is None:
        return [text_at(left, middle + 4.5, column.texts[row], "start")]
    known = [other for other in column.values if other is not None]
    full = max(known) if column.full is None else column.full
    length = max(1.0, room * min(value / full, 1.0)) if full > 0 else 1.0
    return [
        f'<rect class="track" x="{left:.1f}" y="{middle - 6}" width="{room:.1f}" height="12" '
        'rx="3"/>',
        f'<rect class="bar s{column.series}" x="{left:.1f}" y="{middle - 6}" '
        f'width="{length:.1f}" height="12" rx="3"/>',
        text_at(left + room + 8, middle + 4.5, column.texts[row], "start"),
    ]


def _short(name: str, longest: int = 34) -> str:
    return name if len(name) <= longest else f"{name[: longest // 2 - 1]}…{name[-longest // 2 :]}"
