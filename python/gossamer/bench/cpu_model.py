# SPDX-License-Identifier: BSD-3-Clause
"""Suites `cpu-model` and `cpu-stacks`: forward passes of whole networks, sparse beside dense.

Every linear layer and convolution of a network is pruned by magnitude, layer by layer, except the
first convolution and the classifier, which are small. What is measured is speed: networks are not
trained again. They are packed with `memory="speed"`: without a dense copy, small layers that are
slower at a few tokens would run dense at hundreds.

The stacks are six perceptrons 768 -> 3072 -> 768 with ReLU on 128 rows, and eight convolutions 3×3
of 128 channels on 28×28 pixels with ReLU on 16 images and on one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench import networks
from gossamer.bench.engines import engines
from gossamer.bench.race import Entry, Track, race
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, measured

__all__ = ["Case", "model_cases", "run_models", "run_stacks", "stack_cases"]

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
_QUICK = (0.9,)
_SPARED = ("conv1", "linear")
"""Names of a residual network's first convolution and of its classifier."""


@dataclass(frozen=True)
class Case:
    """One network on one batch.

    Attributes:
        name: of the network and its batch.
        make: gives the dense network; it may need the data folder.
        x: shape of the input.
        sparsities: of every pruned layer.
        vocabulary: inputs are numbers below it; 0 where they are normal values.
        needs_data: `make` reads the data folder.
    """

    name: str
    make: Callable[[Path | None], nn.Module]
    x: tuple[int, ...]
    sparsities: tuple[float, ...] = SPARSITIES
    vocabulary: int = 0
    needs_data: bool = False

    def __str__(self) -> str:
        return self.name


def _resnet(depth: int, folder: Path | None) -> nn.Module:
    assert folder is not None
    return networks.load_resnet(folder, depth)


def _minilm(folder: Path | None) -> nn.Module:
    return networks.load_minilm()


def _encoder(layers: int, folder: Path | None) -> nn.Module:
    return networks.Encoder(layers).eval()


def model_cases(extent: str) -> list[Case]:
    """The cases of suite `cpu-model` in one of `gossamer.bench.suite.EXTENTS`."""
    sparsities = _QUICK if extent == "quick" else SPARSITIES

    def minilm(batch: int, tokens: int) -> Case:
        name = f"minilm-l6 {batch}x{tokens}"
        return Case(name, _minilm, (batch, tokens), sparsities, 30522)

    def resnet(depth: int, batch: int) -> Case:
        name, shape = f"resnet{depth} x{batch}", (batch, 3, 32, 32)
        return Case(name, partial(_resnet, depth), shape, sparsities, needs_data=True)

    def encoder(layers: int, batch: int) -> Case:
        name = f"bert-base-shaped, {layers} layers, {batch}x128"
        return Case(name, partial(_encoder, layers), (batch, 128, 768), sparsities)

    if extent == "quick":
        return [minilm(2, 64), resnet(20, 1)]
    normal = [minilm(32, 64), encoder(12, 1), resnet(20, 16), resnet(56, 16)]
    if extent == "normal":
        return normal
    return [*normal, resnet(20, 1), resnet(56, 1), minilm(1, 64), encoder(12, 8)]


def _perceptrons(folder: Path | None) -> nn.Module:
    return nn.Sequential(
        *(nn.Sequential(nn.Linear(768, 3072), nn.ReLU(), nn.Linear(3072, 768)) for _ in range(6))
    ).eval()


def _convolutions(folder: Path | None) -> nn.Module:
    return nn.Sequential(
        *(nn.Sequential(nn.Conv2d(128, 128, 3, 1, 1), nn.ReLU()) for _ in range(8))
    ).eval()


def stack_cases(extent: str) -> list[Case]:
    """The cases of suite `cpu-stacks` in one of `gossamer.bench.suite.EXTENTS`."""
    sparsities = _QUICK if extent == "quick" else SPARSITIES
    mlp = Case("mlp", _perceptrons, (128, 768), sparsities)
    conv16 = Case("conv16", _convolutions, (16, 128, 28, 28), sparsities)
    conv1 = Case("conv1", _convolutions, (1, 128, 28, 28), sparsities)
    return [mlp, conv1] if extent == "quick" else [mlp, conv16, conv1]


