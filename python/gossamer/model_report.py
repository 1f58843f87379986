# SPDX-License-Identifier: BSD-3-Clause
"""One page about a pruned model: what was kept, what it cost, how fast it runs."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from torch import Tensor, nn

from gossamer._weight_description import shortened
from gossamer.explanation import LayerReport, explain
from gossamer.host import machine
from gossamer.outcome import Outcome
from gossamer.pages import (
    Column,
    Curve,
    Ink,
    Markup,
    Tile,
    curve_chart,
    density_picture,
    figure,
    mask_crop,
    page,
    row_chart,
    scrolling,
    section,
    table,
    tiles,
)
from gossamer.prune.calibration_report import CalibrationReport
from gossamer.prune.layer import LayerForm
from gossamer.prune.sensitivity import Sensitivity
from gossamer.prune.targets import find_targets
from gossamer.weight import SparseWeight

__all__ = ["Outcome", "report"]

_COLOURS = (1, 2, 3, 4, 5)
_LABELLED = 5
"""Curves that are named; the others are drawn quietly, with their name under the pointer."""
_SAME_ZEROS = 0.005


@dataclass(frozen=True)
class _LayerMask:
    """One weight that may be sparse."""

    fqn: str
    kept: Tensor

    @property
    def density(self) -> float:
        return float(self.kept.float().mean()) if self.kept.numel() else 1.0


def report(
    model: nn.Module,
    path: str | Path | None = None,
    *,
    title: str | None = None,
    outcome: Outcome | None = None,
    outcomes: Sequence[Outcome] = (),
    calibration: CalibrationReport | None = None,
    sensitivity: Sensitivity | None = None,
    metric: str = "accuracy, %",
    pictures: int = 24,
) -> str:
    """One self-contained HTML page about a pruned model; it refers to nothing outside of itself.

    What is not given is left out: each of `outcomes`, `calibration` and `sensitivity` adds its
    part. The plan is there where the model is packed (`sparsify_`).

    Args:
        model: with live masks, plain with zeros, or packed; read only.
        path: where to write it; None writes nothing.
        title: the model's class and its sparsity where None.
        outcome: this model's own, for the figures at the top.
        outcomes: all that are compared; one with `zeros` 0 is the dense reference.
        calibration: what `OneShot.calibrate` returned.
        sensitivity: what `gossamer.prune.measure_sensitivity` returned.
        metric: the name and unit of all accuracies, higher is better.
        pictures: at most so many masks are shown.

    Returns:
        The page.

    Raises:
        ValueError: the model has no linear or convolution weight to show.
    """
    masks = _masks(model)
    if not masks:
        raise ValueError(
            "report: the model has no linear or 2-D convolution layer with a weight of its own"
        )
    kept = sum(int(mask.kept.sum()) for mask in masks)
    elements = sum(mask.kept.numel() for mask in masks)
    zeros = 1.0 - kept / max(elements, 1)
    everything = list(outcomes)
    if outcome is not None and outcome not in everything:
        everything.append(outcome)
    dense = next((one for one in everything if one.zeros == 0), None)
    packed = [layer for layer in explain(model) if layer.packed]
    body = [tiles(_tiles(zeros, elements, outcome, dense, calibration, packed))]
    if len(everything) > 1:
        body.append(_outcome_section(everything, dense, metric))
    body.append(_layer_section(masks, calibration))
    if sensitivity is not None:
        body.append(_sensitivity_section(sensitivity, metric, dense))
    if packed:
        body.append(_plan_section(packed, sensitivity))
    body.append(_mask_section(masks, pictures))
    name, processor, threads = machine().name, platform.processor(), torch.get_num_threads()
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    text = page(
        title or f"{type(model).__name__}, {zeros:.0%} zeros",
        f"{len(masks)} weights with {elements:,} elements, {kept:,} of them kept.",
        body,
        f"{processor or platform.machine()} ({name}), {threads} threads · {when}",
    )
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def _masks(model: nn.Module) -> list[_LayerMask]:
    """What is kept of each weight, as a matrix [out, in], channels last for convolutions."""
    found, seen = [], set()
    for target in find_targets(model).values():
        if target.weight is None or id(target.weight) in seen or not target.is_layer_weight:
            continue
        seen.add(id(target.weight))
        value = getattr(target.module, target.tensor_name).detach()
        if isinstance(value, SparseWeight):
            value = value.to_dense()
        form = LayerForm.of(target.module, value)
        found.append(_LayerMask(target.fqn, form.matrices(value.cpu()).flatten(0, 1) != 0))
    return found


def _tiles(
    zeros: float,
    elements: int,
    outcome: Outcome | None,
    dense: Outcome | None,
    calibration: CalibrationReport | None,
    packed: Sequence[LayerReport],
) -> list[Tile]:
    found = [Tile(f"{zeros:.1%}", f"zeros in {_count(elements)} weights", 1)]
    if outcome is not None:
        beside = "" if dense is None else f"; dense {dense.accuracy:.2f}"
        found.append(Tile(f"{outcome.accuracy:.2f}", f"{outcome.method}{beside}", 1))
    if outcome is not None and dense is not None and outcome.ms and dense.ms:
        words = f"times as fast as dense, measured: {_time(outcome.ms)}, not {_time(dense.ms)}"
        found.append(Tile(f"{dense.ms / outcome.ms:.2f}x", words, 2))
    if packed:
        before = sum(layer.dense_bytes for layer in packed)
        after = sum(layer.packed_bytes or 0 for layer in packed)
        words = f"of the memory of {len(packed)} packed weights"
        found.append(Tile(f"{after / before:.2f}", words, 2))
    if calibration is not None and calibration.layers:
        found.append(Tile(f"{calibration.mean_error:.4f}", "mean error of a layer's output", 3))
    return found


def _outcome_section(outcomes: Sequence[Outcome], dense: Outcome | None, metric: str) -> Markup:
    pruned = [one for one in outcomes if one.zeros > 0]
    methods = list(dict.fromkeys(one.method for one in pruned))
    best = sorted(methods, key=lambda m: -max(o.accuracy for o in pruned if o.method == m))
    colours = {method: _COLOURS[i] if i < len(_COLOURS) else 0 for i, method in enumerate(best)}
    curves = []
    for method in methods:
        own = [one for one in pruned if one.method == method]
        free = [one for one in own if one.pattern.startswith("unstructured")]
        free.sort(key=lambda one: one.zeros)
        fixed = [one for one in own if one not in free]
        label = method
        for points, joined in ((free, True), (fixed, False)):
            if points:
                curves.append(_curve_of(points, label, colours[method], joined))
                label = ""
    front = [(100 * one.zeros, one.accuracy) for one in _front(pruned)]
    chart = curve_chart(
        curves,
        title=f"{metric} over zeros",
        x_label="zeros, %",
        y_label=metric,
        level=None if dense is None else (dense.accuracy, f"dense {dense.accuracy:.2f}"),
        front=front if len(front) > 1 else (),
    )
    return section(
        "methods",
        "Methods",
        "Each point is a pruned model: dots are unstructured, diamonds have a pattern such as 2:4. "
        "The broad band joins the models that no other beats in both zeros and accuracy.",
        scrolling(chart),
        _outcome_table(pruned, dense),
    )


def _curve_of(points: Sequence[Outcome], label: str, colour: int, joined: bool) -> Curve:
    return Curve(
        label,
        [100 * one.zeros for one in points],
        [one.accuracy for one in points],
        [f"{one.method}, {one.pattern}: {one.accuracy:.2f}" for one in points],
        colour,
        joined,
        diamonds=not joined,
    )


def _front(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that no other beats in both, from few zeros to many.

    Patterns are met up to rounding: a few zeros more make no model better.
    """
    found: list[Outcome] = []
    for one in sorted(outcomes, key=lambda one: (-one.zeros, -one.accuracy)):
        if found and one.accuracy <= found[-1].accuracy:
            continue
        if found and found[-1].zeros - one.zeros < _SAME_ZEROS:
            found.pop()
        found.append(one)
    return found[::-1]


