# SPDX-License-Identifier: BSD-3-Clause
"""Line and bar charts as inline SVG, coloured by the page's style sheet."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gossamer.pages.page import Markup

__all__ = ["Bars", "Line", "bar_chart", "line_chart", "scale", "svg", "text_at", "ticks", "upright"]

_WIDTH, _HEIGHT = 720, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 56, 18, 44
_MIDDLE = (_TOP + _HEIGHT - _BOTTOM) / 2


@dataclass(frozen=True)
class Line:
    """One series of a line chart.

    Attributes:
        label: in the legend.
        x: of each point.
        y: of each point, as long as x.
        series: 0, 1 or 2: the colour, the same series the same colour all over a page.
        right: measured on the right axis, and drawn dashed.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    series: int
    right: bool = False


@dataclass(frozen=True)
class Bars:
    """One series of a bar chart.

    Attributes:
        label: in the legend.
        values: one a group.
        texts: what each bar says, one a group.
        series: 0, 1 or 2, the colour.
    """

    label: str
    values: Sequence[float]
    texts: Sequence[str]
    series: int


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from `low` to `high`, steps of 1, 2 or 5 times a power of ten.

    Raises:
        ValueError: low >= high.
    """
    if not low < high:
        raise ValueError(f"an axis from {low} to {high}: low < high is accepted")
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [step * i for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_range: tuple[float, float],
    right_label: str = "",
    right_range: tuple[float, float] = (0.0, 100.0),
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Draws lines over one x axis, on a left and, where a line asks for it, a right y axis.

    Args:
        lines: at least one, at least two different x among them. Points outside of the range are
            drawn on its edge.
        title: for those who do not see the chart.
        x_label: with its unit.
        y_label: of the left axis.
        y_range: lowest and highest value of the left axis.
        right_label: of the right axis.
        right_range: lowest and highest value of the right axis.
        marks: vertical lines: x and what happens there.

    Returns:
        An `<svg>` with its legend.
    """
    xs = [x for line in lines for x in line.x]
    x_at = scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    left_at = scale(*y_range, _HEIGHT - _BOTTOM, _TOP)
    right_at = scale(*right_range, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value in ticks(*y_range):
        y = left_at(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(text_at(_LEFT - 8, y + 4, f"{value:g}", "end"))
    for value in ticks(min(xs), max(xs), 10):
        parts.append(text_at(x_at(value), _HEIGHT - _BOTTOM + 18, f"{value:g}", "middle"))
    if any(line.right for line in lines):
        for value in ticks(*right_range, most=5):
            parts.append(text_at(_WIDTH - _RIGHT + 8, right_at(value) + 4, f"{value:g}", "start"))
        parts.append(upright(_WIDTH - 8, _MIDDLE, right_label))
    for row, (x, text) in enumerate(marks):
        parts.append(f'<path class="mark" d="M{x_at(x):.1f} {_TOP}V{_HEIGHT - _BOTTOM}"/>')
        late = x_at(x) > _WIDTH / 2  # its words would run over the right axis
        side = ("end", -6) if late else ("start", 6)
        parts.append(text_at(x_at(x) + side[1], _HEIGHT - _BOTTOM - 8 - 17 * row, text, side[0]))
    for line in lines:
        at, bounds = (right_at, right_range) if line.right else (left_at, y_range)
        ys = [min(max(y, bounds[0]), bounds[1]) for y in line.y]
        path = "L".join(f"{x_at(x):.1f} {at(y):.1f}" for x, y in zip(line.x, ys, strict=True))
        kind = "line dashed" if line.right else "line"
        parts.append(f'<path class="{kind} s{line.series}" d="M{path}"/>')
        if not line.right:
            parts.append(
                f'<circle class="dot s{line.series}" cx="{x_at(line.x[-1]):.1f}" '
                f'cy="{at(ys[-1]):.1f}" r="4"/>'
            )
    parts.append(text_at((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "middle"))
    parts.append(upright(14, _MIDDLE, y_label))
    return _chart(parts, title, _HEIGHT, _legend(lines), _WIDTH)


def bar_chart(
    groups: Sequence[str], series: Sequence[Bars], *, title: str, width: int = _WIDTH
) -> Markup:
    """Draws horizontal bars, one block a group; each group is scaled to its own longest bar.

    Args:
        groups: names, top to bottom.
        series: the bars of each group, in order.
        title: for those who do not see the chart.
        width: units of the drawing, about pixels; less where charts stand side by side.

    Returns:
        An `<svg>` with its legend.
    """
    bar, gap, head = 18, 5, 26
    block = head + len(series) * (bar + gap) + 14
    room = width - 150
    parts = []
    for row, group in enumerate(groups):
        top = row * block
        longest = max(one.values[row] for one in series)
        parts.append(text_at(0, top + 16, group, "start", "strong"))
        for index, one in enumerate(series):
            y = top + head + index * (bar + gap)
            length = max(2.0, room * one.values[row] / longest) if longest > 0 else 2.0
            parts.append(
                f'<rect class="bar s{one.series}" x="0" y="{y}" width="{length:.1f}" '
                f'height="{bar}" rx="3"/>'
            )
            parts.append(text_at(length + 10, y + bar / 2 + 4.5, one.texts[row], "start"))
    return _chart(parts, title, block * len(groups), _legend(series), width)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """What takes `low` to `start` and `high` to `end`."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def text_at(x: float, y: float, text: str, anchor: str, kind: str = "label") -> str:
    """Text at a place; `anchor` is "start", "middle" or "end", `kind` a class of the style."""
    return (
        f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{html.escape(text)}</text>"
    )


def upright(x: float, y: float, text: str) -> str:
    """Text that is read from below, its middle at (x, y)."""
    return (
        f'<text class="label" transform="translate({x:.1f} {y:.1f}) rotate(-90)" '
        f'text-anchor="middle">{html.escape(text)}</text>'
    )


def _legend(series: Sequence[Line] | Sequence[Bars]) -> str:
    items = []
    for one in series:
        kind = "key dashed" if isinstance(one, Line) and one.right else "key"
        key = f'<i class="{kind} s{one.series}"></i>'
        items.append(f'<span class="entry">{key}{html.escape(one.label)}</span>')
    return f'<div class="legend">{"".join(items)}</div>'


def _chart(parts: Sequence[str], title: str, height: int, legend: str, width: int) -> Markup:
    return Markup(legend + svg(parts, title, width, height))


def svg(parts: Sequence[str], title: str, width: int, height: int) -> Markup:
    """A drawing of so many units that is as wide as there is room; `title` says what it shows."""
    label = html.escape(title, quote=True)
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}">{"".join(parts)}</svg>'
    )
