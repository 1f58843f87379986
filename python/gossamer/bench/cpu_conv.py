# SPDX-License-Identifier: BSD-3-Clause
"""Suite `cpu-conv`: the distinct convolutions of ResNet-50 at 224×224 pixels, float32, on the CPU.

The dense peers are torch's convolution in both memory formats and the engines that are installed;
the quickest counts. The packed layer takes and gives the format that its line names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer._roofline import Roofline
from gossamer.bench.engines import engines
from gossamer.bench.race import Entry, Track, kernel_at, race
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, measured

__all__ = ["LAYERS", "Case", "Filters", "cases", "check", "run"]


@dataclass(frozen=True)
class Filters:
    """A convolution, padded so that stride alone makes its maps smaller.

    Attributes:
        inputs: channels.
        out: channels.
        kernel: side.
        stride: of both sides.
        side: of the input's maps.
    """

    inputs: int
    out: int
    kernel: int
    stride: int
    side: int

    @property
    def padding(self) -> int:
        """Of every side."""
        return self.kernel // 2

    @property
    def out_side(self) -> int:
        """Of the result's maps."""
        return (self.side + 2 * self.padding - self.kernel) // self.stride + 1


LAYERS: dict[str, Filters] = {
    "stem": Filters(3, 64, 7, 2, 224),
    "layer1.reduce_first": Filters(64, 64, 1, 1, 56),
    "layer1.reduce": Filters(256, 64, 1, 1, 56),
    "layer1.spatial": Filters(64, 64, 3, 1, 56),
    "layer1.expand": Filters(64, 256, 1, 1, 56),
    "layer2.reduce_first": Filters(256, 128, 1, 1, 56),
    "layer2.spatial_first": Filters(128, 128, 3, 2, 56),
    "layer2.shortcut": Filters(256, 512, 1, 2, 56),
    "layer2.reduce": Filters(512, 128, 1, 1, 28),
    "layer2.spatial": Filters(128, 128, 3, 1, 28),
    "layer2.expand": Filters(128, 512, 1, 1, 28),
    "layer3.reduce_first": Filters(512, 256, 1, 1, 28),
    "layer3.spatial_first": Filters(256, 256, 3, 2, 28),
    "layer3.shortcut": Filters(512, 1024, 1, 2, 28),
    "layer3.reduce": Filters(1024, 256, 1, 1, 14),
    "layer3.spatial": Filters(256, 256, 3, 1, 14),
    "layer3.expand": Filters(256, 1024, 1, 1, 14),
    "layer4.reduce_first": Filters(1024, 512, 1, 1, 14),
    "layer4.spatial_first": Filters(512, 512, 3, 2, 14),
    "layer4.shortcut": Filters(1024, 2048, 1, 2, 14),
    "layer4.reduce": Filters(2048, 512, 1, 1, 7),
    "layer4.spatial": Filters(512, 512, 3, 1, 7),
    "layer4.expand": Filters(512, 2048, 1, 1, 7),
}
"""Each once; the strides are on the 3×3 convolutions, as torchvision has them."""
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
IMAGES = (1, 16)

NORMAL_LAYERS = (
    "layer2.spatial",
    "layer3.spatial",
    "layer1.spatial",
    "layer4.spatial",
    "layer2.expand",
    "layer3.reduce",
)
QUICK_LAYERS = ("layer2.spatial", "layer3.reduce")
QUICK_SPARSITIES = (0.7, 0.9)

_UNIT = 2.0**-24
"""Unit roundoff of float32."""


@dataclass(frozen=True)
class Case:
    """One convolution at several sparsities.

    Attributes:
        name: of the layer in ResNet-50.
        filters: its sizes.
        sparsities: of the weight as the matrix [out, taps·channels].
        images: how many.
        last: whether inputs and results are channels-last.
    """

    name: str
    filters: Filters
    sparsities: tuple[float, ...]
    images: int
    last: bool = False

    def __str__(self) -> str:
        f = self.filters
        size = f"{f.inputs}->{f.out} {f.kernel}x{f.kernel}/{f.stride} {f.side}px"
        order = " channels_last" if self.last else ""
        return f"resnet50.{self.name} {size} x{self.images}{order}"