def _outcome_table(pruned: Sequence[Outcome], dense: Outcome | None) -> Markup:
    """A row for each method and a column for each pattern."""
    patterns = list(dict.fromkeys(one.pattern for one in pruned))
    found = {(one.method, one.pattern): one for one in pruned}
    rows = [
        [method, *(_outcome_cell(found.get((method, pattern)), dense) for pattern in patterns)]
        for method in dict.fromkeys(one.method for one in pruned)
    ]
    return table(["method", *patterns], rows)


def _outcome_cell(one: Outcome | None, dense: Outcome | None) -> Markup:
    if one is None:
        return Markup("")
    text = f"{one.accuracy:.2f}"
    if dense is not None:
        text += f" ({one.accuracy - dense.accuracy:+.2f})"
    if one.ms:
        ratio = f", {dense.ms / one.ms:.2f}x" if dense is not None and dense.ms else ""
        text += f"<small>{_time(one.ms)}{ratio}</small>"
    return Markup(text)


def _layer_section(masks: Sequence[_LayerMask], calibration: CalibrationReport | None) -> Markup:
    names = [mask.fqn for mask in masks]
    densities = [mask.density for mask in masks]
    columns = [Column("kept", densities, [f"{d:.1%}" for d in densities], 1, 1.0)]
    sizes = [mask.kept.numel() for mask in masks]
    columns.append(Column("weights", sizes, [_count(size) for size in sizes], 0))
    lead = "The share of each weight that is kept, and how many elements it has."
    if calibration is not None:
        errors = {layer.fqn: layer.error for layer in calibration.layers}
        values = [errors.get(name) for name in names]
        texts = [
            f"{v:.4f}" if v is not None else _why_dense(n, calibration)
            for n, v in zip(names, values, strict=True)
        ]
        columns.append(Column("error", values, texts, 3))
        lead += " The error is that of the layer's output on the calibration data, "
        lead += "‖(W − Ŵ)·X‖² / ‖W·X‖²."
        if calibration.caveat:
            lead += f" {calibration.caveat}."
    chart = row_chart(names, columns, title="density and error of each layer")
    return section("layers", "Layers", lead, chart)


