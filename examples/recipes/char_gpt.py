# SPDX-License-Identifier: BSD-3-Clause
"""A character-level GPT on tiny Shakespeare: trained dense, then pruned at once and gradually.

    python examples/recipes/char_gpt.py --data FOLDER [--device cuda] [--small] [--quick]
                                        [--seeds 0,1,2] [--record FILE]

Prints a table in Markdown; a cell is the validation loss in nats a character. All linear layers of
the blocks are pruned; embeddings, norms and the layer that gives the logits stay dense. FOLDER
holds `text/tinyshakespeare.txt`.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import ByMagnitude, OneShot

sys.path.insert(0, str(Path(__file__).parent))
from run_tools import (
    InputError,
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

PATTERNS = {
    "50 %": "unstructured:0.5",
    "70 %": "unstructured:0.7",
    "80 %": "unstructured:0.8",
    "90 %": "unstructured:0.9",
    "2:4": "2:4",
}
QUICK_PATTERNS = ("80 %", "2:4")
GRADUAL = "gradual magnitude"
GRADUAL_PATTERNS = ("80 %", "90 %", "2:4")

ONE_SHOT: dict[str, Callable[[str], OneShot]] = {
    "magnitude": lambda p: OneShot(p, ByMagnitude()),
    "Wanda": lambda p: gs.Wanda(p),
    "SparseGPT": lambda p: gs.SparseGPT(p),
    "ALPS, dense target": lambda p: gs.ALPS(p, target="dense-target"),
    "Best": lambda p: gs.Best(p),
}
METHODS = (*ONE_SHOT, GRADUAL)
QUICK_METHODS = ("magnitude", "SparseGPT", GRADUAL)


@dataclass(frozen=True)
class Size:
    """The model and how long it is trained.

    Attributes:
        context: characters that a prediction sees.
        batch: sequences a step.
        steps: of dense training.
        gradual_steps: of the training during which the model is pruned.
    """

    layers: int
    heads: int
    width: int
    context: int
    dropout: float
    batch: int
    steps: int
    gradual_steps: int


FULL = Size(6, 6, 384, 256, 0.2, 64, 5000, 2500)
SMALL = Size(4, 4, 128, 64, 0.0, 12, 2000, 1000)

RATE, LAST_RATE, WARM_UP = 1e-3, 1e-4, 100
EVALUATIONS = 20
"""Of the validation loss, in one training."""
MASK_UPDATES = 20
RAMP = 0.6
"""The part of the gradual training in which the sparsity grows."""
CALIBRATION_CHARACTERS = 32768
SHORTEST = 4
"""Steps of dense training; half of them are the fewest in which sparsity can grow."""


# --- The text -------------------------------------------------------------------------------------


class Text:
    """A text as numbers of characters; the last tenth of it is for validation."""

    def __init__(self, text: str, device: torch.device) -> None:
        characters = sorted(set(text))
        place = {character: index for index, character in enumerate(characters)}
        ids = torch.tensor([place[character] for character in text], device=device)
        self.vocabulary = len(characters)
        cut = int(0.9 * len(ids))
        self.train, self.validation = ids[:cut], ids[cut:]

    def sample(self, size: Size, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random places of the training text: characters [batch, context], and those after them."""
        last = len(self.train) - size.context - 1
        begin = torch.randint(last, (size.batch, 1), generator=generator).to(self.train.device)
        places = begin + torch.arange(size.context, device=begin.device)
        return self.train[places], self.train[places + 1]

    def calibration(self, size: Size) -> list[Tensor]:
        """Batches of training text from all over it, the same ones in every run."""
        count = CALIBRATION_CHARACTERS // size.context
        begin = torch.linspace(0, len(self.train) - size.context, count).long()[:, None]
        places = begin + torch.arange(size.context)
        return list(self.train[places.to(self.train.device)].split(32))


# --- The model ------------------------------------------------------------------------------------


