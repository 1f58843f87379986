# SPDX-License-Identifier: BSD-3-Clause
"""Sparsifiers of `torchao.sparsity` and `torchao.prototype.sparsity` 0.18 by their old names."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.utils.hooks import RemovableHandle

from gossamer.compat._torchao_modules import module_contains_param, swap_module
from gossamer.prune.groups import Group
from gossamer.prune.mask import Mask
from gossamer.prune.sparsifier import Sparsifier
from gossamer.prune.targets import Config

__all__ = [
    "BaseSparsifier",
    "NearlyDiagonalSparsifier",
    "PerChannelNormObserver",
    "WandaSparsifier",
    "WeightNormSparsifier",
]


class BaseSparsifier(Sparsifier):
    """For sparsifiers of one's own, which define `update_mask(module, tensor_name, **group)`.

    The mask to write is `module.parametrizations.weight[0].mask`, bool now.

    Args:
        defaults: hyperparameters of weights for which `prepare` is told nothing else.
    """

    def __init__(self, defaults: Mapping[str, Any] | None = None) -> None:
        super().__init__("unstructured:0", "tensor", **dict(defaults or {}))

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """As `Sparsifier.prepare`; without a config it takes every `nn.Linear` (exactly that)."""
        if config is None and self._loaded is None:
            self.make_config_from_model(model)
            config = self.config
        return super().prepare(model, config)

    def make_config_from_model(
        self, model: nn.Module, SUPPORTED_MODULES: Container[type] = frozenset((nn.Linear,))
    ) -> None:
        """Leaves the config that `prepare` takes for None in the attribute `config`.

        Args:
            model: is not changed.
            SUPPORTED_MODULES: classes whose weights are listed; subclasses are not.
        """
        self.config = [
            {"tensor_fqn": f"{name}.weight" if name else "weight"}
            for name, module in model.named_modules()
            if type_before_parametrizations(module) in SUPPORTED_MODULES
        ]

    def step(self, use_path: bool = True) -> None:
        """As `Sparsifier.step`; the argument never had an effect."""
        super().step()

    def _step(self) -> None:
        super()._step()
        for group in self.groups:
            # An old `update_mask` may put a float tensor into `mask.data`.
            mask = self.mask(group)
            if mask.dtype != torch.bool:
                mask.data = mask != 0

    def squash_mask(
        self,
        params_to_keep: Iterable[str] | None = None,
        params_to_keep_per_layer: Mapping[str, Iterable[str]] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As `Sparsifier.squash_mask`; further arguments never had an effect."""
        super().squash_mask(params_to_keep, params_to_keep_per_layer)

    def convert(
        self,
        module: nn.Module,
        mapping: Mapping[type[nn.Module], type[nn.Module]] | None = None,
        inplace: bool = False,
        parameterization: type[nn.Module] = Mask,
    ) -> nn.Module:
        """Replaces masked modules below `module` with what `from_dense` of another class makes.

        Args:
            module: its children are replaced, at any depth.
            mapping: class to class.
            inplace: whether `module` is changed rather than a copy.
            parameterization: what marks a module as masked.

        Raises:
            NotImplementedError: there is no mapping.
        """
        if mapping is None:
            raise NotImplementedError(
                "convert: mapping None; a dict of classes is accepted, e.g. {nn.Linear: MySparse}, "
                "where MySparse has from_dense(module)"
            )
        if not inplace:
            module = copy.deepcopy(module)
        for name, child in list(module.named_children()):
            masked = module_contains_param(child, parameterization)
            if masked and type_before_parametrizations(child) in mapping:
                setattr(module, name, swap_module(child, mapping))
            else:
                self.convert(child, mapping, inplace=True, parameterization=parameterization)
        return module


