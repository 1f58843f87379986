# SPDX-License-Identifier: BSD-3-Clause
"""The sparsifiers that need nothing but the weights."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from gossamer.prune.schedule import cubic_sparsity
from gossamer.prune.sparsifier import CustomPattern, Sparsifier, pattern_kind

__all__ = ["GradualMagnitude", "Magnitude", "Random"]


class Magnitude(Sparsifier):
    """Keeps the largest weights: score |w|."""

    def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """|w|."""
        return weight.abs()


class Random(Sparsifier):
    """Keeps weights at random, the same on every machine: uniform scores from seed, weight name and
    step.

    Args:
        pattern: as for `Sparsifier`.
        scope: as for `Sparsifier`.
        seed: any integer. The global random state is neither read nor moved.
    """

    def __init__(self, pattern: str | CustomPattern, scope: str = "tensor", seed: int = 0) -> None:
        super().__init__(pattern, scope, seed=seed)

    def score(self, weight: Tensor, group: dict[str, Any]) -> Tensor:
        """Uniform in [0, 1), float32."""
        text = f"{group['seed']}/{group['tensor_fqn']}/{self.step_count}"
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "little")
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(weight.shape, generator=generator)


class GradualMagnitude(Magnitude):
    """Magnitude pruning whose sparsity grows along the cubic schedule while the model trains.

    Call `step()` once per optimizer step. Until `begin_step` nothing is dropped (or
    `initial_sparsity` is); masks change every
    `every` steps up to `end_step`, then stay.

    `unstructured`, `block` and `fanin` patterns grow to their own sparsity. `N:M` keeps M, then
    fewer, down to N of
    every M: 4:4, 3:4, 2:4. `vnm` and patterns with `select` grow as `unstructured` and take their
    shape at the last step.

    Args:
        pattern: as for `Sparsifier`.
        begin_step: the first step that may drop weights.
        end_step: the step at which the pattern is reached; after `begin_step`.
        every: steps between two changes.
        initial_sparsity: fraction of zeros at `begin_step`.
        scope: as for `Sparsifier`.
    """

    def __init__(
        self,
        pattern: str | CustomPattern,
        begin_step: int,
        end_step: int,
        every: int = 1,
        initial_sparsity: float = 0.0,
        scope: str = "tensor",
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: 1 or more steps between two changes are accepted")
        cubic_sparsity(initial_sparsity, 1.0, begin_step, end_step, 0)  # refuses what cannot be
        super().__init__(
            pattern,
            scope,
            begin_step=begin_step,
            end_step=end_step,
            every=every,
            initial_sparsity=initial_sparsity,
        )

    def pattern_of(self, group: dict[str, Any]) -> str | CustomPattern | None:
        """The pattern at this step's sparsity; None between changes and outside the schedule."""
        step, begin, end = self.step_count, group["begin_step"], group["end_step"]
        pattern: str | CustomPattern = group["pattern"]
        if step == end:
            return pattern
        if step < begin or step > end or (step - begin) % group["every"]:
            return None
        if not isinstance(pattern, str):
            return f"unstructured:{self._sparsity(group, 1.0)}"
        kind = pattern_kind(pattern)
        if kind == "nm":
            n, m = (int(number) for number in pattern.split(":"))
            kept = m - round(self._sparsity(group, 1.0 - n / m) * m)
            return None if kept == m else f"{kept}:{m}"
        head, _, final = pattern.rpartition(":")
        if kind == "vnm":
            n, m = (int(number) for number in pattern.split(":")[2:])
            return f"unstructured:{self._sparsity(group, 1.0 - n / m)}"
        return f"{head}:{self._sparsity(group, float(final))}"

    def _sparsity(self, group: dict[str, Any], final: float) -> float:
        return cubic_sparsity(
            min(group["initial_sparsity"], final),
            final,
            group["begin_step"],
            group["end_step"],
            self.step_count,
        )
