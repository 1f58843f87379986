# SPDX-License-Identifier: BSD-3-Clause
"""Which parameters of a model a config means, and whether they can take a mask."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from gossamer.prune.experts import routers
from gossamer.prune.mask import Mask, join, mask_of
from gossamer.prune.matrix import is_conv1d
from gossamer.weight import SparseWeight

__all__ = ["Config", "Target", "choose", "find_targets", "kept_dense", "one_shot_config"]

Config: TypeAlias = "Sequence[Mapping[str, Any]] | Mapping[str, Any] | None"


@dataclass
class Target:
    """One parameter of a model.

    Attributes:
        fqn: its full name.
        module_fqn: the module's name.
        module: who owns it.
        tensor_name: its name in the module.
        weight: the dense parameter, under the mask where one is live; None where the value is
            computed by something else.
        mask: the live mask.
        places: every module and name that hold this parameter, itself included.
    """

    fqn: str
    module_fqn: str
    module: nn.Module
    tensor_name: str
    weight: Tensor | None
    mask: Mask | None = None
    places: list[tuple[nn.Module, str]] = field(default_factory=list)

    @property
    def is_layer_weight(self) -> bool:
        """Whether it is the weight of a linear layer or a 2-D convolution."""
        layer = isinstance(self.module, nn.Linear | nn.Conv2d) or is_conv1d(self.module)
        return layer and self.tensor_name == "weight"

    def unseen_by_calibration(self) -> str | None:
        """Why calibration knows no inputs that it multiplies, of weights that others would expect.

        None for weights of linear layers and 2-D convolutions, and for what is no such weight.
        """
        kind = parametrize.type_before_parametrizations(self.module)
        if issubclass(kind, nn.MultiheadAttention) and self.tensor_name.endswith("proj_weight"):
            return "of nn.MultiheadAttention, which has no layer for it"
        is_other = issubclass(kind, _ConvNd | nn.Bilinear | nn.RNNBase | nn.RNNCellBase)
        if self.weight is not None and not is_other and _is_stack(self.weight):
            return (
                f"a stack of {len(self.weight)} matrices that no layer multiplies (experts, say): "
                "calibration knows linear layers and 2-D convolutions"
            )
        if self.is_layer_weight or not is_other or "weight" not in self.tensor_name:
            return None
        return f"of nn.{kind.__name__}: calibration knows linear layers and 2-D convolutions"

    def obstacle(self, *, selects: bool = True) -> str | None:
        """Why it cannot take a mask, with a remedy; None where it can.

        Args:
            selects: whether a pattern is to select the mask, which takes a matrix; else it is there
                already, on a bias perhaps.
        """
        if _is_torch_pruned(self.module, self.tensor_name.removesuffix("_orig")):
            return (
                "is pruned by torch.nn.utils.prune; call gossamer.prune.from_torch_prune(model), "
                "which makes its mask a live one"
            )
        if self.weight is None:
            chain = self.module.parametrizations[self.tensor_name]  # type: ignore[index]
            names = ", ".join(type(step).__name__ for step in chain)
            return (
                f"is parametrized already ({names}); make it plain first: torch.nn.utils."
                f"parametrize.remove_parametrizations(module, '{self.tensor_name}')"
            )
        if isinstance(self.weight, SparseWeight):
            return (
                "is packed; call gossamer.desparsify_(model) first, and sparsify_ when it is pruned"
            )
        if isinstance(self.weight, UninitializedParameter):
            return "has no shape yet; run the model once on a batch first"
        if not self.weight.is_floating_point():
            return f"has dtype {self.weight.dtype}; floating-point parameters are accepted"
        if selects and self.weight.dim() < 2:
            return (
                f"has shape {list(self.weight.shape)}; patterns are defined for weights of two or "
                "more dimensions"
            )
        if any(isinstance(module, nn.RNNBase) for module, _ in self.places):
            return (
                f"belongs to nn.{type(self.module).__name__}, which reads its weights past any "
                "mask; build the recurrence from cells (nn.LSTMCell, nn.GRUCell, nn.RNNCell)"
            )
        return None


def _is_stack(weight: Tensor) -> bool:
    """Whether a parameter is several matrices; tables of positions and scales are none."""
    if isinstance(weight, UninitializedParameter):
        return False
    return weight.dim() == 3 and weight.is_floating_point() and min(weight.shape) > 1


def find_targets(model: nn.Module) -> dict[str, Target]:
    """Every parameter of a model by its full name, in the order of `model.named_modules()`."""
    found: dict[str, Target] = {}
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module_fqn, module in model.named_modules():
        if isinstance(module, parametrize.ParametrizationList | Mask):
            continue
        for name, weight, mask in _parameters_of(module):
            target = Target(join(module_fqn, name), module_fqn, module, name, weight, mask)
            found[target.fqn] = target
            target.places = places.setdefault(id(target if weight is None else weight), [])
            target.places.append((module, name))
    return found


def _parameters_of(module: nn.Module) -> Iterable[tuple[str, Tensor | None, Mask | None]]:
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, parameter, None
        plain = name.removesuffix("_orig")
        if plain != name and _is_torch_pruned(module, plain):
            yield plain, None, None
    if not parametrize.is_parametrized(module):
        return
    for name, chain in module.parametrizations.items():  # type: ignore[union-attr, operator]
        mask = mask_of(module, name)
        yield name, (None if mask is None else chain.original), mask


def kept_dense(model: nn.Module) -> dict[str, str]:
    """Weights that one-shot methods leave dense where they are not named, with the reason.

    The layer that gives a language model's logits, after its own word, and routers of experts.
    """
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    found = {
        join(name, "weight"): "gives the logits"
        for name, module in model.named_modules()
        if module is head and isinstance(getattr(module, "weight", None), Tensor)
    }
    return found | {join(name, "weight"): "routes tokens to experts" for name in routers(model)}


def one_shot_config(model: nn.Module) -> Config:
    """The default config, but for what `kept_dense` names."""
    kept = kept_dense(model)
    return {**dict.fromkeys(kept), "*": {}} if kept else None


def _is_torch_pruned(module: nn.Module, name: str) -> bool:
    """Whether torch.nn.utils.prune computes a weight from two others before each call."""
    return f"{name}_orig" in module._parameters and f"{name}_mask" in module._buffers


def choose(targets: Mapping[str, Target], config: Config) -> list[tuple[Target, Mapping[str, Any]]]:
    """The parameters that a config of `Sparsifier.prepare` means, each with its own settings.

    Raises:
        ValueError: a name does not exist, names a parameter twice, or nothing is chosen.
        TypeError: the config is none of what is accepted.
    """
    if config is None:
        chosen: list[tuple[Target, Mapping[str, Any]]] = [(t, {}) for t in _defaults(targets)]
    elif isinstance(config, Mapping):
        chosen = _by_glob(targets, config)
    elif isinstance(config, Sequence) and not isinstance(config, str):
        chosen = [_by_entry(targets, entry) for entry in config]
    else:
        raise TypeError(
            f"config is {config!r}: None, a list of dicts with 'tensor_fqn', or a dict of names to "
            'patterns is accepted, e.g. {"encoder.*": "2:4"}'
        )
    if not chosen:
        raise ValueError(
            "nothing to prune: the config selects no weight, or the model has no linear or 2-D "
            'convolution layer with a plain weight; name parameters: config=[{"tensor_fqn": ...}]'
        )
    _refuse_twice(chosen)
    return chosen


def _defaults(targets: Mapping[str, Target]) -> list[Target]:
    """Weights of linear layers and 2-D convolutions, shared ones once.

    Parametrized ones are left out, and so are those that something else uses too, such as an
    embedding.
    """
    weights = [t for t in targets.values() if t.is_layer_weight and t.weight is not None]
    users = [t for t in targets.values() if not t.is_layer_weight and t.weight is not None]
    seen = {id(t.weight) for t in users}
    chosen = []
    for target in weights:
        if id(target.weight) not in seen:
            seen.add(id(target.weight))
            chosen.append(target)
    return chosen


def _by_entry(
    targets: Mapping[str, Target], entry: Mapping[str, Any]
) -> tuple[Target, Mapping[str, Any]]:
    """One dict of a list, as `torch.ao.pruning` takes them.

    "tensor_fqn" may begin with a dot, or be left out beside "module" or "module_fqn" ("tensor_name"
    is "weight" where it is not given); what is given twice has to agree.
    """
    if not isinstance(entry, Mapping) or not {"tensor_fqn", "module", "module_fqn"} & set(entry):
        raise ValueError(
            f"config entry {entry!r} names no parameter: a dict with 'tensor_fqn' is accepted, "
            'e.g. {"tensor_fqn": "0.weight", "pattern": "2:4"}, or one with \'module\' or '
            "'module_fqn' and 'tensor_name'"
        )
    fqn = str(entry["tensor_fqn"]).removeprefix(".") if "tensor_fqn" in entry else None
    if fqn is None:
        fqn = join(_module_of(targets, entry), entry.get("tensor_name", "weight"))
    if fqn not in targets:
        raise ValueError(f"config: the model has no parameter '{fqn}'{_nearest(fqn, targets)}")
    target = targets[fqn]
    for key in ("module", "module_fqn", "tensor_name"):
        if key in entry and entry[key] is not getattr(target, key) != entry[key]:
            raise ValueError(
                f"config: '{fqn}' is given with the {key} {entry[key]!r}, but its own is "
                f"{getattr(target, key)!r}; leave {key} out"
            )
    place = ("tensor_fqn", "module", "module_fqn", "tensor_name")
    return target, {key: value for key, value in entry.items() if key not in place}


def _module_of(targets: Mapping[str, Target], entry: Mapping[str, Any]) -> str:
    """The name of the module that an entry without "tensor_fqn" means."""
    if "module_fqn" in entry:
        return str(entry["module_fqn"])
    for target in targets.values():
        if target.module is entry["module"]:
            return target.module_fqn
    raise ValueError(
        f"config: {type(entry['module']).__name__} is no module with parameters of this model; "
        "pass one of model.modules(), or its name as 'module_fqn'"
    )


def _by_glob(
    targets: Mapping[str, Target], config: Mapping[str, Any]
) -> list[tuple[Target, Mapping[str, Any]]]:
    wishes: dict[str, Any] = {}
    defaults = _defaults(targets)
    for glob, wish in config.items():
        if not isinstance(glob, str):
            raise TypeError(
                f"config: {glob!r} is no name: a dict maps full names of parameters, or globs, to "
                'patterns, e.g. {"0.weight": "2:4"}'
            )
        matches = [t.fqn for t in _matches(glob, targets, defaults)]
        if not matches:
            names = [*targets, *(t.module_fqn for t in defaults)]
            raise ValueError(f"config: '{glob}' matches no parameter{_nearest(glob, names)}")
        for fqn in matches:
            wishes.setdefault(fqn, wish)
    return [
        (targets[fqn], wish if isinstance(wish, Mapping) else {"pattern": wish})
        for fqn, wish in wishes.items()
        if wish is not None
    ]


def _matches(glob: str, targets: Mapping[str, Target], defaults: list[Target]) -> list[Target]:
    if glob in targets:
        return [targets[glob]]
    weights = [t for t in defaults if fnmatchcase(t.fqn, glob) or fnmatchcase(t.module_fqn, glob)]
    return weights or [
        t for t in targets.values() if fnmatchcase(t.fqn, glob) and t.obstacle() is None
    ]


def _refuse_twice(chosen: list[tuple[Target, Mapping[str, Any]]]) -> None:
    seen: dict[int, str] = {}
    for target, _ in chosen:
        if target.weight is None:
            continue
        first = seen.setdefault(id(target.weight), target.fqn)
        if first is not target.fqn or sum(t.fqn == first for t, _ in chosen) > 1:
            other = "named twice" if first == target.fqn else f"the same parameter as '{first}'"
            raise ValueError(f"config: '{target.fqn}' is {other}; name a parameter once")


def _nearest(name: str, names: Iterable[str]) -> str:
    names = [known for known in dict.fromkeys(names) if known]
    close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    if close:
        return "; the nearest names are " + ", ".join(f"'{known}'" for known in close)
    shown = ", ".join(f"'{known}'" for known in names[:5]) + (", …" if len(names) > 5 else "")
    return f"; its parameters are {shown}" if names else "; it has none"
