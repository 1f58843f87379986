# SPDX-License-Identifier: BSD-3-Clause
"""The schedulers of `torchao.prototype.sparsity` 0.18 by their old names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from gossamer.compat._torchao_sparsifiers import BaseSparsifier

__all__ = ["BaseScheduler", "CubicSL", "LambdaSL"]

_log = logging.getLogger("gossamer")


class BaseScheduler:
    """Sets the "sparsity_level" of a sparsifier's groups; call `step()` after the sparsifier's.

    A subclass defines `get_sl`. Constructing one steps to epoch 0. Where the old one replaced the
    sparsifier's `step` to count its calls, this one leaves it alone.

    Attributes:
        base_sl: the levels when the scheduler was made.
        last_epoch: how many steps it has made after the first.

    Args:
        sparsifier: prepared.
        last_epoch: of a run that goes on; −1 for a new one.
        verbose: whether levels are logged (logger "gossamer", INFO).

    Raises:
        TypeError: the sparsifier has no levels to set.
    """

    def __init__(
        self, sparsifier: BaseSparsifier, last_epoch: int = -1, verbose: bool = False
    ) -> None:
        if not all("sparsity_level" in group for group in getattr(sparsifier, "groups", [{}])):
            raise TypeError(
                f"{type(sparsifier).__name__} has no groups with 'sparsity_level': a prepared "
                "WeightNormSparsifier or WandaSparsifier is accepted"
            )
        self.sparsifier = sparsifier
        self.base_sl: list[float] = [group["sparsity_level"] for group in sparsifier.groups]
        self.last_epoch = last_epoch
        self.verbose = verbose
        self._last_sl: list[float] = []
        self.step()

    def get_sl(self) -> list[float]:
        """The levels of all groups at `last_epoch`."""
        raise NotImplementedError(f"{type(self).__name__} defines no get_sl()")

    def get_last_sl(self) -> list[float]:
        """The levels that the last step set."""
        return self._last_sl

    def print_sl(self, is_verbose: bool, group: int, sl: float, epoch: int | None = None) -> None:
        """Logs a level (it was printed)."""
        if is_verbose:
            _log.info("epoch %s: sparsity level of group %d is %.4e", epoch, group, sl)

    def step(self, epoch: int | None = None) -> None:
        """Goes one epoch on and sets the levels."""
        self.last_epoch += 1
        for index, (group, level) in enumerate(
            zip(self.sparsifier.groups, self.get_sl(), strict=True)
        ):
            group["sparsity_level"] = level
            self.print_sl(self.verbose, index, level, epoch)
        self._last_sl = [group["sparsity_level"] for group in self.sparsifier.groups]
        self.sparsifier.enable_mask_update = True

    def state_dict(self) -> dict[str, Any]:
        """Everything but the sparsifier."""
        return {key: value for key, value in self.__dict__.items() if key != "sparsifier"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where `state_dict` left off."""
        self.__dict__.update(state_dict)

    def _make_sure_a_list(self, var: Any) -> list[Any]:
        count = len(self.sparsifier.groups)
        if not isinstance(var, list | tuple):
            return [var] * count
        if len(var) != count:
            raise ValueError(f"{len(var)} values for {count} groups: one for each is accepted")
        return list(var)


class LambdaSL(BaseScheduler):
    """Levels are the first ones times a function of the epoch.

    Args:
        sparsifier: prepared.
        sl_lambda: a function, or one for each group.
        last_epoch: as for `BaseScheduler`.
        verbose: as for `BaseScheduler`.
    """

    def __init__(
        self,
        sparsifier: BaseSparsifier,
        sl_lambda: Callable[[int], float] | Sequence[Callable[[int], float]],
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.sparsifier = sparsifier
        self.sl_lambdas = self._make_sure_a_list(sl_lambda)
        super().__init__(sparsifier, last_epoch, verbose)

    def get_sl(self) -> list[float]:
        """Base level times the function."""
        pairs = zip(self.sl_lambdas, self.base_sl, strict=True)
        return [base * function(self.last_epoch) for function, base in pairs]


class CubicSL(BaseScheduler):
    """Levels rise cubically to the first ones (Zhu & Gupta 2017, arXiv:1710.01878).

    Args:
        sparsifier: prepared.
        init_sl: level at the begin; each argument may be a list with a value for each group.
        init_t: epoch of the begin.
        delta_t: epochs between two changes.
        total_t: number of changes.
        initially_zero: whether the level is 0 before the begin, rather than `init_sl`.
        last_epoch: as for `BaseScheduler`.
        verbose: as for `BaseScheduler`.
    """

    def __init__(
        self,
        sparsifier: BaseSparsifier,
        init_sl: float | Sequence[float] = 0.0,
        init_t: int | Sequence[int] = 0,
        delta_t: int | Sequence[int] = 10,
        total_t: int | Sequence[int] = 100,
        initially_zero: bool | Sequence[bool] = False,
        last_epoch: int = -1,
        verbose: bool = False,
    ) -> None:
        self.sparsifier = sparsifier
        self.init_sl = self._make_sure_a_list(init_sl)
        self.init_t = self._make_sure_a_list(init_t)
        self.delta_t = self._make_sure_a_list(delta_t)
        self.total_t = self._make_sure_a_list(total_t)
        self.initially_zero = self._make_sure_a_list(initially_zero)
        super().__init__(sparsifier, last_epoch, verbose)

    @staticmethod
    def sparsity_compute_fn(
        s_0: float, s_f: float, t: int, t_0: int, dt: int, n: int, initially_zero: bool = False
    ) -> float:
        """The level at epoch `t`: s_f + (s_0 − s_f)·(1 − (t − t_0)/(dt·n))³, between the two."""
        if initially_zero and t < t_0:
            return 0.0
        level = s_f + (s_0 - s_f) * (1.0 - (t - t_0) / (dt * n)) ** 3
        return max(s_0, min(s_f, level))

    def get_sl(self) -> list[float]:
        """The level of each group."""
        settings = zip(
            self.init_sl,
            self.base_sl,
            [self.last_epoch] * len(self.base_sl),
            self.init_t,
            self.delta_t,
            self.total_t,
            self.initially_zero,
            strict=True,
        )
        return [self.sparsity_compute_fn(*own) for own in settings]
