# SPDX-License-Identifier: BSD-3-Clause
"""Sparse models, and what they compute."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import Tensor, nn

import gossamer as gs

GENERIC = "format"  # packs whatever dense would do, so that results do not hang on the machine

HEADINGS = ["layer", "type", "pattern", "kept", "size", "kernel", "speed-up"]
VERY_SPARSE = "unstructured:0.98"  # where every cost model finds a sparse kernel faster


def prune_(weight: Tensor, pattern: str = "unstructured:0.9", transposed: bool = False) -> Tensor:
    with torch.no_grad():
        logical = weight.mT if transposed else weight
        logical.mul_(torch.ops.gossamer.magnitude_mask(logical, pattern, "tensor"))
    return weight


def mlp(pattern: str = "unstructured:0.9", sizes: tuple[int, ...] = (64, 96, 32)) -> nn.Sequential:
    steps: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        prune_(linear.weight, pattern)
        steps += [linear, nn.ReLU()]
    return nn.Sequential(*steps[:-1])


class Conv1D(nn.Module):
    """The contract of Hugging Face's GPT-2 layer: x·W + b, W [in, out]."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def close(got: Tensor, model: nn.Module, x: Tensor) -> None:
    """Equal to the float64 model up to f32 rounding, c·eps·sqrt(K) per layer and a few layers."""
    want = copy.deepcopy(model).double()(x.double())
    scale = want.abs().max().item()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5 * max(scale, 1.0))


def is_packed(module: nn.Module) -> bool:
    return isinstance(module.weight, gs.SparseWeight)


def reason_of(model: nn.Module, name: str) -> str:
    report = gs.explain(model)[name]
    assert not report.packed
    return report.reason
