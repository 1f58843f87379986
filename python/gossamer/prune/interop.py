# SPDX-License-Identifier: BSD-3-Clause
"""Masks of torch.nn.utils.prune, in and out."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import prune

from gossamer.prune.mask import Mask, attach, detach, mask_of, masked_parameters

__all__ = ["from_torch_prune", "to_torch_prune"]


def from_torch_prune(model: nn.Module) -> nn.Module:
    """Turns what `torch.nn.utils.prune` put on a model into live masks.

    `weight_orig` becomes the parameter again, the same object; `weight_mask` becomes the mask.
    Sparsifiers take the masks over in `prepare`.

    Args:
        model: changed in place; as it was where this raises.

    Returns:
        The model.

    Raises:
        ValueError: the model has none, or a mask holds other numbers than 0 and 1.
    """
    found = [
        (name, module, hook._tensor_name)
        for name, module in model.named_modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, prune.BasePruningMethod)
    ]
    if not found:
        raise ValueError(
            "from_torch_prune: torch.nn.utils.prune has put nothing on this model; weights that "
            "merely hold zeros get live masks from attach_masks(model)"
        )
    masks = []
    for name, module, tensor in found:
        values = getattr(module, f"{tensor}_mask")
        if not bool(((values == 0) | (values == 1)).all()):
            raise ValueError(
                f"from_torch_prune: '{name}.{tensor}_mask' holds numbers other than 0 and 1; "
                "make it a mask first"
            )
        masks.append(values.bool())
    for (_, module, tensor), mask in zip(found, masks, strict=True):
        _take_off(module, tensor)
        attach([([(module, tensor)], Mask(mask))])
    return model


def to_torch_prune(model: nn.Module) -> nn.Module:
    """Turns live masks into what `torch.nn.utils.prune.custom_from_mask` makes.

    Args:
        model: changed in place. Sparsifiers that prepared it no longer fit it.

    Returns:
        The model.

    Raises:
        ValueError: the model has no live masks.
    """
    found = [(module, tensor) for _, module, tensor, _ in masked_parameters(model)]
    if not found:
        raise ValueError(
            "to_torch_prune: the model has no live masks; make some with attach_masks(model) or "
            "a sparsifier's prepare()"
        )
    for module, tensor in found:
        mask = mask_of(module, tensor)
        assert mask is not None
        kept = mask.mask.clone()
        detach([(module, tensor)])
        prune.custom_from_mask(module, tensor, kept.to(getattr(module, tensor).dtype))
    return model


def _take_off(module: nn.Module, tensor: str) -> None:
    """Removes a pruning method of torch; the parameter keeps its dense values and its place."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, prune.BasePruningMethod) and hook._tensor_name == tensor:
            del module._forward_pre_hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    delattr(module, tensor)
    module._parameters[tensor] = module._parameters.pop(f"{tensor}_orig")
    del module._buffers[f"{tensor}_mask"]
