# SPDX-License-Identifier: BSD-3-Clause
"""The sparsifiers that need nothing but the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gossamer.prune.chance import random_scores
from gossamer.prune.groups import Group
from gossamer.prune.mask import zeros_of
from gossamer.prune.pattern import CustomPattern, own_sparsity, pattern_at
from gossamer.prune.schedule import Schedule, scheduled_sparsity
from gossamer.prune.sparsifier import Sparsifier

__all__ = ["GradualMagnitude", "Magnitude", "Random", "Taylor"]


class Magnitude(Sparsifier):
    """Keeps the largest weights: the score is |w|."""

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """|w|."""
        return weight.abs()


class Random(Sparsifier):
    """Keeps weights at random: other ones at each step, the same ones in each run.

    Scores follow from the seed, the weight's full name and the step alone. The global random state
    is neither read nor moved.

    Args:
        pattern: as for `Sparsifier`.
        scope: as for `Sparsifier`.
        seed: any integer.
    """

    def __init__(self, pattern: str | CustomPattern, scope: str = "tensor", seed: int = 0) -> None:
        super().__init__(pattern, scope, seed=seed)

    def check(self, settings: Mapping[str, Any]) -> None:
        """The seed is an integer."""
        super().check(settings)
        _check_integer("seed", settings["seed"])

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """Uniform in [0, 1), float32."""
        return random_scores(group["tensor_fqn"], group["seed"], self.step_count, weight.shape)


class Taylor(Sparsifier):
    """Keeps weights without which the loss would change most: |w·∂L/∂w|, to the first order.

    The gradients are those that `loss.backward()` left, summed over as many calls as there were
    (Molchanov et al. 2019, arXiv:1906.10771, equation 8, whose order this is):

        taylor.prepare(model)
        for batch, wanted in batches:
            loss(model(batch), wanted).backward()
        taylor.step()

    A weight that is dropped gets no gradient, so that it stays dropped in later steps.
    """

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """|w·∂L/∂w|.

        Raises:
            RuntimeError: there is no gradient.
        """
        if weight.grad is None:
            raise RuntimeError(
                f"step: '{group['tensor_fqn']}' has no gradient; call loss.backward() after "
                "prepare(), and optimizer.zero_grad() only after step()"
            )
        return (weight.detach().float() * weight.grad.float()).abs()


class GradualMagnitude(Magnitude):
    """Magnitude pruning whose sparsity grows on a schedule while the model trains.

    Call `step()` after each step of the optimizer. Calls are counted from 1. At call `begin_step`,
    every `every` calls from there, and at call `end_step`, masks are selected for the sparsity that
    the schedule has reached; otherwise they stay as they are. After `end_step` calls the pattern is
    reached, and frozen from then on. Where updates were disabled at call `end_step`, the first call
    after it that may update reaches the pattern.

    `unstructured`, `block` and `fanin` patterns grow to their own sparsity S. `N:M` goes from M
    down to N kept of every M (2:4 is 4:4, then 3:4, then 2:4), each as soon as the schedule allows;
    S is 1 − N/M. `transposable:N:M` and `vnm` do the same, and `vnm` is `unstructured` while it
    would keep more than 4 of M.

    Args:
        pattern: a pattern's text, or an object with `sparsity` and `at(sparsity)`.
        begin_step: the first step that may drop weights; 0 or more.
        end_step: the step at which the pattern is reached; after `begin_step`.
        every: steps between two changes; 1 or more.
        initial_sparsity: fraction of zeros at `begin_step`; at most the pattern's.
        scope: as for `Sparsifier`.
        schedule: "cubic", "cosine", "linear", "constant", a name of `register_schedule`, or a
            function that gives, at t in [0, 1) of the ramp, how much of the way is done, from 0 to
            1. A saved state knows a function by its name alone: load it into a sparsifier that was
            made with the same.

    Raises:
        ValueError: the schedule cannot be, or the pattern is an object that cannot grow.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        begin_step: int,
        end_step: int,
        every: int = 1,
        initial_sparsity: float = 0.0,
        scope: str = "tensor",
        schedule: str | Schedule = "cubic",
    ) -> None:
        super().__init__(
            pattern,
            scope,
            begin_step=begin_step,
            end_step=end_step,
            every=every,
            initial_sparsity=initial_sparsity,
            schedule=schedule,
        )

    def check(self, settings: Mapping[str, Any]) -> None:
        """The pattern can grow from the initial sparsity, and the schedule has a length."""
        super().check(settings)
        pattern, initial = settings["pattern"], settings["initial_sparsity"]
        final = own_sparsity(pattern)
        if final is None:
            raise ValueError(
                f"pattern {pattern}: a text is accepted, e.g. 'unstructured:0.9'; this object has "
                "no `sparsity` that could grow and no `at(sparsity)`: add both, or override "
                "pattern_of of Magnitude for it"
            )
        for key in ("begin_step", "end_step", "every"):
            _check_integer(key, settings[key])
        if settings["begin_step"] < 0 or settings["every"] < 1:
            raise ValueError(
                f"begin_step={settings['begin_step']}, every={settings['every']}: a begin_step "
                "from 0 and an every from 1 are accepted"
            )
        begin, end = settings["begin_step"], settings["end_step"]
        for quarter in range(4):  # A schedule that cannot be is refused before anything is trained.
            step = begin + (end - begin) * quarter // 4
            scheduled_sparsity(settings["schedule"], initial, final, begin, end, step)
        if initial > final:
            raise ValueError(
                f"initial_sparsity={initial} with pattern '{pattern}': at most the pattern's own "
                f"sparsity, {final}, is accepted"
            )

    def pattern_of(self, group: Group) -> str | CustomPattern | None:
        """The pattern at this step's sparsity; None between changes and outside the schedule."""
        step, begin, end = self.step_count, group["begin_step"], group["end_step"]
        if step < end:
            due = step >= begin and (step - begin) % group["every"] == 0
        else:
            due = self.last_update(group) < end
        if not due:
            return None
        final = own_sparsity(group["pattern"])
        assert final is not None
        initial, schedule = group["initial_sparsity"], group["schedule"]
        sparsity = scheduled_sparsity(schedule, initial, final, begin, end, step)
        return pattern_at(group["pattern"], sparsity)

    def unfinished(self, group: Group) -> str | None:
        """That the sparsity has not grown to the pattern's."""
        last, end = self.last_update(group), group["end_step"]
        pattern, final = group["pattern"], own_sparsity(group["pattern"])
        assert final is not None
        if not last and not bool(self.mask(group).all()):
            return None  # A mask that something else selected.
        initial, begin = group["initial_sparsity"], group["begin_step"]
        reached = scheduled_sparsity(group["schedule"], initial, final, begin, end, last)
        if last and pattern_at(pattern, reached) == pattern_at(pattern, final):
            return None
        remedy = "call step() after each step of the optimizer until end_step, or make it smaller"
        if self.step_count >= end:
            remedy = "set enable_mask_update = True and call step() once more"
        return (
            f"{zeros_of(self.mask(group)):.2%} zeros after {self.step_count} of {end} steps, not "
            f"the {final:.2%} of '{pattern}'; {remedy}"
        )


def _check_integer(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name}={value!r}: an integer is accepted")
