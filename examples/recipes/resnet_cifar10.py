# SPDX-License-Identifier: BSD-3-Clause
"""One-shot pruning of a trained ResNet on CIFAR-10: every method at 50 %, 70 %, 2:4 and 4:8.

    python examples/recipes/resnet_cifar10.py --data FOLDER [--depth 20] [--quick]

No fine-tuning and no new BatchNorm statistics: 510 training images, then the test set. All
convolutions but the first, and the last linear layer, are pruned. Prints a table in Markdown; a
cell is the mean layer error ‖ΔW·X‖²/‖W·X‖² and the test accuracy in percent.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gossamer as gs
from gossamer.prune import ByMagnitude, ByWanda, LeastSquares, ObsSweep, OneShot, Swap

sys.path.insert(0, str(Path(__file__).parent))
from cifar10 import Images, accuracy, data_folder, load_calibration, load_resnet, load_test

PATTERNS = {"50 %": "unstructured:0.5", "70 %": "unstructured:0.7", "4:8": "4:8", "2:4": "2:4"}
QUICK_PATTERNS = ("70 %", "2:4")
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


def prune(
    dense: torch.nn.Module, sparsifier: OneShot, pattern: str, calibration: Images
) -> tuple[torch.nn.Module, float]:
    """A pruned copy of a network, and the mean error of its layers."""
    model = copy.deepcopy(dense)
    sparsifier.prepare(model, {"conv1": None, "*": pattern})
    report = sparsifier.calibrate(calibration.batches(128))
    sparsifier.squash_mask()
    return model, report.mean_error


def main() -> None:
    """Runs the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="folder with the data (default: GOSSAMER_DATA)")
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32, 44, 56))
    parser.add_argument("--methods", help="some of the methods, separated by semicolons")
    parser.add_argument("--quick", action="store_true", help="five methods, two patterns")
    options = parser.parse_args()

    folder = data_folder(options.data)
    test, calibration = load_test(folder), load_calibration(folder)
    dense = load_resnet(folder, options.depth)
    names = list(QUICK_METHODS if options.quick else METHODS)
    if options.methods:
        names = [name.strip() for name in options.methods.split(";")]
    columns = QUICK_PATTERNS if options.quick else tuple(PATTERNS)
    print(f"ResNet-{options.depth}, dense accuracy {accuracy(dense, test):.2f}\n")
    print(f"| method | {' | '.join(columns)} | seconds |")
    print("|" + "---|" * (len(columns) + 2))
    for name in names:
        begin, cells = time.perf_counter(), []
        for column in columns:
            pattern = PATTERNS[column]
            model, error = prune(dense, METHODS[name](pattern), pattern, calibration)
            cells.append(f"{error:.4f} / {accuracy(model, test):.2f}")
        seconds = time.perf_counter() - begin
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