class Block(nn.Module):
    """Causal self-attention and two layers with a GELU between, each behind a norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.dropout = size.heads, size.dropout
        self.attention_norm = nn.LayerNorm(size.width, bias=False)
        self.query_key_value = nn.Linear(size.width, 3 * size.width, bias=False)
        self.output = nn.Linear(size.width, size.width, bias=False)
        self.norm = nn.LayerNorm(size.width, bias=False)
        self.up = nn.Linear(size.width, 4 * size.width, bias=False)
        self.down = nn.Linear(4 * size.width, size.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        joined = self.query_key_value(self.attention_norm(x))
        heads = joined.view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(*heads, dropout_p=dropout, is_causal=True)
        seen = self.output(seen.transpose(1, 2).reshape(batch, tokens, width))
        x = x + F.dropout(seen, self.dropout, self.training)
        made = self.down(F.gelu(self.up(self.norm(x))))
        return x + F.dropout(made, self.dropout, self.training)


class GPT(nn.Module):
    """A decoder; the embedding of the characters also gives the logits.

    Args:
        vocabulary: how many characters there are.
        size: of the model.
    """

    def __init__(self, vocabulary: int, size: Size) -> None:
        super().__init__()
        self.dropout = size.dropout
        self.characters = nn.Embedding(vocabulary, size.width)
        self.positions = nn.Embedding(size.context, size.width)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                # What a residual connection adds up grows with the number of terms.
                is_term = name.endswith(("output.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * size.layers if is_term else 1))

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, tokens, vocabulary] of the character after each of `ids`."""
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.characters(ids) + self.positions(places)
        x = F.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.characters.weight)


@torch.no_grad()
def validation_loss(model: nn.Module, text: Text, size: Size) -> float:
    """Mean cross entropy in nats over the whole validation text, in windows side by side."""
    was_training = model.training
    model.eval()
    windows = (len(text.validation) - 1) // size.context
    x = text.validation[: windows * size.context].view(windows, -1)
    y = text.validation[1 : windows * size.context + 1].view(windows, -1)
    total = 0.0
    for inputs, wanted in zip(x.split(64), y.split(64), strict=True):
        logits = model(inputs).flatten(0, 1)
        total += float(F.cross_entropy(logits, wanted.flatten(), reduction="sum"))
    model.train(was_training)
    return total / y.numel()


# --- Training -------------------------------------------------------------------------------------


def rate_at(step: int, steps: int) -> float:
    """The learning rate: a short warm-up, then a cosine."""
    warm_up = min(WARM_UP, steps // 10)
    if step < warm_up:
        return RATE * (step + 1) / warm_up
    way = (step - warm_up) / max(steps - warm_up, 1)
    return LAST_RATE + (RATE - LAST_RATE) * (1 + math.cos(math.pi * way)) / 2


def new_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    fused = matrices[0].is_cuda
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), fused=fused)


