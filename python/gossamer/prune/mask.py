# SPDX-License-Identifier: BSD-3-Clause
"""A live mask: dense weight plus bool buffer, under a parametrization of the weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

__all__ = ["Mask", "attach_masks", "masked_parameters", "sparsity_report"]


class Mask(nn.Module):
    """Zeroes the weight where `mask` is False.

    The mask is a buffer, so a model's own `state_dict` carries it. A dropped position is zero
    whatever
    the dense weight holds there, NaN and infinity included, and gets no gradient; the dense weight
    keeps
    its value, so it can come back.

    Args:
        mask: bool, the weight's shape; True is kept.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        if mask.dtype != torch.bool:
            raise ValueError(f"the mask has dtype {mask.dtype}: torch.bool is accepted")
        self.register_buffer("mask", mask.detach().clone())

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with zeros where nothing is kept; same shape and dtype."""
        return torch.where(
            self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device)
        )

    def extra_repr(self) -> str:
        """Shape and fraction of zeros."""
        return f"shape={list(self.mask.shape)}, sparsity={1 - self.mask.float().mean().item():.4f}"


def mask_of(module: nn.Module, tensor_name: str) -> Mask | None:
    """The live mask of a module's parameter, or None."""
    if not parametrize.is_parametrized(module, tensor_name):
        return None
    for step in module.parametrizations[tensor_name]:  # type: ignore[index, union-attr, operator]
        if isinstance(step, Mask):
            return step
    return None


def attach(module: nn.Module, tensor_name: str, mask: Tensor) -> Mask:
    """Puts a mask on a plain parameter, or new contents into the mask that is there."""
    there = mask_of(module, tensor_name)
    if there is not None:
        there.mask.copy_(mask)
        return there
    step = Mask(mask)
    parametrize.register_parametrization(module, tensor_name, step)
    return step


def masked_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Mask]]:
    """Every live mask of a model: the weight's name, its module, the parameter's name, the mask."""
    for module_fqn, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor_name in module.parametrizations:  # type: ignore[union-attr]
            step = mask_of(module, tensor_name)
            if step is not None:
                yield (
                    (f"{module_fqn}.{tensor_name}" if module_fqn else tensor_name),
                    module,
                    tensor_name,
                    step,
                )


def attach_masks(model: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Gives a model live masks without knowing the method that made them.

    Args:
        model: changed in place.
        state_dict: a checkpoint of a model with live masks: every weight that has one there gets
        one
            here, so that `model.load_state_dict(state_dict)` fits afterwards. None: every
            `nn.Linear` and
            `nn.Conv2d` weight with zeros keeps them as its mask, for fine-tuning that must not
            undo them.

    Returns:
        The model.

    Raises:
        ValueError: a mask belongs to a parameter that the model does not have or has in another
        shape; the
            model is as it was.
    """
    found: list[tuple[nn.Module, str, Tensor]] = []
    if state_dict is None:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and not parametrize.is_parametrized(
                module, "weight"
            ):
                kept = module.weight.detach() != 0
                if not bool(kept.all()):
                    found.append((module, "weight", kept))
    else:
        modules = dict(model.named_modules())
        for key, mask in state_dict.items():
            path, _, last = key.rpartition(".")
            module_fqn, marker, step = path.rpartition("parametrizations.")
            if last != "mask" or not marker or step.count(".") != 1:
                continue
            module_fqn, tensor_name = module_fqn.rstrip("."), step.split(".")[0]
            module_found = modules.get(module_fqn)
            parameter = getattr(module_found, tensor_name, None)
            if (
                module_found is None
                or not isinstance(parameter, Tensor)
                or parameter.shape != mask.shape
            ):
                have = "nothing" if parameter is None else f"shape {list(parameter.shape)}"
                raise ValueError(
                    f"the checkpoint masks {module_fqn}.{tensor_name} with shape "
                    f"{list(mask.shape)}, the model has "
                    f"{have} there; build the architecture that was saved"
                )
            found.append((module_found, tensor_name, mask))
    for module, tensor_name, mask in found:
        attach(module, tensor_name, mask.to(getattr(module, tensor_name).device))
    return model


def sparsity_report(model: nn.Module) -> dict[str, float]:
    """The fraction of zeros of every weight with two or more dimensions, live masks applied."""
    report = {}
    for module_fqn, module in model.named_modules():
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if parametrize.is_parametrized(module):
            names += list(module.parametrizations)  # type: ignore[arg-type]
        for name in names:
            weight = getattr(module, name)
            if isinstance(weight, Tensor) and weight.dim() >= 2 and weight.numel():
                kept = torch.count_nonzero(weight.detach()).item()
                report[f"{module_fqn}.{name}" if module_fqn else name] = 1.0 - kept / weight.numel()
    return report
