# SPDX-License-Identifier: BSD-3-Clause
"""What every sparsifier has: groups, live masks, steps, and the way back to plain weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gossamer.prune.groups import (
    Group,
    described,
    hyperparameters,
    new_group,
    plain,
    settings_of,
    sparse_params,
    warn_unfinished,
    zero_dropped,
)
from gossamer.prune.mask import Mask, attach, detach, live_mask, masked_parameters
from gossamer.prune.pattern import CustomPattern, column_block, read_pattern
from gossamer.prune.saved import pair, read_state, take, write_state
from gossamer.prune.selection import Candidate, Rival, select_all
from gossamer.prune.targets import Config, Target, choose, find_targets

__all__ = ["Sparsifier"]

_SCOPES = ("row", "tensor", "global")


class Sparsifier:
    """Finds masks, over one or many steps.

    `prepare` puts a live mask (nothing dropped) on each selected weight, `step` updates the masks,
    `squash_mask` leaves plain weights with zeros: the contract of
    `torch.ao.pruning.BaseSparsifier`. A subclass that defines `score` is complete. One that needs
    more overrides `pattern_of` (a pattern that changes from step to step), `check` (its own
    hyperparameters), `unfinished` (what `squash_mask` warns of), `update_mask` (one weight at a
    time) or `_step` (all weights together).

    Scores see the dense weight under the mask, so a weight that was dropped can come back. It gets
    no gradient meanwhile; weight decay and momentum do act on it (see `attach_optimizer`).

    Masks are buffers of the model, and so is the number of steps they have seen: a model's own
    `state_dict` is enough to go on. `copy.deepcopy((model, sparsifier))` copies the two together.

    Attributes:
        defaults: the hyperparameters of weights for which `prepare` is told nothing else.
        groups: one dict for each weight: its hyperparameters, and "tensor_fqn", "module_fqn",
            "module", "tensor_name".
        state: what a subclass remembers of each weight between steps, by full name: tensors and
            plain data, saved by `state_dict`.
        enable_mask_update: False leaves all masks as they are; steps are counted still.
        model: the prepared model, None before `prepare` and after `squash_mask`.
        dense_gradients: of the class; True gives dropped weights gradients too (extending.md).

    Args:
        pattern: a pattern's text (docs/patterns.md), or an object with `select(scores)`.
        scope: where scores compete: "row", "tensor", "global", or "columns:N" (all rows of N
            neighbouring columns; of an object only one that is `grouped`, where it is "tensor").
        **defaults: hyperparameters of a subclass; a config may set each of them for a weight.

    Raises:
        ValueError: a hyperparameter is not accepted.
    """

    dense_gradients: ClassVar[bool] = False

    def __init__(
        self, pattern: str | CustomPattern, scope: str = "tensor", **defaults: Any
    ) -> None:
        self.defaults: dict[str, Any] = {"pattern": pattern, "scope": scope, **defaults}
        self.groups: list[Group] = []
        self.state: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        self.enable_mask_update = True
        self.model: nn.Module | None = None
        self._steps = 0
        self._loaded: dict[str, Any] | None = None
        self._check("defaults", self.defaults)

    # --- What a subclass overrides ----------------------------------------------------------------

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """How much each element is worth keeping.

        Args:
            weight: the dense parameter under the mask, with its `grad`; any rank and device.
            group: its entry of `groups`.

        Returns:
            A tensor of the weight's shape; the highest are kept first. No NaN.
        """
        raise NotImplementedError(
            f"{type(self).__name__} defines no score(weight, group): return a tensor of the "
            "weight's shape, or override update_mask or _step"
        )

    def pattern_of(self, group: Group) -> str | CustomPattern | None:
        """The pattern of a weight at this step (`step_count`, from 1); None keeps its mask."""
        pattern: str | CustomPattern = group["pattern"]
        return pattern

    def check(self, settings: Mapping[str, Any]) -> None:
        """Refuses hyperparameters with a ValueError; called for the defaults and each weight."""
        pattern, scope = settings["pattern"], settings["scope"]
        if not isinstance(pattern, str | CustomPattern):
            raise ValueError(
                f"pattern {pattern!r}: a text such as '2:4' or 'unstructured:0.9', or an object "
                "with select(scores) is accepted"
            )
        if scope not in _SCOPES and not column_block(scope):
            raise ValueError(
                f"scope {scope!r}: 'row', 'tensor', 'columns:N' or 'global' is accepted"
            )

    def unfinished(self, group: Group) -> str | None:
        """What a weight's mask lacks, for whoever squashes it now; None where it is complete."""
        updates = self.step_count and self.enable_mask_update
        if updates or self.last_update(group) or not bool(self.mask(group).all()):
            return None
        return "step() has selected no mask, so that it stays dense"

    def update_mask(self, module: nn.Module, tensor_name: str, **group: Any) -> None:
        """Selects the mask of one weight by itself, whatever its scope.

        A subclass that overrides this has it called for each weight at each step, with the items of
        its group.
        """
        self._select([{"module": module, "tensor_name": tensor_name, **group}])

    def _step(self) -> None:
        """Updates all masks; weights of equal pattern and scope "global" compete together."""
        if type(self).update_mask is Sparsifier.update_mask:
            self._select(self.groups)
            return
        for group in self.groups:
            self.update_mask(**group)

    # --- The contract -----------------------------------------------------------------------------

    @property
    def step_count(self) -> int:
        """How many times `step` was called, a call in progress included."""
        return int(self._mask(self.groups[0]).steps) if self.groups else self._steps

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """Puts a live mask on each selected weight.

        A live mask that is there already is kept, with the steps it has seen. A parameter that
        several modules share gets one mask in all of them. The masked weights come after the other
        parameters of their module: to resume, make the optimizer on the same side of `prepare`.

        Args:
            model: changed in place; as it was where this raises.
            config: None selects the weights of all linear layers and 2-D convolutions that have no
                other parametrization and that nothing else uses (a tied embedding does); after
                `load_state_dict`, the weights that were saved. A list holds dicts with "tensor_fqn"
                (any parameter of two or more dimensions) and hyperparameters. A dict maps names to
                a pattern, a dict of hyperparameters, or None (leave dense); the first that matches
                decides. A name is the full name of any parameter, or a glob of names of parameters
                or modules, which takes the linear and convolution weights among its matches, and
                all of them where there are none.

        Returns:
            The model.

        Raises:
            ValueError: a name does not exist (the nearest are named), a parameter cannot take a
                mask, a hyperparameter is not accepted, or a pattern would keep nothing of a weight.
            RuntimeError: the sparsifier has a model already.
        """
        if self.groups:
            raise RuntimeError(
                "prepare: this sparsifier has a model already; call squash_mask() first, or make "
                "another sparsifier"
            )
        if config is None and self._loaded is not None:
            config = self._loaded["groups"]
        chosen = choose(find_targets(model), config)
        groups = [self._group(target, settings) for target, settings in chosen]
        if self._loaded is not None:
            self._check_loaded(groups, self._loaded, strict=True)
        attach(
            (target.places, self._new_mask(target.weight))
            for target, _ in chosen
            if target.mask is None and target.weight is not None
        )
        self.model, self.groups = model, groups
        for group in groups:
            self._mask(group).dense_gradients = self.dense_gradients
        self._set_steps(max(int(self._mask(group).steps) for group in groups))
        if self._loaded is not None:
            self._take(self._loaded)
            self._loaded = None
        return model

    def step(self) -> None:
        """Counts a step and updates the masks; call it after each step of the optimizer.

        Where this raises, the step is not counted, and no mask has changed (unless a subclass
        writes them one by one).

        Raises:
            RuntimeError: nothing is prepared.
            ValueError: scores have another shape than their weight, or are NaN.
        """
        self._need_groups("step")
        before = self.step_count
        self._set_steps(before + 1)
        if not self.enable_mask_update:
            return
        try:
            with torch.no_grad():
                self._step()
        except BaseException:
            self._set_steps(before)
            raise

    def squash_mask(
        self,
        params_to_keep: Iterable[str] | None = None,
        params_to_keep_per_layer: Mapping[str, Iterable[str]] | None = None,
    ) -> None:
        """Writes the zeros into the weights and removes the masks.

        Each weight stays the Parameter that it was, so optimizers remain valid. The sparsifier can
        prepare another model then. It warns of weights whose mask is not what it was to become.

        Args:
            params_to_keep: hyperparameters to leave in a dict `sparse_params` on each module.
            params_to_keep_per_layer: the same for single modules, by the module's name.

        Raises:
            RuntimeError: nothing is prepared, or a mask is there no more.
            ValueError: a hyperparameter or module does not exist. Nothing has changed then.
        """
        self._need_groups("squash_mask")
        kept = sparse_params(self.groups, params_to_keep, params_to_keep_per_layer)
        self._check_finished({own["tensor_fqn"]: self.unfinished(own) for own in self.groups})
        masks = [self._mask(group) for group in self.groups]
        weights = [self.dense_weight(group) for group in self.groups]
        steps = self.step_count
        for mask, weight in zip(masks, weights, strict=True):
            with torch.no_grad():
                weight.masked_fill_(~mask.mask, 0)
        own = {id(mask) for mask in masks}
        assert self.model is not None
        detach([(m, name) for _, m, name, mask in masked_parameters(self.model) if id(mask) in own])
        for group, params in zip(self.groups, kept, strict=True):
            if params:
                group["module"].sparse_params = params
        self.model, self.groups, self._steps = None, [], steps
        self.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Steps, hyperparameters and what subclasses remember, as plain data and tensors.

        The masks are in the model's own `state_dict`. A pattern that is an object is saved as its
        text. `torch.load(weights_only=True)` reads it.
        """
        own = self._loaded or {"groups": self.groups, "state": self.state}
        return write_state(self.step_count, self.enable_mask_update, own["groups"], own["state"])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Takes up where `state_dict()` left off; the argument is not changed.

        Before `prepare`, what is loaded waits for it: `prepare(model)` then selects the weights
        that were saved. The masks come with the model's own `load_state_dict`.

        Args:
            state_dict: what `state_dict()` returned.
            strict: whether the saved weights must be those prepared. False takes those in common.

        Raises:
            ValueError: the weights or hyperparameters are not those of this sparsifier. Nothing has
                changed then.
        """
        loaded = read_state(state_dict, (self.defaults, *self.groups))
        if self.groups:
            self._check_loaded(self.groups, loaded, strict)
            self._take(loaded)
        else:
            for group in loaded["groups"]:
                self._settings(group["tensor_fqn"], hyperparameters(group), complete=True)
            self._loaded = loaded
            self.enable_mask_update = bool(loaded["enable_mask_update"])
            self._steps = int(loaded["steps"])

    # --- What subclasses and optimizers may use ---------------------------------------------------

    def dense_weight(self, group: Group) -> Tensor:
        """The parameter under the mask, which is what an optimizer holds."""
        self._mask(group)
        weight: Tensor = group["module"].parametrizations[group["tensor_name"]].original
        return weight

    def mask(self, group: Group) -> Tensor:
        """The mask itself, a buffer of the model: bool, the weight's shape; True is kept."""
        return self._mask(group).mask

    def last_update(self, group: Group) -> int:
        """The step that selected the mask, 0 where none did yet; kept in the model's buffers."""
        return int(self._mask(group).updated)

    def zero_pruned_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Zeroes an optimizer's state (momentum, second moments) of weights that are not kept.

        Only state tensors of the weight's own shape are touched.
        """
        for group in self.groups:
            state = optimizer.state.get(self.dense_weight(group), {})
            zero_dropped(state.values(), self.mask(group))

    def attach_optimizer(self, optimizer: torch.optim.Optimizer) -> RemovableHandle:
        """Calls `zero_pruned_state` after each step of an optimizer, until the handle is removed.

        Without it, momentum from before a weight was dropped goes on moving the dense weight.
        """
        return optimizer.register_step_post_hook(lambda own, *_: self.zero_pruned_state(own))

    def __repr__(self) -> str:
        own = ", ".join(f"{key}={plain(value)!r}" for key, value in self.defaults.items())
        lines = [described(group, self.defaults, self.mask(group)) for group in self.groups]
        return "\n".join([f"{type(self).__name__}({own})", *lines])

    # --- Selection and groups ---------------------------------------------------------------------

    def _select(self, groups: Iterable[Group]) -> None:
        """Finds the masks of all groups before it writes any."""
        rivals: list[Rival] = []
        chosen: list[Group] = []
        for group in groups:
            pattern = self.pattern_of(group)
            if pattern is None:
                continue
            weight = self.dense_weight(group)
            scores = self.score(weight, group)
            candidate = Candidate.of(group["tensor_fqn"], group["module"], weight, scores, pattern)
            rivals.append(Rival(candidate, pattern, group["scope"]))
            chosen.append(group)
        for group, mask in zip(chosen, select_all(rivals), strict=True):
            live = self._mask(group)
            live.mask.copy_(mask)
            live.updated.fill_(self.step_count)

    def _new_mask(self, weight: Tensor) -> Mask:
        """The live mask that `prepare` puts on a weight, with nothing dropped."""
        return Mask(torch.ones_like(weight, dtype=torch.bool))

    def _mask(self, group: Group) -> Mask:
        return live_mask(group["module"], group["tensor_name"], group["tensor_fqn"])

    def _check_finished(self, found: Mapping[str, str | None]) -> None:
        warn_unfinished(found)

    def _need_groups(self, what: str) -> None:
        if not self.groups:
            raise RuntimeError(f"{what}: there are no masks; call prepare(model) first")

    def _set_steps(self, steps: int) -> None:
        self._steps = steps
        for group in self.groups:
            self._mask(group).steps.fill_(steps)

    def _group(self, target: Target, own: Mapping[str, Any]) -> Group:
        obstacle = target.obstacle()
        if obstacle:
            raise ValueError(f"prepare: '{target.fqn}' {obstacle}")
        return new_group(target, self._settings(target.fqn, own))

    def _settings(
        self, owner: str, own: Mapping[str, Any], complete: bool = False
    ) -> dict[str, Any]:
        """The defaults with a weight's own hyperparameters, checked."""
        settings = settings_of(type(self).__name__, self.defaults, owner, own, complete)
        self._check(owner, settings)
        return settings

    def _check(self, owner: str, settings: dict[str, Any]) -> None:
        try:
            settings["pattern"] = read_pattern(settings["pattern"])
            self.check(settings)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}, '{owner}': {error}") from None

    # --- Saved state ------------------------------------------------------------------------------

    def _check_loaded(self, groups: list[Group], loaded: Mapping[str, Any], strict: bool) -> None:
        for group, saved in pair(groups, loaded, strict=strict):
            self._settings(group["tensor_fqn"], hyperparameters(saved), complete=True)

    def _take(self, loaded: Mapping[str, Any]) -> None:
        take(self.groups, self.state, loaded)
        self.enable_mask_update = bool(loaded["enable_mask_update"])
        self._set_steps(int(loaded["steps"]))