def cases(extent: str) -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS`."""
    if extent == "quick":
        return [Case(name, LAYERS[name], QUICK_SPARSITIES, 1) for name in QUICK_LAYERS]
    if extent == "normal":
        return [
            Case(name, LAYERS[name], SPARSITIES, images)
            for name in NORMAL_LAYERS
            for images in reversed(IMAGES)
        ]
    return [
        Case(name, filters, SPARSITIES, images, last)
        for last in (False, True)
        for name, filters in LAYERS.items()
        for images in IMAGES
    ]


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command.
    """
    kept: dict[tuple[str, bool], dict[float, _Subject]] = {}
    for case in measured(options, cases, chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        key = (case.name, case.last)
        if key not in kept:
            kept = {key: {s: _subject(case, s) for s in case.sparsities}}
        yield from _measure(case, kept[key], options)


@dataclass(frozen=True)
class _Subject:
    """A layer, dense and as `sparsify_` left it."""

    pattern: str
    dense: Tensor
    module: nn.Conv2d
    report: gs.LayerReport


def _subject(case: Case, sparsity: float) -> _Subject:
    f = case.filters
    pattern = f"unstructured:{sparsity:g}"
    module = nn.Conv2d(f.inputs, f.out, f.kernel, f.stride, f.padding, bias=False)
    matrix = torch.randn(f.out, f.kernel**2 * f.inputs, generator=torch.Generator().manual_seed(1))
    matrix *= torch.ops.gossamer.magnitude_mask(matrix, pattern, "tensor")
    dense = matrix.reshape(f.out, f.kernel, f.kernel, f.inputs).permute(0, 3, 1, 2)
    memory = torch.channels_last if case.last else torch.contiguous_format
    dense = dense.contiguous(memory_format=memory)
    with torch.no_grad():
        module.weight = nn.Parameter(dense.clone(memory_format=memory))
    gs.sparsify_(module, pattern)
    return _Subject(pattern, dense, module, gs.explain(module)[""])


def check(name: str, y: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> None:
    """Compares the first and the last image of a result with float64.

    A float32 inner product of K terms is off by at most K*u/(1 - K*u) * |x|.|w|, in whatever order
    it is summed (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
    torch may transform 3×3 tiles (Winograd), whose error has another bound: only the packed layer
    is held to it.

    Raises:
        RuntimeError: the result is wrong.
    """
    some = sorted({0, len(x) - 1})
    part, wide = x[some].double(), weight.double()
    terms = weight[0].numel()
    gamma = terms * _UNIT / (1 - terms * _UNIT)
    error = (y[some].double() - F.conv2d(part, wide, None, stride, padding)).abs()
    bound = gamma * F.conv2d(part.abs(), wide.abs(), None, stride, padding)
    wrong = int((~(error <= bound)).sum())
    if wrong:
        raise RuntimeError(
            f"{name} on {list(x.shape)} * {list(weight.shape)}: {wrong} of {error.numel()} results "
            f"are off by more than float32 allows (largest error {error.max():.3g})"
        )


def _measure(case: Case, subjects: dict[float, _Subject], options: Options) -> Iterator[Record]:
    f = case.filters
    torch.manual_seed(0)
    planar = torch.randn(case.images, f.inputs, f.side, f.side)
    x = planar.contiguous(memory_format=torch.channels_last) if case.last else planar
    pixels = case.images * f.out_side**2
    entries = []
    for sparsity in case.sparsities:
        subject = subjects[sparsity]
        check("gossamer", subject.module(x), x, subject.dense, f.stride, f.padding)
        density = int(torch.count_nonzero(subject.dense)) / subject.dense.numel()
        held = subject.report.packed_bytes or subject.report.dense_bytes
        entries.append(
            Entry(
                pattern=subject.pattern,
                sparsity=1.0 - density,
                call=_call(subject.module, x),
                kernel=kernel_at(subject.report, pixels),
                held_bytes=held,
                bound_speedup=_bound_speedup(options.roofline, f, case.images, density, held),
            )
        )
    track = Track("cpu-conv", str(case), pixels, f.out, f.kernel**2 * f.inputs)
    weight = subjects[case.sparsities[0]].dense
    yield from race(options, track, _dense_peers(weight, planar, f, options), entries)


def _dense_peers(
    weight: Tensor, planar: Tensor, f: Filters, options: Options
) -> dict[str, Callable[[], object]]:
    module = nn.Conv2d(f.inputs, f.out, f.kernel, f.stride, f.padding, bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    # An engine's graph is planar outside; inside it chooses its own order.
    return {
        "torch_dense": _dense(weight.contiguous(), planar, f),
        "torch_dense_channels_last": _dense(
            weight.contiguous(memory_format=torch.channels_last),
            planar.contiguous(memory_format=torch.channels_last),
            f,
        ),
        **engines(module.eval(), planar, options.note),
    }


def _bound_speedup(roofline: Roofline, f: Filters, images: int, density: float, held: int) -> float:
    """The ratio of the least times, dense over sparse, as for linear layers; X is read once."""
    flops = 2.0 * images * f.out_side**2 * f.out * f.kernel**2 * f.inputs
    moved = 4.0 * images * (f.inputs * f.side**2 + f.out * f.out_side**2)
    dense = roofline.seconds(flops, 4.0 * f.out * f.kernel**2 * f.inputs + moved)
    return dense / roofline.seconds(flops * density, held + moved)


def _call(module: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    return lambda: module(x)


def _dense(weight: Tensor, x: Tensor, f: Filters) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, None, f.stride, f.padding)
