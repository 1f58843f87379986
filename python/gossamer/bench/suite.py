# SPDX-License-Identifier: BSD-3-Clause
"""What every suite gets from the command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone

from gossamer.bench.roofline import Roofline

__all__ = ["Options", "now"]


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        quick: few cases.
        rounds: turns of each contestant.
        filter: only cases whose name holds this text.
        cache_bytes: of the last-level cache.
        roofline: of this machine with the present number of threads.
        host_us: of a packed call, see `Record`.
        progress: told what is being measured.
    """

    quick: bool
    rounds: int
    filter: str
    cache_bytes: int
    roofline: Roofline
    host_us: float
    progress: Callable[[str], None]

    def wants(self, name: str) -> bool:
        """Whether a case is to be measured."""
        return self.filter in name


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
