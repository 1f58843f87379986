# SPDX-License-Identifier: BSD-3-Clause
"""What became of each weight of a model, and why."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import _ops, _plan_cuda
from gossamer._bound import Work, bound_of, bound_text
from gossamer._layers import Layer, find_layers
from gossamer._weight_description import shortened
from gossamer._weight_facts import count_nonzeros
from gossamer._weight_pickle import current_plan
from gossamer.weight import SparseWeight

__all__ = ["BucketPlan", "Explanation", "LayerReport", "explain"]

WIDTH = 100
"""Columns that the table fits."""


@dataclass(frozen=True)
class BucketPlan:
    """The kernel of one bucket of token counts.

    Attributes:
        tokens: the bucket, e.g. `9–32`; of a convolution, pixels of its result, of all images.
        timed_at: the token count that was timed or modelled.
        kernel: a row of the kernel table, or `dense`. On a GPU the row of the bucket's last count;
            the reason names the one that runs at its first, where that is another.
        ms: of the kernel at that count, milliseconds; 0 where unknown.
        dense_ms: of torch's dense layer; 0 where unknown.
        reason: one sentence.
        bound_ms: the least that a call of this kernel can take, milliseconds: the longer of the
            bytes of weight, x and y at the rate at which torch reads as many bytes, and of the
            arithmetic at the rate of torch's dense product (a roofline). Both rates are measured
            here and now, at least those of the cost model. 0 where unknown, as on a GPU.
        bound_by: which of the two it is, `bytes` or `arithmetic`; empty where unknown.
    """

    tokens: str
    timed_at: int
    kernel: str
    ms: float
    dense_ms: float
    reason: str
    bound_ms: float = 0.0
    bound_by: str = ""

    @property
    def speedup(self) -> float | None:
        """dense_ms / ms; None where either is unknown."""
        return self.dense_ms / self.ms if self.ms > 0 and self.dense_ms > 0 else None


@dataclass(frozen=True)
class LayerReport:
    """One weight of a model.

    Attributes:
        name: the module's name, or the parameter's where it is not called `weight`.
        type: the module's class.
        packed: True where the weight is a `SparseWeight`.
        pattern: the packed weight's, or what was found in a weight that dense beat; None elsewhere.
        density: kept positions over all positions, for a plain weight the non-zeros; None where
            there are no values to look at.
        dense_bytes: of the dense weight.
        packed_bytes: in memory, a kept dense copy included; None where plain.
        layout: of the packed weight; None where plain.
        kernel: the one that most buckets of token counts run.
        plan: the kernel of each bucket, with its times; empty where nothing was planned.
        speedup: geometric mean over the buckets with known times; None without any.
        frozen: it was trainable and is not any more.
        reason: why it is packed, or why plain.
    """

    name: str
    type: str
    packed: bool
    pattern: str | None
    density: float | None
    dense_bytes: int
    packed_bytes: int | None
    layout: str | None
    kernel: str
    plan: tuple[BucketPlan, ...]
    speedup: float | None
    frozen: bool
    reason: str


@dataclass(frozen=True)
class Explanation:
    """The reports of all weights, in the order of the model's modules; str() is a table."""

    layers: tuple[LayerReport, ...]

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, name: str) -> LayerReport:
        """The report of one layer; KeyError names those there are."""
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(
            f"no layer is called '{name}'; there are: "
            f"{', '.join(layer.name for layer in self.layers)}"
        )

    def to_json(self, indent: int | None = None) -> str:
        """A JSON list with one object for each layer, fields as in `LayerReport`."""
        return json.dumps([asdict(layer) for layer in self.layers], indent=indent)

    def __str__(self) -> str:
        """The table as plain text of at most 100 columns."""
        rows = [_HEADINGS, *(_cells(layer) for layer in self.layers)]
        widths = _widths(rows)
        lines = [_line(_HEADINGS, widths)]
        for layer, row in zip(self.layers, rows[1:], strict=True):
            lines.append(_line(row, widths))
            lines += _wrapped(layer.reason)
            lines += _wrapped(_bound_text(layer))
        lines += _wrapped(self._summary(), indent="")
        return "\n".join(lines)

    def _summary(self) -> str:
        packed = [layer for layer in self.layers if layer.packed]
        dense = sum(layer.dense_bytes for layer in packed)
        held = sum(layer.packed_bytes or 0 for layer in packed)
        text = f"{len(packed)} of {len(self.layers)} weights packed"
        if packed:
            text += f", {_size(dense)} -> {_size(held)}"
        if any(layer.frozen for layer in packed):
            text += "; frozen: trainable before, and again after desparsify_"
        return text

    def __rich__(self) -> Any:
        """The same as a table of rich, for terminals."""
        from rich.table import Table

        table = Table(caption=self._summary())
        for heading in (*_HEADINGS, "reason"):
            table.add_column(heading)
        for layer in self.layers:
            reason = "\n".join(filter(None, (layer.reason, _bound_text(layer))))
            table.add_row(*_cells(layer), reason, style="" if layer.packed else "dim")
        return table