class WeightNormSparsifier(BaseSparsifier):
    """Zeroes blocks with the smallest norm, or the smallest weights in each of them.

    Where the old one could never bring back a weight that it had dropped (it scored the masked
    weight), this one scores the dense weight. Rows whose length is no multiple of the block end in
    a narrower block (they failed).

    Args:
        sparsity_level: the fraction of blocks that lose weights.
        sparse_block_shape: rows and columns of a block.
        zeros_per_block: how many weights such a block loses; None: all of them.
        norm: 1, 2 or None (2), or a function from the weight to what is summed over a block.
        as_in_torchao: score the masked weight, as the old one did.

    Raises:
        ValueError: there is no such norm.
    """

    def __init__(
        self,
        sparsity_level: float = 0.5,
        sparse_block_shape: tuple[int, int] = (1, 4),
        zeros_per_block: int | None = None,
        norm: Callable[[Tensor], Tensor] | int | None = None,
        *,
        as_in_torchao: bool = False,
    ) -> None:
        if not (norm in (None, 1, 2) or callable(norm)):
            raise ValueError(f"norm {norm!r}: 1, 2, None or a function of the weight is accepted")
        self.norm_fn = norm if callable(norm) else torch.abs if norm == 1 else torch.square
        self._as_in_torchao = as_in_torchao
        super().__init__(
            {
                "sparsity_level": sparsity_level,
                "sparse_block_shape": sparse_block_shape,
                "zeros_per_block": zeros_per_block or math.prod(sparse_block_shape),
            }
        )

    def check(self, settings: Mapping[str, Any]) -> None:
        """Blocks have sides, and no more zeros than weights."""
        super().check(settings)
        shape, zeros = settings["sparse_block_shape"], settings["zeros_per_block"]
        if len(shape) != 2 or min(shape) < 1 or not 0 <= zeros <= math.prod(shape):
            raise ValueError(
                f"sparse_block_shape {tuple(shape)} with zeros_per_block {zeros}: two sides from 1 "
                "and at most their product of zeros are accepted"
            )
        if not 0 <= settings["sparsity_level"] <= 1:
            raise ValueError(
                f"sparsity_level {settings['sparsity_level']}: a fraction from 0 to 1 is accepted"
            )

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """What is summed over a block."""
        seen = torch.where(self.mask(group), weight, 0) if self._as_in_torchao else weight
        return self.norm_fn(seen)

    def pattern_of(self, group: Group) -> Any:
        """The pattern of the grammar where there is one, else the blocks themselves."""
        (rows, cols), zeros = group["sparse_block_shape"], group["zeros_per_block"]
        level = group["sparsity_level"]
        if zeros == rows * cols:
            return f"block:{rows}x{cols}:{level}"
        if rows == 1 and level == 1 and cols & (cols - 1) == 0 and zeros < cols:
            return f"{cols - zeros}:{cols}"
        return _PartOfBlocks(rows, cols, zeros, level)


class _PartOfBlocks:
    """In the given fraction of blocks, those with the lowest mean score, the lowest weights go."""

    def __init__(self, rows: int, cols: int, zeros: int, level: float) -> None:
        self._shape, self._zeros, self._level = (rows, cols), zeros, level

    def __str__(self) -> str:
        rows, cols = self._shape
        return f"{self._zeros} zeros in {self._level:g} of the {rows}x{cols} blocks"

    def select(self, scores: Tensor) -> Tensor:
        """Two choices of the core: of blocks, then of weights inside each."""
        rows, cols = self._shape
        matrix = scores if scores.dim() == 2 else scores.flatten(0, -2)
        blocks = torch.ops.gossamer.select_masks(
            [matrix], f"block:{rows}x{cols}:{self._level}", "tensor"
        )[0]
        kept = torch.ones_like(blocks)
        for top in range(0, matrix.shape[0], rows):
            for left in range(0, matrix.shape[1], cols):
                part = (slice(top, top + rows), slice(left, left + cols))
                if bool(blocks[part].any()):
                    continue
                own = matrix[part].reshape(-1)
                lowest = own.argsort(stable=True)[: self._zeros]
                mask = torch.ones_like(own, dtype=torch.bool)
                mask[lowest] = False
                kept[part] = mask.view(matrix[part].shape)
        return kept.view(scores.shape)


