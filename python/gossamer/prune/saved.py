# SPDX-License-Identifier: BSD-3-Clause
"""What a sparsifier saves and takes up again: steps, hyperparameters, what subclasses remember."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from gossamer.prune.groups import Group, hyperparameters, plain, saved_group
from gossamer.prune.transposable import Transposable

__all__ = ["pair", "read_state", "take", "write_state"]

_KEYS = ("steps", "enable_mask_update", "groups", "state")


def write_state(
    steps: int,
    enable_mask_update: bool,
    groups: Iterable[Group],
    state: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The state of a sparsifier as plain data and tensors."""
    return {
        "steps": steps,
        "enable_mask_update": enable_mask_update,
        "groups": [saved_group(group) for group in groups],
        "state": {fqn: dict(own) for fqn, own in state.items()},
    }


def read_state(
    state_dict: Mapping[str, Any], owners: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A copy of a saved state, with patterns and schedules back where their texts were saved.

    Args:
        state_dict: what `write_state` returned; it is not changed.
        owners: hyperparameters that may be such objects.

    Raises:
        ValueError: it is no such state, or says a name that two schedules have.
    """
    loaded = copy.deepcopy(dict(state_dict))
    missing = set(_KEYS) - set(loaded)
    if missing:
        raise ValueError(
            f"the sparsifier's state lacks {sorted(missing)}: what state_dict() of a "
            "sparsifier returned is accepted"
        )
    for group in loaded["groups"]:
        text = group.get("pattern")
        group["pattern"] = (Transposable.read(text) if isinstance(text, str) else None) or text
        for key in ("pattern", "schedule"):  # Numbers and texts are plain already.
            asked = plain(group.get(key))
            found = [own[key] for own in owners if key in own and plain(own[key]) == asked]
            if key == "schedule" and len({id(value) for value in found if callable(value)}) > 1:
                raise ValueError(
                    f"two schedules of this sparsifier are both called '{group[key]}'; "
                    "register_schedule gives each a name of its own"
                )
            if found:
                group[key] = found[-1]
    return loaded


def pair(
    groups: Sequence[Group], loaded: Mapping[str, Any], *, strict: bool
) -> list[tuple[Group, Mapping[str, Any]]]:
    """The weights that are both prepared and saved, with what was saved of each.

    Raises:
        ValueError: `strict`, and the two are not the same weights.
    """
    ours = {group["tensor_fqn"]: group for group in groups}
    theirs = {group["tensor_fqn"]: group for group in loaded["groups"]}
    if strict and ours.keys() != theirs.keys():
        raise ValueError(
            f"the saved state is of other weights: not saved {sorted(set(ours) - set(theirs))}, "
            f"not prepared {sorted(set(theirs) - set(ours))}; prepare with the same config, or "
            "pass strict=False"
        )
    return [(ours[fqn], saved) for fqn, saved in theirs.items() if fqn in ours]


def take(
    groups: Sequence[Group],
    state: MutableMapping[str, dict[str, Any]],
    loaded: Mapping[str, Any],
) -> None:
    """Overwrites hyperparameters and state of the weights that were saved; others keep theirs."""
    for group, saved in pair(groups, loaded, strict=False):
        group.update(hyperparameters(saved))
        fqn = group["tensor_fqn"]
        state.pop(fqn, None)
        if fqn in loaded["state"]:
            state[fqn] = loaded["state"][fqn]
