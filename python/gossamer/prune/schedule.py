# SPDX-License-Identifier: BSD-3-Clause
"""How sparsity grows over steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

__all__ = [
    "SCHEDULES",
    "Schedule",
    "cubic_sparsity",
    "register_schedule",
    "schedule_name",
    "scheduled_sparsity",
]

Schedule: TypeAlias = Callable[[float], float]
"""How much of the way from initial to final sparsity is done at t of the ramp, 0 <= t < 1.

From 0 to 1; it may go back. Before the ramp it is 0, from its end on 1, whatever the schedule."""

SCHEDULES: dict[str, Schedule] = {
    "cubic": lambda t: 1.0 - (1.0 - t) ** 3,
    "cosine": lambda t: (1.0 - math.cos(math.pi * t)) / 2,
    "linear": lambda t: t,
    "constant": lambda t: 1.0,
}
"""Schedules by name; `register_schedule` adds more. `constant` is done from its first step on."""


def register_schedule(name: str, schedule: Schedule) -> None:
    """Gives a schedule a name, which `GradualMagnitude(schedule=…)` and saved states know it by.

    Args:
        name: new, or that of this very schedule.
        schedule: see `Schedule`.

    Raises:
        ValueError: the name is taken, or no text.
        TypeError: the schedule cannot be called.
    """
    if not callable(schedule):
        raise TypeError(f"schedule {schedule!r}: a function of t in [0, 1) is accepted")
    if not isinstance(name, str) or not name:
        raise ValueError(f"name {name!r} of a schedule: a text is accepted, e.g. 'late'")
    if SCHEDULES.get(name, schedule) is not schedule:
        raise ValueError(f"schedule '{name}' is there already; choose another name")
    SCHEDULES[name] = schedule


def schedule_name(schedule: str | Schedule) -> str:
    """What a saved state calls a schedule: its registered name, else where it is defined."""
    if isinstance(schedule, str):
        return schedule
    known = [name for name, own in SCHEDULES.items() if own is schedule]
    place = getattr(schedule, "__qualname__", type(schedule).__qualname__)
    return known[0] if known else f"{getattr(schedule, '__module__', '')}.{place}"


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
    schedule: str | Schedule, initial: float, final: float, begin: int, end: int, step: int
) -> float:
    """What a schedule says: `initial` before `begin`, `final` from `end` on.

    Args:
        schedule: a name of `SCHEDULES`, or a function as `Schedule` describes it.
        initial: as for `cubic_sparsity`.
        final: as for `cubic_sparsity`.
        begin: as for `cubic_sparsity`.
        end: as for `cubic_sparsity`.
        step: as for `cubic_sparsity`.

    Raises:
        ValueError: as `cubic_sparsity`, there is no such schedule, or it gives something else than
            a number from 0 to 1.
    """
    known = schedule if callable(schedule) else SCHEDULES.get(schedule)
    if known is None:
        raise ValueError(
            f"schedule {schedule!r}: one of {sorted(SCHEDULES)} or a function of t in [0, 1) is "
            "accepted; register_schedule gives one of your own a name"
        )
    cubic = cubic_sparsity(initial, final, begin, end, step)
    if schedule == "cubic" or not begin <= step < end:
        return cubic
    t = (step - begin) / (end - begin)
    return initial + (final - initial) * _done(known, schedule_name(schedule), t)


def _done(schedule: Schedule, name: str, t: float) -> float:
    found = schedule(t)
    try:
        done = float(found)
    except (TypeError, ValueError):
        done = math.nan
    if not 0.0 <= done <= 1.0:
        raise ValueError(
            f"schedule '{name}' gives {found!r} at t = {t:g}: a number from 0 (the initial "
            "sparsity) to 1 (the pattern's) is accepted"
        )
    return done