def train(
    model: nn.Module,
    text: Text,
    size: Size,
    steps: int,
    seed: int,
    label: str,
    pruner: gs.GradualMagnitude | None = None,
    counted: int = 0,
) -> float:
    """Trains a model in place; it is left as it was at its lowest validation loss.

    Args:
        model: on the text's device.
        text: what it learns.
        size: of the model.
        steps: of the optimizer.
        seed: of the batches and of dropout.
        label: for the progress.
        pruner: prepared; its step follows each step of the optimizer.
        counted: the first step whose loss may be the lowest: that at which the pattern is reached.

    Returns:
        That loss.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = new_optimizer(model)
    evaluate_every = max(1, steps // EVALUATIONS)
    device, lowest, best = text.train.device, math.inf, None
    model.train()
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step - 1, steps)
        x, y = text.sample(size, generator)
        with autocast(device):
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if pruner is not None:
            pruner.step()
        if step % evaluate_every and step < steps:
            continue
        now = validation_loss(model, text, size)
        progress(f"{label}: step {step}/{steps}, loss {loss.item():.3f}, validation {now:.4f}")
        if now < lowest and step >= counted:
            lowest, best = now, copy.deepcopy(model.state_dict())
    assert best is not None
    model.load_state_dict(best)
    return lowest


def dense_model(text: Text, size: Size, seed: int, keep: Path | None) -> GPT:
    """A trained model; the one in the folder `keep` where it is there, else it is put there."""
    torch.manual_seed(seed)
    model = GPT(text.vocabulary, size).to(text.train.device)
    name = f"char-gpt-{size.layers}x{size.width}-{size.steps}-seed{seed}.pt"
    file = None if keep is None else keep / name
    if file is not None and file.is_file():
        model.load_state_dict(torch.load(file, map_location=text.train.device, weights_only=True))
        return model.eval()
    train(model, text, size, size.steps, seed, f"dense, seed {seed}")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval()


# --- Pruning --------------------------------------------------------------------------------------


def prune_at_once(dense: GPT, name: str, pattern: str, text: Text, size: Size) -> GPT:
    """A copy pruned without training."""
    model = copy.deepcopy(dense)
    sparsifier = ONE_SHOT[name](pattern)
    sparsifier.prepare(model, {"blocks.*": pattern})
    sparsifier.calibrate(text.calibration(size))
    sparsifier.squash_mask()
    return model


def prune_gradually(dense: GPT, pattern: str, text: Text, size: Size, seed: int) -> GPT:
    """A copy whose sparsity grows while it is trained further."""
    model = copy.deepcopy(dense)
    steps, label = size.gradual_steps, f"{GRADUAL} {pattern}, seed {seed}"
    ramp = max(2, int(RAMP * steps))
    pruner = gs.GradualMagnitude(
        pattern, begin_step=1, end_step=ramp, every=max(1, ramp // MASK_UPDATES)
    )
    pruner.prepare(model, {"blocks.*": pattern})
    train(model, text, size, steps, seed, label, pruner, counted=ramp)
    pruner.squash_mask()
    return model.eval()


def main() -> None:
    """Runs the recipe."""
    parser = new_parser(__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a model for a CPU: 0.8 M parameters")
    parser.add_argument("--quick", action="store_true", help="three methods, two patterns")
    parser.add_argument("--seeds", action=Seeds, nargs="+", default=[0], help="0,1,2 (default: 0)")
    parser.add_argument("--steps", type=int, help="of dense training; the gradual one is half that")
    parser.add_argument("--record", type=Path, help="file of results, to go on or to share")
    parser.add_argument("--keep", type=Path, help="folder for the dense models, to run again")
    run(parser.parse_args())


def run(options: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Trains, prunes and prints; returns the losses by method and pattern, one for each seed."""
    size = SMALL if options.small else FULL
    if options.steps is not None:
        if options.steps < SHORTEST:
            raise InputError(f"--steps {options.steps}: {SHORTEST} or more is accepted")
        size = replace(size, steps=options.steps, gradual_steps=options.steps // 2)
    path = text_file(options.data, "tinyshakespeare.txt")
    names = chosen(options.methods, METHODS, QUICK_METHODS if options.quick else METHODS)
    columns = chosen(
        options.patterns, tuple(PATTERNS), QUICK_PATTERNS if options.quick else PATTERNS
    )
    cells = [("dense", "dense")]
    cells += [
        (name, column)
        for name in names
        for column in columns
        if name != GRADUAL or column in GRADUAL_PATTERNS
    ]
    device = pick_device(options.device, runs=False)
    record = Record(options.record, f"char-gpt {size} {device.type}")
    todo = {seed: record.missing(seed, cells) for seed in options.seeds}
    # Where nothing is left to do, the table of a GPU's record is made without one.
    device = pick_device(options.device) if any(todo.values()) else torch.device("cpu")
    text = Text(path.read_text(encoding="utf-8"), device)
    begin = time.perf_counter()
    for seed, missing in todo.items():
        dense = dense_model(text, size, seed, options.keep) if missing else None
        for name, column in missing:
            assert dense is not None
            progress(f"{name}, {column}, seed {seed}")
            if name == "dense":
                model = dense
            elif name == GRADUAL:
                model = prune_gradually(dense, PATTERNS[column], text, size, seed)
            else:
                model = prune_at_once(dense, name, PATTERNS[column], text, size)
            loss = validation_loss(model, text, size)
            record.add(seed, name, column, loss)
            done(f"{name}, {column}, seed {seed}: {loss:.4f}", begin)
    seconds = time.perf_counter() - begin
    weights = sum(p.numel() for p in GPT(text.vocabulary, size).parameters())
    print(f"GPT, {weights / 1e6:.1f} M parameters, seeds {options.seeds}, {seconds:.0f} s\n")
    rows = record.rows(options.seeds, cells)
    print_table(rows, ("dense", *columns), 4)
    return rows


if __name__ == "__main__":
    start(main)