def _why_dense(name: str, calibration: CalibrationReport) -> str:
    return f"dense: {calibration.left_dense.get(name, 'not calibrated')}"


def _sensitivity_section(found: Sensitivity, metric: str, dense: Outcome | None) -> Markup:
    named = found.most_sensitive(_LABELLED)
    curves = []
    for name, values in found.layers.items():
        zeros = [0.0, *(100 * share for share in found.zeros[name])]
        values = [found.dense, *values]
        texts = [
            f"{name}, {pattern}: {value:.2f}"
            for pattern, value in zip(["dense", *found.patterns], values, strict=True)
        ]
        colour = _COLOURS[named.index(name)] if name in named else 0
        label = name if name in named else ""
        order = sorted(range(len(zeros)), key=lambda i: zeros[i])
        curves.append(
            Curve(
                label,
                [zeros[i] for i in order],
                [values[i] for i in order],
                [texts[i] for i in order],
                colour,
            )
        )
    chart = curve_chart(
        curves,
        title=f"{metric} over the zeros of one layer",
        x_label="zeros of the layer, %",
        y_label=metric,
        level=(found.dense, f"dense {found.dense:.2f}"),
    )
    lead = "Each curve is the whole model with one layer pruned and the rest dense."
    if len(named) < len(found.layers):
        lead += f" The {len(named)} layers that cost most are named; point at the others."
    if dense is not None and dense.accuracy != found.dense:
        lead += f" Its judge is another: dense has {found.dense:.2f} by it."
    return section("sensitivity", "Sensitivity", lead, scrolling(chart))


def _plan_section(packed: Sequence[LayerReport], found: Sensitivity | None) -> Markup:
    headings = ["layer", "pattern", "kept", "size", "kernel", "speed-up"]
    rows = []
    for layer in packed:
        size = f"{_bytes(layer.dense_bytes)} → {_bytes(layer.packed_bytes or 0)}"
        kept = "" if layer.density is None else f"{layer.density:.1%}"
        speed = "" if layer.speedup is None else f"{layer.speedup:.2f}x"
        row = [layer.name, shortened(layer.pattern or ""), kept, size, layer.kernel, speed]
        if found is not None:
            row.append(_alone(layer.name, found))
        rows.append(row)
    if found is not None:
        headings.append(f"alone at {found.patterns[-1]}")
    lead = (
        "What runs on this machine. The speed-up is the geometric mean over the token counts that "
        "were planned, against torch's dense layer."
    )
    if found is not None:
        lead += " The last column is the model's accuracy with that layer alone pruned so far."
    return section("plan", "Plan", lead, table(headings, rows, text_columns=(0, 1, 4)))


def _alone(name: str, found: Sensitivity) -> str:
    values = found.layers.get(f"{name}.weight", found.layers.get(name))
    return "" if values is None else f"{values[-1]:.2f}"


def _mask_section(masks: Sequence[_LayerMask], pictures: int) -> Markup:
    sparse = [mask for mask in masks if not bool(mask.kept.all())]
    shown = sparse[:pictures]
    lead = "Rows are outputs, columns inputs (of a convolution tap by tap, channels last)."
    if len(shown) < len(sparse):
        lead += f" The first {len(shown)} of {len(sparse)} sparse weights are shown."
    if not shown:
        return section("masks", "Masks", "Nothing is pruned: every weight is kept.")
    largest = max(shown, key=lambda mask: mask.kept.numel())
    near = figure(
        mask_crop(largest.kept, Ink.AMBER, f"upper left corner of {largest.fqn}", 32, 96),
        f"{largest.fqn}, upper left corner: one square is one weight",
    )
    far = "".join(
        figure(
            density_picture(mask.kept, Ink.TEAL, f"density of {mask.fqn}"),
            f"{mask.fqn} · {' x '.join(map(str, mask.kept.shape))} · {mask.density:.1%} kept",
        )
        for mask in shown
    )
    return section("masks", "Masks", lead, near, Markup(f'<div class="gallery masks">{far}</div>'))


def _bytes(count: float) -> str:
    return _scaled(count, ("B", "kB", "MB", "GB"))


def _count(count: float) -> str:
    return _scaled(count, ("", "k", "M", "G"))


def _time(ms: float) -> str:
    """Milliseconds in three digits, without an exponent."""
    return f"{ms:.3g} ms" if ms < 999.5 else f"{ms / 1000:.3g} s"


def _scaled(count: float, units: Sequence[str]) -> str:
    power = 0
    while count >= 999.5 and power + 1 < len(units):
        count, power = count / 1000, power + 1
    return f"{count:.3g} {units[power]}".rstrip()