class NearlyDiagonalSparsifier(BaseSparsifier):
    """Keeps the diagonal of square weights and its neighbours.

    Args:
        nearliness: how many entries of a row are kept; odd.
    """

    def __init__(self, nearliness: int = 1) -> None:
        super().__init__({"nearliness": nearliness})

    def check(self, settings: Mapping[str, Any]) -> None:
        """Nearliness is odd."""
        super().check(settings)
        if settings["nearliness"] % 2 != 1 or settings["nearliness"] < 1:
            raise ValueError(
                f"nearliness {settings['nearliness']}: an odd number from 1 is accepted"
            )

    def update_mask(self, module: nn.Module, tensor_name: str, **group: Any) -> None:
        """Writes the band."""
        mask = module.parametrizations[tensor_name][0].mask  # type: ignore[index, union-attr]
        if mask.dim() != 2 or mask.shape[0] != mask.shape[1]:
            raise ValueError(
                f"'{group['tensor_fqn']}' has shape {list(mask.shape)}: a square matrix is accepted"
            )
        place = torch.arange(len(mask), device=mask.device)
        mask.copy_((place[:, None] - place).abs() <= group["nearliness"] // 2)


class PerChannelNormObserver(nn.Module):
    """Adds up the squared norms of inputs by channel, in the buffer `norm`; passes them through."""

    norm: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.register_buffer("norm", torch.tensor([]))

    def calculate_qparams(self) -> None:
        """Not there: it observes for pruning alone.

        Raises:
            NotImplementedError: always, as it did.
        """
        raise NotImplementedError(
            "PerChannelNormObserver stores norms of activations; it has no quantization parameters"
        )

    def forward(self, x_orig: Tensor) -> Tensor:
        """Sees inputs [..., channels]."""
        if x_orig.numel():
            x = x_orig.detach().reshape(-1, x_orig.shape[-1]).float()
            seen = x.square().sum(dim=0)
            self.norm = self.norm.to(seen.device) + seen if self.norm.numel() else seen
        return x_orig


class _Watch:
    """A hook that shows a layer's inputs to an observer.

    An object and no function: functions are not copied, so that the copy of a model would go on
    feeding the observers of the model it was copied from.
    """

    def __init__(self, observer: PerChannelNormObserver) -> None:
        self.observer = observer

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = [*args[:1], *([kwargs["input"]] if "input" in kwargs else kwargs.values())]
        if not given or not isinstance(given[0], Tensor):
            raise TypeError(
                f"WandaSparsifier: {type(module).__name__} was called without a tensor as its "
                "first argument or `input=`, whose norms are the score; call it so"
            )
        self.observer(given[0])


class WandaSparsifier(BaseSparsifier):
    """Wanda: prepare, run the model on calibration data, `step`, `squash_mask`.

    The score is |w|·‖x_j‖₂ by output row, as in the paper (arXiv:2306.11695); the old one used
    the squared norm and ranked the whole layer. Inputs are those of the unpruned model; layer by
    layer, `gossamer.Wanda` sees those of the pruned one. `state_dict` has what was seen so far.

    Args:
        sparsity_level: fraction of zeros.
        semi_structured_block_size: M: keeps M − M // 2 of every M inputs, whatever the level.
        as_in_torchao: the squared norm, over the whole layer.
    """

    def __init__(
        self,
        sparsity_level: float = 0.5,
        semi_structured_block_size: int | None = None,
        *,
        as_in_torchao: bool = False,
    ) -> None:
        self._as_in_torchao = as_in_torchao
        self._observers: dict[str, PerChannelNormObserver] = {}
        self._hooks: list[RemovableHandle] = []
        super().__init__(
            {
                "sparsity_level": sparsity_level,
                "semi_structured_block_size": semi_structured_block_size,
            }
        )
        self.defaults["scope"] = "tensor" if as_in_torchao else "row"

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """As `BaseSparsifier.prepare`; watches the inputs of the layers from now on."""
        super().prepare(model, config)
        for group in self.groups:
            observer = PerChannelNormObserver()
            self._observers[group["tensor_fqn"]] = observer
            hook = group["module"].register_forward_pre_hook(_Watch(observer), with_kwargs=True)
            self._hooks.append(hook)
        self._resume()
        return model

    def squash_mask(
        self,
        params_to_keep: Iterable[str] | None = None,
        params_to_keep_per_layer: Mapping[str, Iterable[str]] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """As `Sparsifier.squash_mask`; stops watching."""
        super().squash_mask(params_to_keep, params_to_keep_per_layer)
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._observers = [], {}

    def state_dict(self) -> dict[str, Any]:
        """As `Sparsifier.state_dict`, with the squared norms of the inputs seen so far."""
        for fqn, observer in self._observers.items():
            self.state[fqn]["norm"] = observer.norm
        return super().state_dict()

    def _take(self, loaded: Mapping[str, Any]) -> None:
        super()._take(loaded)
        self._resume()

    def _resume(self) -> None:
        """Observers go on from the norms of a state that was loaded."""
        for group in self.groups:
            fqn = group["tensor_fqn"]
            norm = self.state.get(fqn, {}).get("norm")
            if norm is not None and fqn in self._observers:
                self._observers[fqn].norm = norm.to(self.mask(group).device)

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """|w|·‖x_j‖₂."""
        seen = self._observers[group["tensor_fqn"]].norm
        if seen.numel() != weight.shape[-1] or weight.dim() != 2:
            raise RuntimeError(
                f"step: '{group['tensor_fqn']}' ({list(weight.shape)}) has seen inputs of "
                f"{seen.numel()} channels; run the model on calibration data after prepare() "
                "(nn.Linear is accepted; gossamer.Wanda takes convolutions too)"
            )
        return weight.abs() * (seen if self._as_in_torchao else seen.sqrt())

    def pattern_of(self, group: Group) -> str:
        """N:M where a block size is given."""
        size = group["semi_structured_block_size"]
        return (
            f"unstructured:{group['sparsity_level']}"
            if size is None
            else f"{size - size // 2}:{size}"
        )
