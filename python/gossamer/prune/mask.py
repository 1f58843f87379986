# SPDX-License-Identifier: BSD-3-Clause
"""A live mask: the dense weight and a bool buffer, under a parametrization of the weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Mask", "masked_parameters"]

Place: TypeAlias = "tuple[nn.Module, str]"
"""A module and the name of its parameter."""


class _Straight(torch.autograd.Function):
    """where(mask, weight, 0); every weight gets the gradient, kept or dropped."""

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask, weight, 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed later."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Mask(nn.Module):
    """Zeroes a weight where `mask` is False.

    A position that is not kept is zero whatever the dense weight holds there, NaN and infinity
    included, and gets no gradient unless `dense_gradients` says so. The dense weight keeps its
    value, so that it can come back.

    Attributes:
        mask: bool, the weight's shape; True is kept. A buffer: a model's own `state_dict` has it.
        steps: int64 scalar: how many steps of a sparsifier it has seen. A buffer too, so that a
            schedule goes on from a model's checkpoint.
        updated: int64 scalar: the step that selected the mask, 0 where none did. A buffer, so that
            a schedule knows after a resumption what it still owes.
        dense_gradients: whether dropped positions get the gradient that they would have if they
            were kept at 0. Set by `Sparsifier.prepare`, False elsewhere; not saved.

    Args:
        mask: bool, the weight's shape.

    Raises:
        ValueError: the mask is not bool.
    """

    mask: Tensor
    steps: Tensor
    updated: Tensor
    dense_gradients: bool = False

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise ValueError(
                f"the mask has dtype {mask.dtype}: torch.bool is accepted, e.g. weight != 0"
            )
        with torch.inference_mode(False):  # Buffers are written to later.
            self.register_buffer("mask", mask.detach().clone())
            for name in ("steps", "updated"):
                self.register_buffer(name, torch.zeros((), dtype=torch.int64, device=mask.device))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where nothing is kept; same shape and dtype."""
        # Not a product: 0·NaN and 0·inf are NaN.
        if self.dense_gradients:
            straight: Tensor = _Straight.apply(weight, self.mask)
            return straight
        return torch.where(self.mask, weight, 0)

    def chosen(self) -> Tensor | None:
        """A copy of the mask; None where nothing has selected it yet."""
        selected = int(self.updated) > 0 or not bool(self.mask.all())
        return self.mask.clone() if selected else None

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What assigning to the masked weight stores: the values as they are."""
        return weight

    def extra_repr(self) -> str:
        """Shape, fraction of zeros, steps."""
        shape, zeros = list(self.mask.shape), zeros_of(self.mask)
        return f"shape={shape}, zeros={zeros:.2%}, steps={int(self.steps)}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Masks of torch.ao.pruning have the same key but count no steps.
        steps = state_dict.setdefault(prefix + "steps", torch.zeros_like(self.steps))
        # A checkpoint that does not say when the mask was selected has missed no update.
        state_dict.setdefault(prefix + "updated", steps.clone())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def zeros_of(mask: Tensor) -> float:
    """The fraction of a mask that is not kept; 0 for an empty one."""
    return 1.0 - int(mask.count_nonzero()) / max(mask.numel(), 1)


def mask_of(module: nn.Module, tensor_name: str) -> Mask | None:
    """The live mask of a module's parameter, None where none or something else is there."""
    if not parametrize.is_parametrized(module, tensor_name):
        return None
    chain = list(module.parametrizations[tensor_name])  # type: ignore[index]
    return chain[0] if len(chain) == 1 and isinstance(chain[0], Mask) else None


def live_mask(module: nn.Module, tensor_name: str, fqn: str) -> Mask:
    """The live mask that a sparsifier put on a parameter.

    Raises:
        RuntimeError: it is there no more.
    """
    mask = mask_of(module, tensor_name)
    if mask is None:
        raise RuntimeError(
            f"'{fqn}' has no live mask of its own any more; remove what was put on the weight "
            "after prepare(), or make a new sparsifier"
        )
    return mask


def masked_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Mask]]:
    """Every live mask of a model: the weight's name, its module, the parameter's name, the mask.

    A mask on a weight that several modules share comes once for each.
    """
    for module_fqn, module in model.named_modules(remove_duplicate=False):
        if not parametrize.is_parametrized(module):
            continue
        for tensor_name in module.parametrizations:
            mask = mask_of(module, tensor_name)
            if mask is not None:
                yield join(module_fqn, tensor_name), module, tensor_name, mask


def join(module_fqn: str, tensor_name: str) -> str:
    """The full name of a module's parameter."""
    return f"{module_fqn}.{tensor_name}" if module_fqn else tensor_name


def attach(masks: Iterable[tuple[Iterable[Place], Mask]]) -> None:
    """Puts each mask on the parameters at its places; none on any where one refuses."""
    done: list[Place] = []
    try:
        for places, mask in masks:
            for module, tensor_name in places:
                order = tuple(module._parameters)
                _own_class(module)
                parametrize.register_parametrization(module, tensor_name, mask)
                done.append((module, tensor_name))
                module.parametrizations[tensor_name].parameter_order = order  # type: ignore[index, union-attr]
    except BaseException:
        detach(done)
        raise


def _own_class(module: nn.Module) -> None:
    """Gives a parametrized module a class that no copy of it shares.

    torch puts a property for each parametrized tensor on a class made for the module, which
    `copy.deepcopy` hands on: what is put there or taken away for one would be for the others too.
    """
    if parametrize.is_parametrized(module):
        shared = type(module)
        module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))


def detach(places: Iterable[Place]) -> None:
    """Removes masks; the parameters come back as the objects they were, in their old order.

    A module that is in the model under several names may come once for each.
    """
    done: set[tuple[int, str]] = set()
    for module, tensor_name in places:
        if (id(module), tensor_name) in done:
            continue
        done.add((id(module), tensor_name))
        chain = module.parametrizations[tensor_name]  # type: ignore[index]
        order: tuple[str, ...] = getattr(chain, "parameter_order", (tensor_name,))
        _own_class(module)
        parametrize.remove_parametrizations(module, tensor_name, leave_parametrized=False)
        # An optimizer's saved state knows parameters by their number, and the weight is last now.
        for later in order[order.index(tensor_name) + 1 :]:
            if later in module._parameters:
                module._parameters[later] = module._parameters.pop(later)
