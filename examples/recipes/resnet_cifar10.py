# SPDX-License-Identifier: BSD-3-Clause
"""One-shot pruning of a trained ResNet on CIFAR-10: every method at 50 %, 70 %, 2:4 and 4:8.

    python examples/recipes/resnet_cifar10.py --data FOLDER [--depth 20] [--device cuda] [--quick]
                                              [--report FILE] [--record FILE]

No fine-tuning and no new BatchNorm statistics: 510 training images, then the test set. All
convolutions but the first, and the last linear layer, are pruned. Prints a table in Markdown; a
cell is the mean layer error ‖ΔW·X‖²/‖W·X‖² and the test accuracy in percent. The report is a page
about the last model of the table, with all others beside it.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

import gossamer as gs
from gossamer.prune import (
    ByMagnitude,
    ByWanda,
    CalibrationReport,
    LeastSquares,
    ObsSweep,
    OneShot,
    Swap,
    density,
    measure_sensitivity,
)

sys.path.insert(0, str(Path(__file__).parent))
from cifar10 import Images, accuracy, data_folder, load_calibration, load_resnet, load_test
from run_tools import Record, chosen, done, new_parser, pick_device, progress, start

PATTERNS = {"50 %": "unstructured:0.5", "70 %": "unstructured:0.7", "4:8": "4:8", "2:4": "2:4"}
QUICK_PATTERNS = ("70 %", "2:4")
ROUNDS, TIMED_IMAGES = 15, 16
"""Of the timing for the report."""
DENSE_TARGET = "dense-target"

METHODS: dict[str, Callable[[str], OneShot]] = {
    "magnitude": lambda p: OneShot(p, ByMagnitude(), scope="row"),
    "RIA": lambda p: gs.RIA(p),
    "Wanda": lambda p: gs.Wanda(p),
    "Wanda + swap": lambda p: OneShot(p, ByWanda(), Swap(), scope="row"),
    "SparseGPT": lambda p: gs.SparseGPT(p),
    "Wanda + LS": lambda p: OneShot(p, ByWanda(), LeastSquares(), scope="row"),
    "Wanda + swap + LS": lambda p: OneShot(p, ByWanda(), Swap(), LeastSquares(), scope="row"),
    "SparseGPT + LS": lambda p: OneShot(p, ObsSweep(), LeastSquares()),
    "ALPS": lambda p: gs.ALPS(p),
    "SparseGPT, dense target": lambda p: gs.SparseGPT(p, target=DENSE_TARGET),
    "Wanda + LS, dense target": lambda p: OneShot(
        p, ByWanda(), LeastSquares(), scope="row", target=DENSE_TARGET
    ),
    "ALPS, dense target": lambda p: gs.ALPS(p, target=DENSE_TARGET),
    "Best": lambda p: gs.Best(p),
}
QUICK_METHODS = ("magnitude", "Wanda", "SparseGPT", "ALPS", "Best")
QUICK_WITHOUT = (("ALPS", "70 %"), ("Best", "70 %"))
"""Cells that would double the time of a quick run."""


def prune(
    dense: torch.nn.Module, sparsifier: OneShot, pattern: str, calibration: Images
) -> tuple[torch.nn.Module, CalibrationReport]:
    """A pruned copy of a network, and what became of its layers."""
    model = copy.deepcopy(dense)
    sparsifier.prepare(model, {"conv1": None, "*": pattern})
    report = sparsifier.calibrate(calibration.batches(128))
    sparsifier.squash_mask()
    return model, report


def milliseconds(models: Sequence[torch.nn.Module], x: torch.Tensor) -> list[float]:
    """The median time of a forward pass of each model, taken in turns."""
    times: list[list[float]] = [[] for _ in models]
    with torch.inference_mode():
        for turn in range(ROUNDS + 2):
            for own, model in zip(times, models, strict=True):
                begin = time.perf_counter()
                model(x).argmax(dim=1).tolist()  # A GPU is waited for.
                if turn >= 2:
                    own.append(1000 * (time.perf_counter() - begin))
    return [statistics.median(own) for own in times]


def write_report(
    file: Path,
    dense: torch.nn.Module,
    model: torch.nn.Module,
    calibration: CalibrationReport,
    outcomes: list[gs.Outcome],
    judges: Images,
) -> None:
    """The page; layers are pruned one at a time for it, by magnitude, and judged on few images.

    The model is packed for it, so that the page says what runs and how fast.
    """
    progress("sensitivity of each layer")
    found = measure_sensitivity(dense, lambda net: accuracy(net, judges))
    packed = gs.sparsify_(copy.deepcopy(model))
    before, after = milliseconds([dense, packed], judges.x[:TIMED_IMAGES])
    first, last = replace(outcomes[0], ms=before), replace(outcomes[-1], ms=after)
    file.parent.mkdir(parents=True, exist_ok=True)
    gs.report(
        packed,
        file,
        title=f"A ResNet, {last.method} at {last.pattern}",
        outcome=last,
        outcomes=[first, *outcomes[1:-1], last],
        calibration=calibration,
        sensitivity=found,
        metric="CIFAR-10 accuracy, %",
    )
    progress("")
    print(f"\n{file}: {before:.1f} ms dense, {after:.1f} ms packed, {TIMED_IMAGES} images")


def run(options: argparse.Namespace) -> None:
    """Runs what the record does not hold, prints the table, and writes the page."""
    names = chosen(options.methods, tuple(METHODS), QUICK_METHODS if options.quick else METHODS)
    columns = chosen(
        options.patterns, tuple(PATTERNS), QUICK_PATTERNS if options.quick else PATTERNS
    )
    device = pick_device(options.device, runs=False)
    record = Record(options.record, f"resnet-{options.depth} {device.type}")
    short = options.quick and options.patterns is None
    cells = [("dense", "dense")] + [
        (name, column)
        for name in names
        for column in columns
        if not (short and (name, column) in QUICK_WITHOUT)
    ]
    todo = record.missing(0, cells)
    if options.report is not None and cells[-1] not in todo:
        todo.append(cells[-1])  # The page is about this model.
    if todo:
        device, folder = pick_device(options.device), data_folder(options.data)
        test, calibration = load_test(folder).to(device), load_calibration(folder).to(device)
        dense = load_resnet(folder, options.depth).to(device)
    for name, column in todo:
        begin = time.perf_counter()
        progress(f"{name}, {column}")
        if name == "dense":
            record.add(0, name, column, 0.0, accuracy(dense, test), 0.0, 0.0)
            continue
        model, layers = prune(dense, METHODS[name](PATTERNS[column]), PATTERNS[column], calibration)
        right, zeros = accuracy(model, test), 1 - density(model)
        if record.missing(0, [(name, column)]):
            seconds = time.perf_counter() - begin
            record.add(0, name, column, layers.mean_error, right, zeros, seconds)
        done(f"{name}, {column}: {layers.mean_error:.4f} / {right:.2f}", begin)
    progress("")
    print(f"ResNet-{options.depth}, dense accuracy {known(record, *cells[0])[1]:.2f}\n")
    print(f"| method | {' | '.join(columns)} | seconds |")
    print("|" + "---|" * (len(columns) + 2))
    for name in names:
        print(table_row(record, name, columns))
    if options.report is not None:
        judges = load_test(folder, per_class=50).to(device)
        outcomes = []
        for name, column in cells:
            _, right, zeros, _ = known(record, name, column)
            outcomes.append(gs.Outcome(name, PATTERNS.get(column, column), zeros, right))
        write_report(options.report, dense, model, layers, outcomes, judges)


def known(record: Record, method: str, column: str) -> tuple[float, ...]:
    """A result that is there."""
    found = record.get(method, column)
    assert found is not None
    return found


def table_row(record: Record, method: str, columns: Sequence[str]) -> str:
    """A row of the table: layer error / accuracy, and the seconds of all of its columns."""
    found = [record.get(method, column) for column in columns]
    cells = [f"{own[0]:.4f} / {own[1]:.2f}" if own else "–" for own in found]
    seconds = sum(own[3] for own in found if own)
    return f"| {method} | {' | '.join(cells)} | {seconds:.0f} |"


def main() -> None:
    """Runs the recipe."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56))
    parser.add_argument("--quick", action="store_true", help="five methods, two patterns")
    parser.add_argument("--report", type=Path, help="write a page about the last model")
    parser.add_argument("--record", type=Path, help="file of results, to go on or to share")
    run(parser.parse_args())


if __name__ == "__main__":
    start(main)
