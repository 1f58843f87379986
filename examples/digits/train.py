# SPDX-License-Identifier: BSD-3-Clause
"""Training, and pruning while training goes on."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

import gossamer as gs

from .network import PRUNED, SEED, Digits, accuracy, linear_at


@dataclass(frozen=True)
class Settings:
    """How long and how fast. Epochs of pruning include the fine-tuning after the last step."""

    dense_epochs: int = 8
    prune_epochs: int = 12
    prune_until: float = 0.6
    """The fraction of the pruning run after which the sparsity stays."""
    prune_every: int = 5
    """Steps between two changes of the masks."""
    batch_size: int = 64
    dense_rate: float = 1e-3
    prune_rate: float = 5e-4


@dataclass
class History:
    """One point an epoch, epoch 0 being the start."""

    epochs: list[int] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    sparsity: list[float] = field(default_factory=list)
    """Fraction of zeros in the pruned layers."""


Progress = Callable[[int, int, float, float], None]
"""Called after each epoch with: epoch, epochs, accuracy, sparsity."""


def train_dense(
    model: nn.Sequential, data: Digits, settings: Settings, progress: Progress
) -> History:
    """Trains in place."""
    return _train(model, data, settings.dense_epochs, settings.dense_rate, settings, None, progress)


def prune_gradually(
    dense: nn.Sequential, pattern: str, data: Digits, settings: Settings, progress: Progress
) -> tuple[nn.Sequential, History]:
    """A copy of `dense`, pruned to `pattern` on the cubic schedule while it is trained further.

    The result is a plain model whose weights hold zeros; `dense` is not changed.
    """
    model = copy.deepcopy(dense)
    steps = settings.prune_epochs * _steps(data, settings)
    sparsifier = gs.GradualMagnitude(
        pattern,
        begin_step=0,
        end_step=int(settings.prune_until * steps),
        every=settings.prune_every,
    )
    sparsifier.prepare(model, config=[{"tensor_fqn": f"{index}.weight"} for index in PRUNED])
    history = _train(
        model, data, settings.prune_epochs, settings.prune_rate, settings, sparsifier.step, progress
    )
    sparsifier.squash_mask()
    return model, history


def _steps(data: Digits, settings: Settings) -> int:
    return -(-len(data.train_x) // settings.batch_size)


def _train(
    model: nn.Sequential,
    data: Digits,
    epochs: int,
    rate: float,
    settings: Settings,
    prune_step: Callable[[], None] | None,
    progress: Progress,
) -> History:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=True)
    total = epochs * _steps(data, settings)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=total)
    order = torch.Generator().manual_seed(SEED)
    history = History()
    _note(history, model, data, 0)
    for epoch in range(1, epochs + 1):
        for batch in torch.randperm(len(data.train_x), generator=order).split(settings.batch_size):
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if prune_step is not None:
                prune_step()
        _note(history, model, data, epoch)
        progress(epoch, epochs, history.accuracy[-1], history.sparsity[-1])
    return history


def _note(history: History, model: nn.Sequential, data: Digits, epoch: int) -> None:
    with torch.no_grad():
        history.epochs.append(epoch)
        history.accuracy.append(accuracy(model(data.test_x), data.test_y))
        weights = [linear_at(model, index).weight for index in PRUNED]
        zeros = sum(weight.numel() - int(torch.count_nonzero(weight)) for weight in weights)
        history.sparsity.append(zeros / sum(weight.numel() for weight in weights))
