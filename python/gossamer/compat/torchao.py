# SPDX-License-Identifier: BSD-3-Clause
"""The names of `torchao.sparsity` 0.18 with their old signatures.

    from gossamer.compat.torchao import sparsify_, semi_sparse_weight

What differs: `sparsify_` returns the model (it returned None); a weight that breaks its pattern is
refused (it was compressed wrongly); layers that dense computes faster stay plain.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gossamer.config import BlockSparseWeightConfig, SemiSparseWeightConfig
from gossamer.prune import Magnitude
from gossamer.sparsify import sparsify_

__all__ = [
    "BlockSparseWeightConfig",
    "SemiSparseWeightConfig",
    "apply_fake_sparsity",
    "block_sparse_weight",
    "semi_sparse_weight",
    "sparsify_",
]

semi_sparse_weight = SemiSparseWeightConfig
block_sparse_weight = BlockSparseWeightConfig


def apply_fake_sparsity(
    model: nn.Module, *, filter_fn: Callable[[nn.Module, str], bool] | None = None
) -> None:
    """Zeros the smaller two of every four consecutive inputs of the linear layers, once.

    Args:
        model: its weights are changed in place and stay dense.
        filter_fn: called with each module and its name; None takes every `nn.Linear`.
    """
    select = filter_fn or (lambda module, name: isinstance(module, nn.Linear))
    config = [
        {"tensor_fqn": f"{name}.weight" if name else "weight"}
        for name, module in model.named_modules()
        if select(module, name) and getattr(module, "weight", None) is not None
    ]
    if not config:
        return
    sparsifier = Magnitude("2:4")
    sparsifier.prepare(model, config)
    sparsifier.step()
    sparsifier.squash_mask()
