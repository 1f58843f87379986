# SPDX-License-Identifier: BSD-3-Clause
"""The network and the data, shared by the process that trains and the process that runs."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from torch import Tensor, nn

SEED = 7
WIDTHS = (64, 1024, 2048, 1024, 10)
"""8x8 pixels in, ten digits out; the two layers in the middle hold 98 % of the weights."""
FAST_WIDTHS = (64, 128, 256, 128, 10)
"""Of a network for trying the demo's parts; too small for sparse kernels to be a fair question."""
PRUNED = (0, 2, 4)
"""Layers that are pruned; the last one, 10 outputs, is too small to be worth it."""
PATTERNS = {"sparse90": "unstructured:0.9", "sparse24": "2:4"}
"""Names of the pruned networks, also of their files, and their patterns."""


class Digits(NamedTuple):
    """Images [count, 64] float32 in 0..1 and labels [count] int64."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load_data() -> Digits:
    """scikit-learn's 1797 scanned digits: 1397 to train, 400 to test, the same split every time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16.0, y, test_size=400, stratify=y, random_state=SEED)
    train_x, test_x = (torch.tensor(part, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.tensor(part) for part in parts[2:])
    return Digits(train_x, train_y, test_x, test_y)


def build_network(fast: bool = False) -> nn.Sequential:
    """A plain stack of linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(FAST_WIDTHS if fast else WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def linear_at(model: nn.Sequential, index: int) -> nn.Linear:
    """The linear layer at a place of `build_network`'s stack."""
    found = model[index]
    assert isinstance(found, nn.Linear)
    return found


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Percent of the rows whose largest logit is the label's."""
    return 100.0 * (logits.argmax(dim=1) == labels).float().mean().item()
