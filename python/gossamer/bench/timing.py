# SPDX-License-Identifier: BSD-3-Clause
"""The clock: contestants run in turn, so that what disturbs one disturbs all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Contest", "contest"]

_ROUND_SECONDS = 1e-3
"""A contestant's turn lasts at least about this long, so that the clock's own cost vanishes."""
_LONG_SECONDS = 0.1
_SETTLE_SECONDS = 0.005
_MOST_SETTLES = 100
_IDLE = 0.2
"""Of one processor: less is an idle process. Threads that wait for work spin before they sleep,
libgomp's for about 15 ms, those of inference engines for longer the more there are."""


@dataclass(frozen=True)
class Contest:
    """Times of one call, milliseconds, one a round for each contestant.

    Attributes:
        rounds_ms: name to the times of each round, in order; all are equally long.
    """

    rounds_ms: dict[str, list[float]]

    @property
    def median_ms(self) -> dict[str, float]:
        """The median round of each contestant."""
        return {name: statistics.median(times) for name, times in self.rounds_ms.items()}

    @property
    def least_ms(self) -> dict[str, float]:
        """The best round of each contestant."""
        return {name: min(times) for name, times in self.rounds_ms.items()}

    def speedup(self, of: str, over: str) -> float:
        """How many times longer `of` takes than `over`, medians."""
        return self.median_ms[of] / self.median_ms[over]


def contest(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 9,
    call_seconds: float = _ROUND_SECONDS,
    pools: Mapping[str, str] | None = None,
) -> Contest:
    """Times calls in turn, after a warm-up of each.

    A call that is shorter than `call_seconds` is repeated within its turn. Every other round runs
    in the opposite order, and each turn begins with a call that is not timed, unless a call is
    so long (0.1 s) that what its neighbour left in the caches is a small part of it.

    Args:
        calls: name to a function without arguments.
        rounds: how many turns everybody gets.
        call_seconds: the least length of a turn.
        pools: name to whose threads a call runs on, where these are others than most use; threads
            that spin for more work would take the processors of the next contestant, so between
            turns of different pools the process is idle for a moment.

    Returns:
        The times of one call in each round.

    Raises:
        ValueError: no calls, or fewer than one round.
    """
    if not calls or rounds < 1:
        raise ValueError(f"{len(calls)} calls in {rounds} rounds: at least one of each is accepted")
    lengths = {name: _length(call) for name, call in calls.items()}
    repeats = {
        name: max(1, min(10_000, round(call_seconds / max(seconds, 1e-7))))
        for name, seconds in lengths.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    last = None
    for _ in range(rounds):
        for name in order:
            pool = pools.get(name) if pools else None
            if pool != last:
                _settle()
            last = pool
            if lengths[name] < _LONG_SECONDS:
                calls[name]()  # so that everybody follows itself and not its neighbour
            times[name].append(1e3 * _turn(calls[name], repeats[name]))
        order.reverse()
    return Contest(times)


def _settle() -> None:
    """Waits until the threads of this process sleep."""
    for _ in range(_MOST_SETTLES):
        before = time.process_time()
        time.sleep(_SETTLE_SECONDS)
        if time.process_time() - before < _IDLE * _SETTLE_SECONDS:
            return


def _length(call: Callable[[], object]) -> float:
    for _ in range(2):
        call()
    seconds = _turn(call, 1)
    if seconds >= _LONG_SECONDS:
        return seconds
    call()
    call()
    return min(seconds, _turn(call, 1))


def _turn(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats
