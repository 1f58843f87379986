# SPDX-License-Identifier: BSD-3-Clause
"""Sparsifiers that training itself steers: movement, supermasks, lottery tickets."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.prune.groups import Group
from gossamer.prune.mask import Mask, zeros_of
from gossamer.prune.methods import GradualMagnitude, Magnitude
from gossamer.prune.pattern import CustomPattern, parse_pattern, pattern_with
from gossamer.prune.scored_mask import ScoredMask
from gossamer.prune.sparsifier import Sparsifier
from gossamer.prune.targets import Config

__all__ = ["LotteryTicket", "Movement", "Supermask"]


class _Scored(Sparsifier):
    """A sparsifier whose masks have trained scores."""

    def scores(self) -> Iterator[nn.Parameter]:
        """The scores of all masks, for a parameter group of the optimizer."""
        for group in self.groups:
            yield self._scored(group).scores

    def _scored(self, group: Group) -> ScoredMask:
        mask = self._mask(group)
        if not isinstance(mask, ScoredMask):
            raise ValueError(
                f"'{group['tensor_fqn']}' has a live mask without scores; write its zeros into the "
                "weight first (squash_mask of the sparsifier that made it)"
            )
        return mask


class Movement(_Scored, GradualMagnitude):
    """Keeps weights that training moves away from zero (Sanh et al. 2020, arXiv:2005.07683).

    Each mask gets scores that start at 0, parameters of the model; give them to the optimizer,
    usually with a learning rate of their own:

        sparsifier.prepare(model)
        scores = list(sparsifier.scores())
        optimizer = torch.optim.AdamW([{"params": weights}, {"params": scores, "lr": 1e-2}])

    The optimizer's step on ∂L/∂W ⊙ W is what the paper adds up: plain SGD without weight decay is
    the paper's formula. The sparsity grows as with `GradualMagnitude`, whose arguments it takes.
    """

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """The scores as training left them."""
        return self._scored(group).scores.detach()

    def _new_mask(self, weight: Tensor) -> Mask:
        return ScoredMask(torch.ones_like(weight, dtype=torch.bool))


class Supermask(_Scored):
    """Finds a subnetwork of frozen weights (Ramanujan et al. 2020, arXiv:1911.13299).

    Weights stay as they are and get no gradient until `squash_mask`; scores are trained instead
    (`scores()` for the optimizer), and `step` keeps the largest of their magnitudes. Scores start
    uniform, as weights of a linear layer do.

    Args:
        pattern: as for `Sparsifier`.
        scope: as for `Sparsifier`.
    """

    def __init__(self, pattern: str | CustomPattern, scope: str = "tensor") -> None:
        super().__init__(pattern, scope)
        self._frozen: list[Tensor] = []

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """As `Sparsifier.prepare`; freezes the chosen weights."""
        super().prepare(model, config)
        weights = [self.dense_weight(group) for group in self.groups]
        self._frozen = [weight for weight in weights if weight.requires_grad]
        for weight in self._frozen:
            weight.requires_grad_(False)
        return model

    def squash_mask(self, *args: Any, **kwargs: Any) -> None:
        """As `Sparsifier.squash_mask`; the weights that were frozen train again."""
        super().squash_mask(*args, **kwargs)
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._frozen = []

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """|score|."""
        return self._scored(group).scores.detach().abs()

    def _new_mask(self, weight: Tensor) -> Mask:
        scores = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
        nn.init.kaiming_uniform_(scores, a=math.sqrt(5))
        return ScoredMask(torch.ones_like(weight, dtype=torch.bool), scores)


class LotteryTicket(Magnitude):
    """Iterative magnitude pruning with rewinding (Frankle et al. 2020, arXiv:1912.05671).

        ticket = LotteryTicket("unstructured:0.9")
        ticket.prepare(model)
        for round in range(ticket.rounds):
            ...                      # train; ticket.remember() early on, in the first round
            ticket.step()            # drops a fifth of what is left, rewinds everything else

    Each step drops the fraction `rate` of the weights that are left, until the pattern's sparsity
    is reached, and puts all parameters and buffers of the model back to where `remember` saw them
    (`prepare` does, until it is called). A weight that was dropped stays dropped.

    Args:
        pattern: `unstructured`, `block` or `fanin`.
        rate: fraction of the weights left that a step drops.
        scope: as for `Sparsifier`.

    Raises:
        ValueError: the pattern has no sparsity of its own, or the rate is none.
    """

    def __init__(self, pattern: str, rate: float = 0.2, scope: str = "global") -> None:
        super().__init__(pattern, scope, rate=rate)
        self._remembered: dict[str, Tensor] = {}

    def check(self, settings: Mapping[str, Any]) -> None:
        """The pattern can grow, and the rate is a fraction."""
        super().check(settings)
        pattern, rate = settings["pattern"], settings["rate"]
        if not isinstance(pattern, str) or parse_pattern(pattern).grouped:
            raise ValueError(
                f"pattern {pattern}: unstructured:S, block:RxC:S and fanin:S are accepted, whose "
                "sparsity can grow from round to round"
            )
        if not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise ValueError(f"rate {rate!r}: a number above 0 and up to 1 is accepted")

    @property
    def rounds(self) -> int:
        """How many steps reach the pattern's sparsity."""
        return self._rounds(self.defaults)

    def prepare(self, model: nn.Module, config: Config = None) -> nn.Module:
        """As `Sparsifier.prepare`; remembers the model as it is."""
        super().prepare(model, config)
        if not self._remembered:
            self.remember()
        return model

    def remember(self) -> None:
        """Takes the model's parameters and buffers as what steps rewind to.

        Raises:
            RuntimeError: nothing is prepared.
        """
        self._need_groups("remember")
        self._remembered = {name: value.clone() for name, value in self._rewound()}

    def squash_mask(self, *args: Any, **kwargs: Any) -> None:
        """As `Sparsifier.squash_mask`; forgets what was remembered."""
        super().squash_mask(*args, **kwargs)
        self._remembered = {}

    def pattern_of(self, group: Group) -> str | None:
        """The pattern at this round's sparsity; None once it is reached."""
        if self.step_count > self._rounds(group):
            return None
        left = (1.0 - group["rate"]) ** self.step_count
        final = parse_pattern(group["pattern"]).sparsity
        return pattern_with(group["pattern"], min(1.0 - left, final))

    def unfinished(self, group: Group) -> str | None:
        """That rounds are missing."""
        rounds = self._rounds(group)
        if self.last_update(group) >= rounds or not (
            self.last_update(group) or bool(self.mask(group).all())
        ):
            return None
        return (
            f"{zeros_of(self.mask(group)):.2%} zeros after {self.step_count} of {rounds} rounds, "
            f"not those of '{group['pattern']}'; train and call step() that often, or make rate "
            "larger"
        )

    def score(self, weight: Tensor, group: Group) -> Tensor:
        """|w|, below all of them where the weight was dropped before."""
        return torch.where(self.mask(group), weight.abs(), -1.0)

    def state_dict(self) -> dict[str, Any]:
        """As `Sparsifier.state_dict`, with what steps rewind to."""
        return {**super().state_dict(), "remembered": dict(self._remembered)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """As `Sparsifier.load_state_dict`."""
        remembered = dict(state_dict).get("remembered")
        if remembered is None:
            raise ValueError(
                "the state lacks 'remembered': what state_dict() of a LotteryTicket returned is "
                "accepted"
            )
        super().load_state_dict(state_dict, strict)
        self._remembered = {name: value.clone() for name, value in remembered.items()}

    def _step(self) -> None:
        super()._step()
        for name, value in self._rewound():
            value.copy_(self._remembered[name])

    def _rewound(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter and buffer of the model but those of masks."""
        assert self.model is not None
        masks = tuple(
            f"{name}." for name, module in self.model.named_modules() if isinstance(module, Mask)
        )
        values = [*self.model.named_parameters(), *self.model.named_buffers()]
        for name, value in values:
            if not name.startswith(masks):
                yield name, value.data

    @staticmethod
    def _rounds(settings: Mapping[str, Any]) -> int:
        final = parse_pattern(settings["pattern"]).sparsity
        if final == 0 or settings["rate"] == 1 or final == 1:
            return 1
        return math.ceil(math.log(1.0 - final) / math.log(1.0 - settings["rate"]) - 1e-9)