def run_models(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures the networks with torch's present number of threads."""
    yield from _run("cpu-model", model_cases, options, chosen)


def run_stacks(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures the stacks with torch's present number of threads."""
    yield from _run("cpu-stacks", stack_cases, options, chosen)


def _run(
    suite: str,
    cases: Callable[[str], list[Case]],
    options: Options,
    chosen: Sequence[Case] | None,
) -> Iterator[Record]:
    for case in measured(options, cases, chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        if case.needs_data and options.data is None:
            options.note(f"{case} is left out: no --data names the folder of trained networks")
            continue
        torch.manual_seed(0)
        try:
            dense = case.make(options.data)
        except (ImportError, FileNotFoundError) as error:
            options.note(f"{case} is left out: {error}")
            continue
        yield from _measure(suite, case, dense, options)


def _measure(suite: str, case: Case, dense: nn.Module, options: Options) -> Iterator[Record]:
    x = torch.randint(1, case.vocabulary, case.x) if case.vocabulary else torch.randn(case.x)
    entries = [_entry(dense, f"unstructured:{s:g}", x, options) for s in case.sparsities]
    rivals: dict[str, Callable[[], object]] = {
        "torch_dense": partial(dense, x),
        **engines(dense, x, options.note),
    }
    y = dense(x)
    inputs = case.x[-1] if x.is_floating_point() else 0
    yield from race(
        options, Track(suite, case.name, case.x[0], y.shape[-1], inputs), rivals, entries
    )


def _entry(dense: nn.Module, pattern: str, x: Tensor, options: Options) -> Entry:
    pruned = copy.deepcopy(dense)
    chosen = [name for name, layer in pruned.named_modules() if _is_pruned(name, layer)]
    kept = total = 0
    with torch.no_grad():
        for name in chosen:
            weight = pruned.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            matrix = weight.flatten(1)
            mask = torch.ops.gossamer.magnitude_mask(matrix, pattern, "tensor")
            weight.copy_(torch.where(mask, matrix, 0.0).reshape(weight.shape))
            kept, total = kept + int(torch.count_nonzero(weight)), total + weight.numel()
    packed = gs.fuse_(copy.deepcopy(pruned))  # as the engines among the peers do
    gs.sparsify_(packed, memory="speed", filter_fn=lambda module, name: name in chosen)
    check(str(pattern), packed, pruned, x)
    reports = [report for report in gs.explain(packed) if report.name in chosen]
    held = sum(report.packed_bytes or report.dense_bytes for report in reports)
    count = sum(report.packed for report in reports)
    density = kept / total
    return Entry(
        pattern=pattern,
        sparsity=1.0 - density,
        call=partial(packed, x),
        kernel=f"{count} of {len(reports)} packed",
        held_bytes=held,
        bound_speedup=1.0 / density,
    )


def _is_pruned(name: str, layer: nn.Module) -> bool:
    return isinstance(layer, (nn.Linear, nn.Conv2d)) and name not in _SPARED


def check(name: str, packed: nn.Module, pruned: nn.Module, x: Tensor) -> None:
    """Compares a packed network with the same zeros computed densely, both in float32.

    Both are compared with float64: the packed one may be off by no more than eight times what the
    dense one is, since both round the same number of sums, in another order.

    Raises:
        RuntimeError: the packed network is wrong.
    """
    wide = copy.deepcopy(pruned).double()
    exact = wide(x.double() if x.is_floating_point() else x)
    scale = float(exact.abs().max())
    theirs = float((pruned(x).double() - exact).abs().max())
    mine = float((packed(x).double() - exact).abs().max())
    if not mine <= 8 * theirs + 8 * torch.finfo(torch.float32).eps * scale:
        raise RuntimeError(
            f"{name}: the packed network is off by {mine:.3g}, the dense one by {theirs:.3g}, with "
            f"results up to {scale:.3g}"
        )