_HEADINGS = ("layer", "type", "pattern", "kept", "size", "kernel", "speed-up")
_CUTTABLE = (0, 1, 2, 5)
"""Columns whose cells may lose their middle."""
_GAP = " "


def _cells(layer: LayerReport) -> tuple[str, ...]:
    size = _size(layer.dense_bytes)
    if layer.packed_bytes is not None:
        size = f"{size}->{_size(layer.packed_bytes)}"
    return (
        layer.name or "(model)",
        layer.type,
        shortened(layer.pattern) if layer.pattern else "-",
        "-" if layer.density is None else f"{layer.density:.1%}",
        size,
        layer.kernel,
        "-" if layer.speedup is None or not layer.packed else f"{layer.speedup:.2f}x",
    )


def _widths(rows: list[tuple[str, ...]]) -> list[int]:
    """As wide as the cells need; the widest columns give way until a line fits."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > WIDTH:
        widest = max(_CUTTABLE, key=lambda column: widths[column])
        widths[widest] -= 1
    return widths


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return _GAP.join(
        _cut(cell, width).ljust(width) for cell, width in zip(cells, widths, strict=True)
    ).rstrip()


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[head + len(text) - width + 1 :]}"


def _wrapped(text: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent)


def _bound_text(layer: LayerReport) -> str:
    return bound_text(layer.plan, "pixel" if "Conv" in layer.type else "token")


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.3g}GB"


def explain(model: nn.Module) -> Explanation:
    """Says of every weight of two dimensions or more whether it is packed, how, and why.

    Beside the time of each planned kernel stands the least that its bytes and its arithmetic allow.
    The first call of a process measures for that, some tens of milliseconds.

    Args:
        model: sparsified or not; it is not changed.

    Returns:
        An `Explanation`: iterate over its `LayerReport`s, print it, or take `to_json()`.
    """
    return Explanation(tuple(_with_fusion(layer, _report(layer)) for layer in find_layers(model)))


def _with_fusion(layer: Layer, report: LayerReport) -> LayerReport:
    """Adds what `fuse_` noted."""
    noted = getattr(layer.module, "gossamer_fusion", None)
    return report if noted is None else replace(report, reason=f"{report.reason}; {noted}")


def _report(layer: Layer) -> LayerReport:
    weight = layer.weight
    kept = getattr(layer.module, "gossamer_report", None) if layer.linear else None
    if kept is None:
        kept = {"packed": False, "pattern": None, "trainable": False, "plan": []}
        kept["reason"] = "not sparsified" if layer.linear else layer.obstacle
    if isinstance(weight, SparseWeight):
        return _packed_report(layer, weight, kept)
    if kept["packed"]:  # somebody put a plain weight back
        kept = {
            **kept,
            "pattern": None,
            "plan": [],
            "reason": "its weight was replaced by a plain one",
        }
    plan = () if weight is None else _bounded(_plan(kept), weight, Work.of_plain)
    return LayerReport(
        name=layer.name,
        type=layer.type_name,
        packed=False,
        pattern=kept["pattern"],
        density=_density(weight),
        dense_bytes=0 if weight is None else weight.numel() * weight.element_size(),
        packed_bytes=None,
        layout=None,
        kernel="dense",
        plan=plan,
        speedup=_mean_speedup(plan),
        frozen=False,
        reason=kept["reason"],
    )


def _packed_report(layer: Layer, weight: SparseWeight, kept: dict[str, Any]) -> LayerReport:
    # The weight is the truth; what was noted holds while it still runs the kernels that were timed.
    info = _ops.info(weight.packed)
    plan = _plan(kept)
    reason = kept["reason"]
    change = _change(kept, info)
    if change is not None:
        plan, reason = (), change
    if not kept["packed"]:
        reason = "it was packed without sparsify_"
    if kept["trainable"]:
        reason += "; frozen"
    plan = _bounded(plan, weight, lambda _: Work.of_packed(info))
    kernels = [bucket.kernel for bucket in plan] or [name for name in info["plan"] if name]
    copy_bytes = 0 if weight.dense is None else weight.dense.numel() * weight.dense.element_size()
    return LayerReport(
        name=layer.name,
        type=layer.type_name,
        packed=True,
        pattern=info["pattern"],
        density=weight.density,
        dense_bytes=weight.numel() * weight.dtype.itemsize,
        packed_bytes=weight.packed_bytes + copy_bytes,
        layout=info["layout"],
        kernel=max(kernels, key=kernels.count) if kernels else "chosen per call",
        plan=plan,
        speedup=_mean_speedup(plan),
        frozen=kept["trainable"],
        reason=reason,
    )


def _change(kept: dict[str, Any], info: dict[str, Any]) -> str | None:
    """Why what was noted of a packed weight holds no more; None where it does."""
    was_planned = bool(kept["plan"])
    if kept.get("dtype", info["dtype"]) != info["dtype"]:
        text = f"cast from {kept['dtype']} to {info['dtype']} after it was packed"
        if not was_planned:
            return f"{text}; it is in layout {info['layout']} now and was not compared with dense"
        return f"{text}; {_replanned(info)}"
    kernels = [bucket["kernel"] for bucket in kept["plan"]]
    if was_planned and info["layout"] == "nm24_tiles":
        # The header of a GPU's weight holds no others. A report of other buckets is an older one.
        is_current = len(kernels) == len(_plan_cuda.BUCKETS)
        kernels = _plan_cuda.dense_buckets(kernels) if is_current else info["plan"]
    kernels = current_plan(kernels)  # a module's report is pickled with it
    positions = max(math.prod(info["shape"]), 1)
    other_kernels = was_planned and kernels != info["plan"]
    if was_planned and kept.get("kept", info["kept"]) != info["kept"]:
        consequence = (
            _replanned(info) if other_kernels else "its kernels may not be the fastest; " + _AGAIN
        )
        return (
            f"it holds other values than it was planned for ({kept['kept'] / positions:.2%} kept "
            f"then, {info['kept'] / positions:.2%} now); {consequence}"
        )
    if other_kernels:
        return "its weight was replaced after it was planned"
    if not was_planned and kept.get("layout", info["layout"]) != info["layout"]:
        return f"it was packed in layout {kept['layout']} and is in {info['layout']} now"
    return None


_AGAIN = "gossamer.desparsify_(model) and sparsify_ plan it again"


def _replanned(info: dict[str, Any]) -> str:
    """What the cost model made of a weight that took a planned one's place."""
    if all(kernel == "dense" for kernel in info["plan"]):
        return (
            f"the cost model expects no kernel of {info['dtype']} to be faster than dense, so a "
            f"dense copy runs; {_AGAIN}"
        )
    if any(info["plan"]):
        return f"the cost model chose its kernels anew, nothing was measured; {_AGAIN}"
    return f"it runs unplanned in layout {info['layout']}; {_AGAIN}"


