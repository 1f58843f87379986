# SPDX-License-Identifier: BSD-3-Clause
"""The names of `torchao.sparsity` and `torchao.prototype.sparsity` 0.18 with their old signatures.

    from gossamer.compat.torchao import WeightNormSparsifier, sparsify_, semi_sparse_weight

What differs: `sparsify_` returns the model (it returned None); a weight that breaks its pattern is
refused (it was compressed wrongly); layers that dense computes faster stay plain. Masks are bool.
`WandaSparsifier`, `WeightNormSparsifier` and `SupermaskLinear` do what their papers say;
`as_in_torchao=True` brings back what the old ones did.

Not here: structured pruning (the pruner folder), and `torchao.sparsity.training`
(`SemiSparseLinear` and what swaps it in), whose layers keep dense weights and drop half of them
anew in each pass.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from gossamer.compat._torchao_modules import (
    FakeSparsity,
    fqn_to_module,
    get_arg_info_from_tensor_fqn,
    module_contains_param,
    module_to_fqn,
    swap_module,
)
from gossamer.compat._torchao_schedulers import BaseScheduler, CubicSL, LambdaSL
from gossamer.compat._torchao_sparsifiers import (
    BaseSparsifier,
    NearlyDiagonalSparsifier,
    PerChannelNormObserver,
    WandaSparsifier,
    WeightNormSparsifier,
)
from gossamer.compat._torchao_supermask import (
    SupermaskLinear,
    create_block_sparse_tensor,
    create_semi_structured_tensor,
    mask_creator,
)
from gossamer.config import BlockSparseWeightConfig, SemiSparseWeightConfig
from gossamer.prune import Magnitude
from gossamer.sparsify import sparsify_

__all__ = [
    "BaseScheduler",
    "BaseSparsifier",
    "BlockSparseWeightConfig",
    "CubicSL",
    "FakeSparsity",
    "LambdaSL",
    "NearlyDiagonalSparsifier",
    "PerChannelNormObserver",
    "SemiSparseWeightConfig",
    "SupermaskLinear",
    "WandaSparsifier",
    "WeightNormSparsifier",
    "apply_fake_sparsity",
    "block_sparse_weight",
    "create_block_sparse_tensor",
    "create_semi_structured_tensor",
    "fqn_to_module",
    "get_arg_info_from_tensor_fqn",
    "mask_creator",
    "module_contains_param",
    "module_to_fqn",
    "semi_sparse_weight",
    "sparsify_",
    "swap_module",
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
