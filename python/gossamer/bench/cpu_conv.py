# SPDX-License-Identifier: BSD-3-Clause
"""Suite `cpu-conv`: the distinct convolutions of ResNet-50 at 224×224 pixels, float32, on the CPU.

The dense peer is torch's convolution in the quicker of the two memory formats; the packed layer is
measured in each of them, on the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.record import Record
from gossamer.bench.roofline import Roofline
from gossamer.bench.suite import Options, now
from gossamer.bench.timing import contest

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
PATTERNS = tuple(f"unstructured:{s}" for s in (0.5, 0.7, 0.8, 0.9, 0.95))
IMAGES = (1, 16)

QUICK_LAYERS = ("layer1.spatial", "layer2.expand", "layer3.spatial", "layer4.reduce")
QUICK_PATTERNS = ("unstructured:0.7", "unstructured:0.9")
QUICK_IMAGES = (1,)

_UNIT = 2.0**-24
"""Unit roundoff of float32."""


@dataclass(frozen=True)
class Case:
    """One convolution with one pattern.

    Attributes:
        name: of the layer in ResNet-50.
        filters: its sizes.
        pattern: of the weight as the matrix [out, taps·channels].
        images: counts that are timed.
    """

    name: str
    filters: Filters
    pattern: str
    images: tuple[int, ...]

    def __str__(self) -> str:
        f = self.filters
        size = f"{f.inputs}->{f.out} {f.kernel}x{f.kernel}/{f.stride} {f.side}px"
        return f"resnet50.{self.name} {size} {self.pattern}"


def cases(quick: bool) -> list[Case]:
    """All cases, or the few of a run of about a minute."""
    layers = QUICK_LAYERS if quick else tuple(LAYERS)
    patterns = QUICK_PATTERNS if quick else PATTERNS
    images = QUICK_IMAGES if quick else IMAGES
    return [
        Case(name, LAYERS[name], pattern, images)
        for name, pattern in itertools.product(layers, patterns)
    ]


def run(options: Options, chosen: list[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command.
    """
    for case in cases(options.quick) if chosen is None else chosen:
        if not options.wants(str(case)):
            continue
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        torch.manual_seed(0)
        subjects = {last: _subject(case, last) for last in (False, True)}
        for images in case.images:
            yield from _measure(case, subjects, images, options)


@dataclass(frozen=True)
class _Subject:
    """A layer in one memory format, dense and as `sparsify_` left it."""

    dense: Tensor
    module: nn.Conv2d
    report: gs.LayerReport

    def kernel(self, pixels: int) -> str:
        if not self.report.packed:
            return "dense"
        for bucket in self.report.plan:
            last = bucket.tokens.split("–")[-1]
            if not last.isdigit() or pixels <= int(last):
                return bucket.kernel
        return self.report.kernel


def _subject(case: Case, last: bool) -> _Subject:
    f = case.filters
    module = nn.Conv2d(f.inputs, f.out, f.kernel, f.stride, f.padding, bias=False)
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(f.out, f.kernel**2 * f.inputs, generator=generator)
    matrix *= torch.ops.gossamer.magnitude_mask(matrix, case.pattern, "tensor")
    dense = matrix.reshape(f.out, f.kernel, f.kernel, f.inputs).permute(0, 3, 1, 2)
    memory = torch.channels_last if last else torch.contiguous_format
    dense = dense.contiguous(memory_format=memory)
    module.weight = nn.Parameter(dense.clone(memory_format=memory))
    gs.sparsify_(module, case.pattern)
    return _Subject(dense, module, gs.explain(module)[""])


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


def _measure(
    case: Case, subjects: dict[bool, _Subject], images: int, options: Options
) -> Iterator[Record]:
    f = case.filters
    planar = torch.randn(images, f.inputs, f.side, f.side)
    inputs = {False: planar, True: planar.contiguous(memory_format=torch.channels_last)}
    calls: dict[str, Callable[[], Tensor]] = {}
    for last, subject in subjects.items():
        x = inputs[last]
        check("gossamer", subject.module(x), x, subject.dense, f.stride, f.padding)
        calls[_name("torch_dense", last)] = _dense(subject.dense, x, f)
        calls[_name("gossamer", last)] = _call(subject.module, x)
    times = contest(calls, options.rounds).median_ms
    mine = {last: times.pop(_name("gossamer", last)) for last in subjects}
    dense_ms = min(times.values())
    pixels = images * f.out_side**2
    record = Record(
        suite="cpu-conv",
        kernel="",
        machine=gs.machine().name,
        device="cpu",
        threads=torch.get_num_threads(),
        dtype="float32",
        pattern=case.pattern,
        sparsity=0.0,
        tokens=pixels,
        out=f.out,
        inputs=f.kernel**2 * f.inputs,
        ms=0.0,
        dense_ms=dense_ms,
        dense_impl="torch.nn.functional.conv2d, the quicker of planar and channels-last",
        speedup=0.0,
        peers=times,
        bytes=0,
        bound_speedup=0.0,
        host_us=options.host_us,
        version=gs.__version__,
        date=now(),
    )
    for last, subject in subjects.items():
        density = int(torch.count_nonzero(subject.dense)) / subject.dense.numel()
        held = subject.report.packed_bytes or subject.report.dense_bytes
        yield replace(
            record,
            kernel=subject.kernel(pixels),
            sparsity=1.0 - density,
            ms=mine[last],
            speedup=dense_ms / mine[last],
            bytes=held,
            bound_speedup=_bound_speedup(options.roofline, f, images, density, held),
            layer=_name(str(case).rpartition(" ")[0], last),
        )


def _bound_speedup(roofline: Roofline, f: Filters, images: int, density: float, held: int) -> float:
    """The ratio of the least times, dense over sparse, as for linear layers; X is read once."""
    flops = 2.0 * images * f.out_side**2 * f.out * f.kernel**2 * f.inputs
    moved = 4.0 * images * (f.inputs * f.side**2 + f.out * f.out_side**2)
    dense = roofline.seconds(flops, 4.0 * f.out * f.kernel**2 * f.inputs + moved)
    return dense / roofline.seconds(flops * density, held + moved)


def _name(text: str, last: bool) -> str:
    return f"{text}_channels_last" if last else text


def _call(module: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
    return lambda: module(x)


def _dense(weight: Tensor, x: Tensor, f: Filters) -> Callable[[], Tensor]:
    return lambda: F.conv2d(x, weight, None, f.stride, f.padding)
