# SPDX-License-Identifier: BSD-3-Clause
"""Models with a layer of each format, and what is in them and in their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gossamer as gs


def pruned(
    inputs: int, outputs: int, pattern: str, dtype: torch.dtype = torch.float32
) -> nn.Linear:
    linear = nn.Linear(inputs, outputs, dtype=dtype)
    with torch.no_grad():
        linear.weight.mul_(torch.ops.gossamer.magnitude_mask(linear.weight, pattern, "tensor"))
    return linear


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """One layer of each format, one dense layer, buffers of several dtypes."""
    return nn.Sequential(
        pruned(64, 96, "unstructured:0.9", dtype),
        pruned(96, 64, "2:4", dtype),
        pruned(64, 64, "block:16x16:0.5", dtype),
        pruned(64, 48, "fanin:0.75", dtype),
        nn.Linear(48, 32, dtype=dtype),
        nn.BatchNorm1d(32, dtype=dtype),
    ).eval()


PATTERNS = {"0": None, "1": "2:4", "2": "block:16x16", "3": "fanin:0.75"}
FORMATS = {"0": "bitmask", "1": "nm", "2": "bsr", "3": "fanin"}


def packed(model: nn.Module) -> nn.Module:
    return gs.sparsify_(model, PATTERNS, layout="format")


def values(model: nn.Module) -> dict[str, Tensor]:
    """Copies of everything in the model, packed weights made dense."""
    return {
        name: value.to_dense() if isinstance(value, gs.SparseWeight) else value.detach().clone()
        for name, value in model.state_dict().items()
    }


def equal(got: nn.Module, want: dict[str, Tensor]) -> bool:
    found = values(got)
    return found.keys() == want.keys() and all(
        torch.equal(found[name], want[name]) for name in want
    )


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def rewrite(path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    tensors, notes = load_file(path), metadata(path)
    change(tensors, notes)
    save_file(tensors, path, notes)


class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)
