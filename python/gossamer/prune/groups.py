# SPDX-License-Identifier: BSD-3-Clause
"""Groups: a weight under a mask with its hyperparameters, as a plain dict."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

from gossamer.prune.mask import zeros_of
from gossamer.prune.pattern import CustomPattern
from gossamer.prune.schedule import schedule_name
from gossamer.prune.selection import check_fits
from gossamer.prune.targets import Target

__all__ = [
    "Group",
    "described",
    "hyperparameters",
    "new_group",
    "plain",
    "saved_group",
    "settings_of",
    "sparse_params",
    "warn_unfinished",
    "zero_dropped",
]

Group: TypeAlias = "dict[str, Any]"
"""Hyperparameters, and "tensor_fqn", "module_fqn", "module", "tensor_name"."""

_PLACE = ("tensor_fqn", "module_fqn", "module", "tensor_name")


def new_group(target: Target, settings: Mapping[str, Any]) -> Group:
    """The group of a parameter.

    Raises:
        ValueError: its pattern would keep nothing of the parameter.
    """
    assert target.weight is not None
    pattern, scope = settings["pattern"], settings["scope"]
    check_fits(target.fqn, target.module, target.weight, pattern, scope)
    return {key: getattr(target, "fqn" if key == "tensor_fqn" else key) for key in _PLACE} | dict(
        settings
    )


def hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group without what says where its weight is."""
    return {key: value for key, value in group.items() if key not in _PLACE}


def plain(value: Any) -> Any:
    """A pattern that is an object as its text, a schedule as its name; other values as they are."""
    if isinstance(value, str):
        return value
    if isinstance(value, CustomPattern):
        return str(value)
    return schedule_name(value) if callable(value) else value


def saved_group(group: Group) -> dict[str, Any]:
    """A group as plain data."""
    own = {key: plain(value) for key, value in hyperparameters(group).items()}
    return {"tensor_fqn": group["tensor_fqn"], **own}


def described(group: Group, defaults: Mapping[str, Any], mask: Tensor) -> str:
    """A line with a group's name, its pattern, what differs from the defaults, and its zeros."""
    own = ", ".join(
        f"{key}={plain(group[key])!r}"
        for key, value in defaults.items()
        if key == "pattern" or group[key] != value
    )
    return f"  {group['tensor_fqn']}: {own}, {zeros_of(mask):.2%} zeros"


def warn_unfinished(found: Mapping[str, str | None]) -> None:
    """Warns the caller of `squash_mask` of masks that are not what they were to become.

    Args:
        found: what each weight's mask lacks, by full name; None where it is complete.
    """
    lacking = {fqn: why for fqn, why in found.items() if why is not None}
    if lacking:
        fqn, why = next(iter(lacking.items()))
        others = f" (one of {len(lacking)} such weights of {len(found)})" if len(found) > 1 else ""
        warnings.warn(f"squash_mask: '{fqn}'{others}: {why}", UserWarning, stacklevel=4)


def zero_dropped(state: Iterable[Any], mask: Tensor) -> None:
    """Zeroes what an optimizer remembers of dropped weights, in tensors of the mask's shape."""
    for value in state:
        if isinstance(value, Tensor) and value.shape == mask.shape:
            value.masked_fill_(~mask, 0)


def settings_of(
    kind: str,
    defaults: Mapping[str, Any],
    owner: str,
    own: Mapping[str, Any],
    complete: bool = False,
) -> dict[str, Any]:
    """The defaults with a weight's own hyperparameters.

    Args:
        kind: the sparsifier's class, for messages.
        defaults: every hyperparameter there is.
        owner: the weight's full name, for messages.
        own: what differs from the defaults.
        complete: whether `own` has to name every hyperparameter.

    Raises:
        ValueError: a hyperparameter does not exist, or is not there.
    """
    unknown = sorted(set(own) - set(defaults))
    missing = sorted(set(defaults) - set(own)) if complete else []
    if unknown or missing:
        fault = f"unknown hyperparameters {unknown}" if unknown else f"no {missing}"
        raise ValueError(f"'{owner}' has {fault}; {kind} takes {sorted(defaults)}")
    return {**defaults, **own}


def sparse_params(
    groups: Sequence[Group],
    for_all: Iterable[str] | None,
    per_layer: Mapping[str, Iterable[str]] | None,
) -> list[dict[str, Any]]:
    """What `squash_mask` leaves on the module of each group.

    Raises:
        ValueError: a hyperparameter or module does not exist.
    """
    common, per_layer = list(for_all or ()), per_layer or {}
    modules = {group["module_fqn"] for group in groups}
    unknown = sorted(set(per_layer) - modules)
    if unknown:
        raise ValueError(
            f"params_to_keep_per_layer: {unknown} have no masks; the masked modules are "
            f"{sorted(modules)}"
        )
    kept = []
    for group in groups:
        wanted = [*common, *per_layer.get(group["module_fqn"], ())]
        missing = sorted(set(wanted) - set(group))
        if missing:
            raise ValueError(
                f"params_to_keep: {missing} do not exist; there are "
                f"{sorted(set(group) - {'module'})}"
            )
        kept.append({key: group[key] for key in wanted})
    return kept
