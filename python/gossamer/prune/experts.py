# SPDX-License-Identifier: BSD-3-Clause
"""Mixtures of experts: which layers route, and which experts nothing reached."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from gossamer.prune.matrix import is_conv1d

__all__ = ["routers", "unreached_members"]

_ROUTES = re.compile(r"(^|_)(gate|gating|router|wg)($|_(?!proj))")


def routers(model: nn.Module) -> list[str]:
    """The names of linear layers that pick experts, whose few outputs decide where tokens go.

    Their name or their module's speaks of a gate or router, and they have one output for each
    expert beside them, or a single one (the gate of a shared expert).
    """
    found: dict[str, None] = {}
    for name, module in model.named_modules():
        counts = set(_expert_counts(module))
        if not counts:
            continue
        for path, part in module.named_modules():
            depth = path.split(".")
            is_linear = isinstance(part, nn.Linear) or is_conv1d(part)
            if not is_linear or len(depth) > 2 or not any(map(_ROUTES.search, depth)):
                continue
            outputs = part.out_features if isinstance(part, nn.Linear) else part.nf
            if outputs in counts or outputs == 1:
                found[f"{name}.{path}" if name else path] = None
    return list(found)


def unreached_members(
    model: nn.Module, layers: Mapping[str, nn.Module], reached: Collection[str]
) -> dict[str, str]:
    """Layers of experts that nothing reached, with the reason to leave them dense.

    An expert is a member of an nn.ModuleList or nn.ModuleDict of which other members were reached;
    a layer that is not reached in a member that is, or outside of such a list, is none.

    Args:
        model: holds the layers.
        layers: by the full names of their weights.
        reached: those of them that saw inputs.
    """
    names = {id(module): fqn for fqn, module in layers.items()}
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.ModuleDict):
            continue
        members = [
            {names[id(part)] for part in member.modules() if id(part) in names}
            for member in module.children()
        ]
        if not any(not member.isdisjoint(reached) for member in members):
            continue
        for member in members:
            if member.isdisjoint(reached):
                why = f"no batch reaches it, while others of '{path}' are reached"
                found.update(dict.fromkeys(sorted(member), why))
    return found


def _expert_counts(module: nn.Module) -> Iterator[int]:
    """How many experts a module holds: members of a list, or matrices in one parameter."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) and len(child) > 1:
            yield len(child)
        yield from (len(weight) for weight in child.parameters(recurse=False) if weight.dim() == 3)
    yield from (len(weight) for weight in module.parameters(recurse=False) if weight.dim() == 3)
