# SPDX-License-Identifier: BSD-3-Clause
"""How sparse a model is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.prune.targets import find_targets

__all__ = ["density", "sparsity_report"]


def sparsity_report(model: nn.Module) -> dict[str, float]:
    """The fraction of zeros of each weight that may be pruned by default or has a live mask.

    Returns:
        Full names to fractions, in the model's order; live masks are applied.
    """
    return {fqn: 1.0 - kept / max(elements, 1) for fqn, (kept, elements) in _counts(model).items()}


def density(model: nn.Module) -> float:
    """The fraction that is not zero of all weights in `sparsity_report` together; 1 for none."""
    counts = _counts(model).values()
    elements = sum(elements for _, elements in counts)
    return sum(kept for kept, _ in counts) / elements if elements else 1.0


def _counts(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Non-zeros and elements, each parameter once."""
    found: dict[str, tuple[int, int]] = {}
    seen: set[int] = set()
    for target in find_targets(model).values():
        plain = target.is_layer_weight and target.obstacle() is None
        if target.weight is None or id(target.weight) in seen or not (plain or target.mask):
            continue
        seen.add(id(target.weight))
        value: Tensor = getattr(target.module, target.tensor_name).detach()
        found[target.fqn] = (_count_nonzeros(value), value.numel())
    return found


def _count_nonzeros(value: Tensor) -> int:
    matrix = value.cpu().flatten(1)
    return int(torch.ops.gossamer.count_nonzeros(matrix)) if matrix.numel() else 0
