# SPDX-License-Identifier: BSD-3-Clause
"""Many series over one x axis, each with its name at its end: sensitivity curves, Pareto plots."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from gossamer.pages.page import Markup
from gossamer.pages.plot import scale, svg, text_at, ticks, upright

__all__ = ["Curve", "curve_chart"]

_WIDTH, _HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 200, 20, 48
_LINE = 16
"""Units between two labels, so that neither covers the other."""


@dataclass(frozen=True)
class Curve:
    """One series.

    Attributes:
        label: written at its last point; "" for none.
        x: of each point.
        y: of each point, as long as x.
        texts: what a reader sees who points at a point, as long as x; () for none.
        series: 0 to 5, the colour; 0 is the quiet one.
        joined: whether a line runs through the points.
        diamonds: whether points are diamonds instead of dots.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    texts: Sequence[str] = ()
    series: int = 0
    joined: bool = True
    diamonds: bool = False


def curve_chart(
    curves: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    level: tuple[float, str] | None = None,
    front: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Draws curves; labels stand at the right, moved apart where they would touch.

    Args:
        curves: at least one point in all. Quiet ones are drawn first.
        title: for those who do not see the chart.
        x_label: with its unit.
        y_label: with its unit.
        level: a horizontal dashed line and what it is.
        front: the corners of a Pareto front from left to right, drawn as a broad band of steps.

    Returns:
        An `<svg>`.
    """
    xs = [x for curve in curves for x in curve.x]
    ys = [y for curve in curves for y in curve.y] + ([level[0]] if level else [])
    x_at = scale(*_padded(xs), _LEFT, _WIDTH - _RIGHT)
    y_range = _padded(ys)
    y_at = scale(*y_range, _HEIGHT - _BOTTOM, _TOP)
    parts = []
    for value in ticks(*y_range):
        parts.append(f'<path class="grid" d="M{_LEFT} {y_at(value):.1f}H{_WIDTH - _RIGHT}"/>')
        parts.append(text_at(_LEFT - 8, y_at(value) + 4, f"{value:g}", "end"))
    for value in ticks(*_padded(xs), 8):
        parts.append(text_at(x_at(value), _HEIGHT - _BOTTOM + 19, f"{value:g}", "middle"))
    parts.append(text_at((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, x_label, "middle"))
    parts.append(upright(14, (_TOP + _HEIGHT - _BOTTOM) / 2, y_label))
    if front:
        corners = [(x_at(x), y_at(y)) for x, y in front]
        path = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}"
        path += "".join(f"V{y:.1f}H{x:.1f}" for x, y in corners[1:])
        parts.append(f'<path class="front" d="{path}"/>')
    wanted: list[tuple[float, float, str, int]] = []
    if level:
        y = y_at(level[0])
        parts.append(f'<path class="mark" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>')
        wanted.append((_WIDTH - _RIGHT - 6, y, level[1], 0))
    for curve in sorted(curves, key=lambda curve: curve.series > 0):
        points = [(x_at(x), y_at(y)) for x, y in zip(curve.x, curve.y, strict=True)]
        parts += _drawn(curve, points)
        if curve.label and points:
            wanted.append((*points[-1], curve.label, curve.series))
    parts += _labels(wanted)
    return svg(parts, title, _WIDTH, _HEIGHT)


def _drawn(curve: Curve, points: Sequence[tuple[float, float]]) -> list[str]:
    kind = f"s{curve.series}" if curve.series else "s0 quiet"
    parts = []
    if curve.joined and len(points) > 1:
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path class="line {kind}" d="M{path}"/>')
    for index, (x, y) in enumerate(points):
        words = html.escape(curve.texts[index]) if curve.texts else ""
        hint = f"<title>{words}</title>" if words else ""
        if curve.diamonds:
            path = f"M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"
            parts.append(f'<path class="dot {kind}" d="{path}">{hint}</path>')
        else:
            radius = 4 if curve.series else 2.5
            circle = f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">'
            parts.append(f"{circle}{hint}</circle>")
    return parts


def _labels(wanted: Sequence[tuple[float, float, str, int]]) -> list[str]:
    """Names (x, y, text, colour) at the right edge, each with a thin line to its point."""
    ordered = sorted(wanted, key=lambda one: one[1])
    places: list[float] = []
    for _, y, _, _ in ordered:
        places.append(max(y, places[-1] + _LINE) if places else y)
    lowest = _HEIGHT - _BOTTOM + 4.0
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], lowest)
        lowest = places[index] - _LINE
    parts = []
    edge = _WIDTH - _RIGHT
    for place, (x, y, text, series) in zip(places, ordered, strict=True):
        path = f"M{x + 6:.1f} {y:.1f}L{edge + 8} {place:.1f}H{edge + 16}"
        parts.append(f'<path class="lead s{series}" d="{path}"/>')
        parts.append(text_at(edge + 20, place + 4, text, "start", f"name s{series}"))
    return parts


def _padded(values: Sequence[float]) -> tuple[float, float]:
    """The range of values with a twentieth of it on either side."""
    low, high = min(values), max(values)
    margin = (high - low) / 20 or max(abs(high), 1.0) / 20
    return low - margin, high + margin
