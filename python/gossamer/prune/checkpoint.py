# SPDX-License-Identifier: BSD-3-Clause
"""Live masks without the sparsifier that made them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gossamer.prune.mask import Mask, attach, detach, join, masked_parameters
from gossamer.prune.scored_mask import ScoredMask
from gossamer.prune.targets import Target, choose, find_targets

__all__ = ["attach_masks", "squash_masks"]

_MASK_KEY = re.compile(r"(?:(?P<module>.+)\.)?parametrizations\.(?P<name>[^.]+)\.0\.mask")


def attach_masks(model: nn.Module, state_dict: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Gives a model live masks without knowing the method that made them.

    Live masks that are there stay. A sparsifier's `prepare` takes them over.

    Args:
        model: changed in place; as it was where this raises.
        state_dict: a checkpoint of a model with live masks (torchao's too; `torch.ao.pruning` saves
            masks with the sparsifier, and the message says how to put them back). Each weight that
            has one there gets one here, with nothing dropped yet, so that
            `model.load_state_dict(state_dict)` fits. None: the weights of linear layers and 2-D
            convolutions that hold zeros keep them, for fine-tuning that must not undo them.

    Returns:
        The model.

    Raises:
        ValueError: a mask belongs to a parameter that the model does not have, that has another
            shape, or that can take no mask; or a weight was under a mask that is not there.
    """
    targets = find_targets(model)
    if state_dict is None:
        attach((target.places, Mask(kept)) for target, kept in _with_zeros(targets))
        return model
    _refuse_lost_masks(targets, state_dict)
    kinds = {
        target.fqn: ScoredMask if f"{_prefix(target)}scores" in state_dict else Mask
        for target in targets.values()
    }
    wanted = _in_checkpoint(targets, state_dict)
    attach((target.places, kinds[target.fqn](kept)) for target, kept in wanted)
    return model


def squash_masks(model: nn.Module) -> nn.Module:
    """Writes the zeros of all live masks into the weights and removes the masks.

    For masks that no sparsifier holds: of `attach_masks`, whose inverse this is, of
    `from_torch_prune`, of a copy. Each weight stays the Parameter that it was. A sparsifier that
    prepared the model no longer fits it; its own `squash_mask` is for that.

    Args:
        model: changed in place.

    Returns:
        The model.

    Raises:
        ValueError: the model has no live masks.
    """
    found = list(masked_parameters(model))
    if not found:
        raise ValueError(
            "squash_masks: the model has no live masks; its weights are what they are already"
        )
    for _, module, name, mask in found:
        weight: Tensor = module.parametrizations[name].original  # type: ignore[index, union-attr]
        with torch.no_grad():
            weight.masked_fill_(~mask.mask, 0)
    detach([(module, name) for _, module, name, _ in found])
    return model


def _refuse_lost_masks(targets: Mapping[str, Target], state_dict: Mapping[str, Tensor]) -> None:
    for target in targets.values():
        place = join(target.module_fqn, f"parametrizations.{target.tensor_name}.")
        own = [key for key in state_dict if key.startswith(place)]
        if own == [f"{place}original"] and target.mask is None:
            raise ValueError(
                f"attach_masks: the checkpoint has '{own[0]}', the weight under a mask, but not "
                f"the mask; where torch.ao.pruning made it, the sparsifier's state has it: "
                f"state_dict['{place}0.mask'] = sparsifier_state['state']['{target.fqn}']['mask']"
            )


def _prefix(target: Target) -> str:
    """What the names of a live mask's own state begin with."""
    return join(target.module_fqn, f"parametrizations.{target.tensor_name}.0.")


def _with_zeros(targets: Mapping[str, Target]) -> list[tuple[Target, Tensor]]:
    weights = [t for t in targets.values() if t.is_layer_weight and t.mask is None]
    found: dict[int, tuple[Target, Tensor]] = {}
    for target in weights:
        if target.obstacle() is None and target.weight is not None:
            kept = target.weight.detach() != 0
            if not bool(kept.all()):
                found.setdefault(id(target.weight), (target, kept))
    return list(found.values())


def _in_checkpoint(
    targets: Mapping[str, Target], state_dict: Mapping[str, Tensor]
) -> list[tuple[Target, Tensor]]:
    found: dict[int, tuple[Target, Tensor]] = {}
    for key, mask in state_dict.items():
        match = _MASK_KEY.fullmatch(key)
        if match is None:
            continue
        fqn = ".".join(part for part in (match["module"], match["name"]) if part)
        ((target, _),) = choose(targets, [{"tensor_fqn": fqn}])
        obstacle = target.obstacle(selects=False)
        if obstacle is not None:
            raise ValueError(f"attach_masks: '{fqn}' {obstacle}")
        assert target.weight is not None
        if target.weight.shape != mask.shape:
            raise ValueError(
                f"attach_masks: the checkpoint's mask of '{fqn}' is {list(mask.shape)}, the "
                f"model's weight {list(target.weight.shape)}; build the architecture that was saved"
            )
        if target.mask is None:
            kept = torch.ones_like(target.weight, dtype=torch.bool, requires_grad=False)
            found.setdefault(id(target.weight), (target, kept))
    return list(found.values())
