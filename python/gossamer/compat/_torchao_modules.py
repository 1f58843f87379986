# SPDX-License-Identifier: BSD-3-Clause
"""The mask of `torchao.prototype.sparsity` 0.18, and what finds and swaps modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer.prune.mask import Mask

__all__ = [
    "FakeSparsity",
    "fqn_to_module",
    "get_arg_info_from_tensor_fqn",
    "module_contains_param",
    "module_to_fqn",
    "swap_module",
]


class FakeSparsity(Mask):
    """The live mask, from a mask of any dtype (it was a float tensor; 0 drops).

    Args:
        mask: the weight's shape.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask != 0)

    def forward(self, x: Tensor) -> Tensor:
        """X where the mask keeps it, else 0."""
        return super().forward(x)


def module_contains_param(module: nn.Module, parametrization: type[nn.Module]) -> bool:
    """Whether any parameter of a module, itself included, is parametrized by such a class.

    `FakeSparsity` stands for the masks of all sparsifiers.
    """
    kind = Mask if parametrization is FakeSparsity else parametrization
    chains: Any = module.parametrizations if parametrize.is_parametrized(module) else {}
    return any(isinstance(step, kind) for chain in chains.values() for step in chain)


def swap_module(mod: nn.Module, mapping: Mapping[type[nn.Module], type[nn.Module]]) -> nn.Module:
    """What `from_dense` of the mapped class makes of a module, with its hooks and device.

    A module of no mapped class comes back as it is.

    Raises:
        ValueError: its parameters are on several devices.
    """
    kind = parametrize.type_before_parametrizations(mod)
    if kind not in mapping:
        return mod
    devices = {tensor.device for tensor in [*mod.parameters(), *mod.buffers()]}
    if len(devices) > 1:
        raise ValueError(
            f"swap_module: {kind.__name__} has tensors on {sorted(map(str, devices))}; one device "
            "is accepted: move it with .to() first"
        )
    made: nn.Module = mapping[kind].from_dense(mod)  # type: ignore[attr-defined]
    for pre_hook in mod._forward_pre_hooks.values():
        made.register_forward_pre_hook(pre_hook)
    for hook in mod._forward_hooks.values():
        made.register_forward_hook(hook)
    return made.to(devices.pop()) if devices else made


def module_to_fqn(model: nn.Module, module: nn.Module, prefix: str = "") -> str | None:
    """The full name of a module in a model, behind a prefix; None where it is not there.

    The model itself is "", whatever the prefix.
    """
    for name, other in model.named_modules():
        if other is module:
            return prefix + name if name else ""
    return None


def fqn_to_module(model: nn.Module | None, path: str) -> nn.Module | None:
    """The module (or parameter) at a path; None where there is none."""
    found: Any = model
    for part in path.split(".") if path else ():
        found = getattr(found, part, None)
    return found


def get_arg_info_from_tensor_fqn(model: nn.Module, tensor_fqn: str) -> dict[str, Any]:
    """The parts of a parameter's full name, with its module."""
    module_fqn, _, tensor_name = tensor_fqn.rpartition(".")
    return {
        "module_fqn": module_fqn,
        "module": fqn_to_module(model, module_fqn),
        "tensor_name": tensor_name,
        "tensor_fqn": tensor_fqn,
    }
