# SPDX-License-Identifier: BSD-3-Clause
"""What every sparsifier has: groups, live masks, steps, and the way back to plain weights."""

from __future__ import annotations

import copy
import difflib
import fnmatch
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from gossamer import _ops as _ops
from gossamer.prune.mask import attach, mask_of
from gossamer.prune.matrix import from_matrix, to_matrix

__all__ = ["CustomPattern", "Sparsifier"]

Config = Sequence[Mapping[str, Any]] | Mapping[str, Any] | None

_GROUPED = ("nm", "vnm")
_NOT_SAVED = ("module", "module_fqn", "tensor_name")


@runtime_checkable
class CustomPattern(Protocol):
    """A pattern of one's own: anything that selects a mask from scores."""

    def select(self, scores: Tensor) -> Tensor:
        """Scores [out, in], float32 or float64 on the CPU, to a bool mask of that shape; True is
        kept.
        """


def pattern_kind(pattern: str) -> str:
    """The kind of a pattern's text: unstructured, nm, block, vnm or fanin.

    ValueError for other texts.
    """
    try:
        return str(json.loads(torch.ops.gossamer.parse_pattern(pattern))["kind"])
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[0]) from None


class Sparsifier:
    """Finds masks, over one or many steps.

    The contract is that of `torch.ao.pruning.BaseSparsifier`.
        `prepare` puts a live mask (all True) on each selected weight, `step` updates the masks,
        `squash_mask` leaves plain weights
        with zeros. A subclass that defines `score` is complete; one that needs more overrides
        `_step` (all groups at
        once) or `pattern_of` (a pattern that changes with the step).

        Masks are buffers of the model, so the model's own `state_dict` carries them; the
        sparsifier's `state_dict` adds the step.
        Scores see the dense weight under the mask, so a weight that was dropped can come back.

    Args:
            pattern: a pattern's text (docs/patterns.md), or an object with `select(scores)`.
            scope: where scores compete: "row", "tensor" or "global".
            **defaults: hyperparameters of a subclass; a config may set each of them per weight.

    Raises:
            ValueError: the pattern or scope cannot be read.
    """

    def __init__(
        self, pattern: str | CustomPattern, scope: str = "tensor", **defaults: Any
    ) -> None:
        self.defaults: dict[str, Any] = {"pattern": pattern, "scope": scope, **defaults}
        self._check(self.defaults, "the sparsifier")
        self.groups: list[dict[str, Any]] = []
        self.enable_mask_update = True
        self.step_count = 0
        self.model: nn.Module | None = None

    # --- What a subclass overrides ----------------------------------------------------------------

    def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """How much each element of `weight` (dense, unmasked) is worth keeping; same shape, higher
        is kept first.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no score(weight, group)")

    def pattern_of(self, group: dict[str, Any]) -> str | CustomPattern | None:
        """The pattern of a group at this step; None leaves its mask as it is."""
        pattern: str | CustomPattern = group["pattern"]
        return pattern

    def _step(self) -> None:
        """Updates the masks of all groups.

        Weights of equal pattern and scope are selected together.
        """
        together: dict[tuple[str, str], list[tuple[dict[str, Any], Tensor]]] = {}
        for group in self.groups:
            pattern = self.pattern_of(group)
            if pattern is None:
                continue
            weight = self.dense_weight(group)
            scores = self.score(weight, group)
            if scores.shape != weight.shape:
                raise ValueError(
                    f"{type(self).__name__}.score returned shape {list(scores.shape)} for "
                    f"{group['tensor_fqn']} of shape "
                    f"{list(weight.shape)}; one score an element is accepted"
                )
            scores = scores.detach().to(
                "cpu", torch.float64 if scores.dtype == torch.float64 else torch.float32
            )
            if isinstance(pattern, str):
                matrix = to_matrix(scores, groups_along_input=pattern_kind(pattern) in _GROUPED)
                together.setdefault((pattern, group["scope"]), []).append((group, matrix))
            else:
                self._write(
                    group,
                    self._select_custom(
                        pattern, to_matrix(scores, groups_along_input=False), group
                    ),
                )
        for (pattern, scope), members in together.items():
            masks = torch.ops.gossamer.select_masks(
                [matrix for _, matrix in members], pattern, scope
            )
            for (group, _), mask in zip(members, masks, strict=True):
                self._write(group, mask)

    # --- The contract -----------------------------------------------------------------------------

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """Puts a live mask on each selected weight; on weights that have one already, it is kept.

        Args:
            model: changed in place; as it was where this raises.
            config: None selects every `nn.Linear` and `nn.Conv2d` weight that is not parametrized.
            A list holds
                dicts with "tensor_fqn" (any parameter of two or more dimensions) and
                hyperparameters. A dict maps
                globs of names to a pattern, a dict of hyperparameters, or None (leave dense); the
                first that
                matches decides.

        Returns:
            The model.

        Raises:
            ValueError: a name does not exist (the nearest are named), a parameter cannot take a
            mask, or a hyperparameter
                is wrong.
        """
        groups = [self._group(model, fqn, own) for fqn, own in self._selected(model, config)]
        if not groups:
            raise ValueError(
                "nothing to sparsify: the model has no nn.Linear or nn.Conv2d weight that is "
                "selected; name parameters "
                'with config=[{"tensor_fqn": …}]'
            )
        for group in groups:
            weight = getattr(group["module"], group["tensor_name"])
            if mask_of(group["module"], group["tensor_name"]) is None:
                attach(
                    group["module"], group["tensor_name"], torch.ones_like(weight, dtype=torch.bool)
                )
        self.model = model
        self.groups = groups
        return model

    def step(self) -> None:
        """Counts one step and updates the masks, unless `enable_mask_update` is False."""
        if not self.groups:
            raise RuntimeError("step() before prepare(model): there is nothing to mask yet")
        if self.enable_mask_update:
            with torch.no_grad():
                self._step()
        self.step_count += 1

    def squash_mask(
        self,
        params_to_keep: Iterable[str] | None = None,
        params_to_keep_per_layer: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """Leaves plain weights with zeros.

        Each stays the Parameter it was, so optimizers remain valid.

        Args:
                    params_to_keep: hyperparameters to leave on each module as
                    `module.sparse_params`.
                    params_to_keep_per_layer: the same for single modules, by the module's name.
        """
        for group in self.groups:
            module, name = group["module"], group["tensor_name"]
            step = mask_of(module, name)
            if step is None:
                continue
            stack = module.parametrizations[name]
            if len(stack) > 1:
                raise ValueError(
                    f"{group['tensor_fqn']} has {len(stack)} parametrizations, of which the mask "
                    f"is one; remove the others "
                    "with torch.nn.utils.parametrize.remove_parametrizations first"
                )
            with torch.no_grad():
                stack.original.copy_(step(stack.original))
            parametrize.remove_parametrizations(module, name, leave_parametrized=False)
            wanted = [
                *(params_to_keep or ()),
                *(params_to_keep_per_layer or {}).get(group["module_fqn"], ()),
            ]
            if wanted:
                module.sparse_params = {key: group[key] for key in wanted}
        self.groups = []

    @property
    def state(self) -> dict[str, dict[str, Tensor]]:
        """The mask of each weight, by the weight's name."""
        return {group["tensor_fqn"]: {"mask": self.mask(group)} for group in self.groups}

    def state_dict(self) -> dict[str, Any]:
        """Step, hyperparameters and masks, as plain data and tensors.

        The model's own state has the masks too.
        """
        return {
            "step": self.step_count,
            "enable_mask_update": self.enable_mask_update,
            "state": {fqn: {"mask": own["mask"].clone()} for fqn, own in self.state.items()},
            "groups": [
                {key: _plain(value) for key, value in group.items() if key not in _NOT_SAVED}
                for group in self.groups
            ],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Takes up where `state_dict()` left off.

        Call `prepare` first; the argument is not changed.

        Raises:
                    ValueError: the weights are not those of this sparsifier (strict), or a mask
                    has another shape. Nothing
                        has changed then.
        """
        ours = {group["tensor_fqn"]: group for group in self.groups}
        theirs: Mapping[str, Any] = state_dict["state"]
        missing, unexpected = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
        if strict and (missing or unexpected):
            raise ValueError(
                f"the state belongs to other weights (missing: {missing}, unexpected: "
                f"{unexpected}); call prepare() with the "
                "same config, or pass strict=False"
            )
        shared = [fqn for fqn in ours if fqn in theirs]
        for fqn in shared:
            if theirs[fqn]["mask"].shape != self.mask(ours[fqn]).shape:
                raise ValueError(
                    f"the mask of {fqn} has shape {list(theirs[fqn]['mask'].shape)}, the weight "
                    f"{list(self.mask(ours[fqn]).shape)}"
                )
        for fqn in shared:
            self.mask(ours[fqn]).copy_(theirs[fqn]["mask"])
        for saved in state_dict["groups"]:
            group = ours.get(saved["tensor_fqn"], {})
            for key, value in saved.items():
                # A pattern object is saved as its text; the one that was prepared stays.
                if key in group and not isinstance(group[key], CustomPattern):
                    group[key] = copy.deepcopy(value)
        self.step_count = int(state_dict["step"])
        self.enable_mask_update = bool(state_dict.get("enable_mask_update", True))

    # --- What subclasses may use ------------------------------------------------------------------

    def dense_weight(self, group: dict[str, Any]) -> Tensor:
        """The weight under the mask."""
        weight: Tensor = group["module"].parametrizations[group["tensor_name"]].original
        return weight

    def mask(self, group: dict[str, Any]) -> Tensor:
        """The mask itself: bool, the weight's shape."""
        step = mask_of(group["module"], group["tensor_name"])
        if step is None:
            raise RuntimeError(
                f"{group['tensor_fqn']} has no live mask any more; call prepare(model) again"
            )
        return step.mask

    def __repr__(self) -> str:
        lines = [
            f"{type(self).__name__}({', '.join(f'{key}={_plain(value)!r}' for key, value in self.defaults.items())})"
        ]
        for group in self.groups:
            kept = self.mask(group)
            lines.append(
                f"  {group['tensor_fqn']}: {_plain(group['pattern'])}, "
                f"{1 - kept.float().mean().item():.1%} zeros"
            )
        return "\n".join(lines)

    # --- Inside -----------------------------------------------------------------------------------

    def _write(self, group: dict[str, Any], matrix: Tensor) -> None:
        mask = self.mask(group)
        mask.copy_(from_matrix(matrix, mask))

    @staticmethod
    def _select_custom(pattern: CustomPattern, scores: Tensor, group: dict[str, Any]) -> Tensor:
        mask = pattern.select(scores)
        if mask.dtype != torch.bool or mask.shape != scores.shape:
            raise ValueError(
                f"pattern {pattern} selected {mask.dtype} of shape {list(mask.shape)} for "
                f"{group['tensor_fqn']}; "
                f"torch.bool of shape {list(scores.shape)} is accepted"
            )
        return mask

    @staticmethod
    def _check(settings: Mapping[str, Any], owner: str) -> None:
        pattern, scope = settings["pattern"], settings["scope"]
        if isinstance(pattern, str):
            pattern_kind(pattern)
        elif not isinstance(pattern, CustomPattern):
            raise ValueError(
                f"{owner} has the pattern {pattern!r}: a text such as '2:4' or "
                f"'unstructured:0.9', or an object with "
                "select(scores) is accepted"
            )
        if scope not in ("row", "tensor", "global"):
            raise ValueError(
                f"{owner} has the scope {scope!r}: 'row', 'tensor' or 'global' is accepted"
            )

    def _selected(self, model: nn.Module, config: Config) -> list[tuple[str, Mapping[str, Any]]]:
        weights = _default_weights(model)
        if config is None:
            return [(fqn, {}) for fqn in weights]
        if isinstance(config, Mapping):
            chosen: list[tuple[str, Mapping[str, Any]]] = []
            names = [*weights, *(fqn for fqn, _ in model.named_parameters() if fqn not in weights)]
            unmatched = {
                glob for glob in config if not any(fnmatch.fnmatchcase(fqn, glob) for fqn in names)
            }
            for glob in sorted(unmatched):
                raise ValueError(f"no parameter matches {glob!r}{_nearest(glob, names)}")
            for fqn in names:
                glob = next((glob for glob in config if fnmatch.fnmatchcase(fqn, glob)), None)
                # A glob selects default weights; a full name any parameter.
                if glob is None or config[glob] is None or (fqn not in weights and glob != fqn):
                    continue
                own = config[glob]
                chosen.append((fqn, own if isinstance(own, Mapping) else {"pattern": own}))
            return chosen
        for entry in config:
            if "tensor_fqn" not in entry:
                raise ValueError(
                    f'config entry {dict(entry)!r} names no weight: "tensor_fqn" is required'
                )
        return [
            (entry["tensor_fqn"], {k: v for k, v in entry.items() if k != "tensor_fqn"})
            for entry in config
        ]

    def _group(self, model: nn.Module, fqn: str, own: Mapping[str, Any]) -> dict[str, Any]:
        module_fqn, _, tensor_name = fqn.rpartition(".")
        modules = dict(model.named_modules())
        module = modules.get(module_fqn)
        weight = getattr(module, tensor_name, None)
        if module is None or not isinstance(weight, Tensor):
            names = [name for name, _ in model.named_parameters()]
            raise ValueError(f"the model has no parameter {fqn!r}{_nearest(fqn, names)}")
        if weight.dim() < 2:
            raise ValueError(
                f"{fqn} has shape {list(weight.shape)}: patterns are defined for weights of two "
                f"or more dimensions"
            )
        if not weight.is_floating_point():
            raise ValueError(
                f"{fqn} has dtype {weight.dtype}: a floating-point parameter is accepted"
            )
        if (
            parametrize.is_parametrized(module, tensor_name)
            and mask_of(module, tensor_name) is None
        ):
            raise ValueError(
                f"{fqn} is parametrized already "
                f"({type(module.parametrizations[tensor_name][0]).__name__}); remove that "
                "with torch.nn.utils.parametrize.remove_parametrizations first"
            )
        unknown = sorted(set(own) - set(self.defaults))
        if unknown:
            raise ValueError(
                f"{fqn}: unknown hyperparameters {unknown}; {sorted(self.defaults)} are accepted"
            )
        group = {
            "tensor_fqn": fqn,
            "module_fqn": module_fqn,
            "module": module,
            "tensor_name": tensor_name,
            **self.defaults,
            **own,
        }
        self._check(group, fqn)
        return group


def _default_weights(model: nn.Module) -> list[str]:
    """The weights that `prepare` selects by itself: of linear and 2-D convolution layers, masked
    ones included.
    """
    names = []
    for module_fqn, module in model.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        if parametrize.is_parametrized(module, "weight") and mask_of(module, "weight") is None:
            continue
        names.append(f"{module_fqn}.weight" if module_fqn else "weight")
    return names


def _nearest(name: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"; the nearest names are {', '.join(close)}" if close else ""


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, CustomPattern) else value
