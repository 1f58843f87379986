# SPDX-License-Identifier: BSD-3-Clause
"""How sparsity grows over steps."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["SCHEDULES", "cubic_sparsity", "scheduled_sparsity"]

SCHEDULES: dict[str, Callable[[float], float]] = {
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
    "cosine": lambda t: (1.0 - math.cos(math.pi * t)) / 2,
    "linear": lambda t: t,
    "constant": lambda t: 1.0,
}
"""Names to how much of the way from initial to final sparsity is done at t in [0, 1] of the ramp.

`constant` is there from the first step of the ramp on. More can be added."""


def cubic_sparsity(initial: float, final: float, begin: int, end: int, step: int) -> float:
    """The cubic schedule of gradual pruning: fast while much is redundant, slow near the end.

    `s(t) = final + (initial − final)·(1 − (t − begin)/(end − begin))³` between `begin` and `end`,
    `initial` before and `final` after (Zhu & Gupta 2017, arXiv:1710.01878, equation 1).

    Args:
        initial: fraction of zeros until `begin`, from 0 to 1.
        final: fraction of zeros from `end` on, from 0 to 1.
        begin: first step of the ramp.
        end: last step of the ramp; greater than `begin`.
        step: the step asked for.

    Returns:
        The fraction of zeros at `step`.

    Raises:
        ValueError: `end` is not after `begin`, or a fraction lies outside 0 to 1.
    """
    if end <= begin:
        raise ValueError(
            f"the schedule ends at step {end}, which is not after its begin, {begin}: an end_step "
            "greater than begin_step is accepted"
        )
    for name, value in (("initial", initial), ("final", final)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} sparsity {value}: a fraction from 0 to 1 is accepted")
    if step <= begin:
        return initial
    if step >= end:
        return final
    rest = 1.0 - (step - begin) / (end - begin)
    return final + (initial - final) * rest * rest * rest


def scheduled_sparsity(
    schedule: str, initial: float, final: float, begin: int, end: int, step: int
) -> float:
    """A schedule of `SCHEDULES`: `initial` before `begin`, `final` from `end` on.

    Args:
        schedule: its name.
        initial: as for `cubic_sparsity`.
        final: as for `cubic_sparsity`.
        begin: as for `cubic_sparsity`.
        end: as for `cubic_sparsity`.
        step: as for `cubic_sparsity`.

    Raises:
        ValueError: as `cubic_sparsity`, or there is no such schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r}: one of {sorted(SCHEDULES)} is accepted")
    cubic = cubic_sparsity(initial, final, begin, end, step)
    if schedule == "cubic" or not begin <= step < end:
        return cubic
    return initial + (final - initial) * SCHEDULES[schedule]((step - begin) / (end - begin))