def _plan(kept: dict[str, Any]) -> tuple[BucketPlan, ...]:
    return tuple(BucketPlan(**bucket) for bucket in kept["plan"])


def _bounded(
    plan: tuple[BucketPlan, ...], weight: Tensor, work_of: Callable[[Tensor], Work]
) -> tuple[BucketPlan, ...]:
    """With the bound of each bucket, where the ceilings of this machine are its."""
    if not plan or weight.device.type != "cpu":
        return plan
    work = work_of(weight)
    bounds = [bound_of(work, bucket.kernel, bucket.timed_at) for bucket in plan]
    return tuple(
        replace(bucket, bound_ms=bound.ms, bound_by=bound.by)
        for bucket, bound in zip(plan, bounds, strict=True)
    )


def _mean_speedup(plan: tuple[BucketPlan, ...]) -> float | None:
    known = [bucket.speedup for bucket in plan if bucket.speedup is not None]
    if not known:
        return None
    return math.exp(sum(math.log(value) for value in known) / len(known))


def _density(weight: Tensor | None) -> float | None:
    if weight is None or weight.device.type == "meta" or weight.numel() == 0:
        return None
    if type(weight) not in (nn.Parameter, Tensor) or weight.layout is not torch.strided:
        return None
    try:
        return count_nonzeros(weight) / weight.numel()
    except torch.OutOfMemoryError:  # a report is no reason to fail
        return None
