# SPDX-License-Identifier: BSD-3-Clause
"""What every suite gets from the command, and which of its cases it measures."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeVar

from gossamer._roofline import Roofline

__all__ = ["DTYPES", "EXTENTS", "ISA_LIMIT", "Options", "measured", "named", "now"]

EXTENTS = ("quick", "normal", "full")
"""How many cases: of less than a minute, of a few minutes, all."""

DTYPES = ("float32", "bfloat16", "int8")
"""Of layers: plain, plain, and int8 weights with float32 inputs that are quantized in the call."""

ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
"""The variable that keeps torch's dense products from newer instructions, AMX for one."""

C = TypeVar("C")


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes:
        extent: one of `EXTENTS`.
        rounds: turns of each contestant.
        filter: only cases whose name holds this text.
        cache_bytes: of the last-level cache.
        roofline: of this machine with the present number of threads.
        host_us: of a packed call, see `Record`.
        progress: told what is being measured.
        note: told in a sentence what is not measured, and why.
        data: folder with trained networks and sparsity patterns; None where there is none.
        deadline: of `time.monotonic`; no case begins after it.
        dtype: one of `DTYPES`, of the suites that know several; None leaves it to the suite.
        device: "cpu" or "cuda", of the suites that measure on either.
    """

    extent: str
    rounds: int
    filter: str
    cache_bytes: int
    roofline: Roofline
    host_us: float
    progress: Callable[[str], None]
    note: Callable[[str], None] = print
    data: Path | None = None
    deadline: float = math.inf
    dtype: str | None = None
    device: str = "cpu"

    @property
    def quick(self) -> bool:
        """Whether few cases are wanted."""
        return self.extent == "quick"

    def wants(self, name: str) -> bool:
        """Whether a case is to be measured."""
        return self.filter in name


def measured(
    options: Options, cases: Callable[[str], Sequence[C]], chosen: Sequence[C] | None = None
) -> Iterator[C]:
    """The cases that are to be measured, for as long as there is time.

    What is left out is said through `options.note`: how many cases of the whole suite are not in
    this extent, and each case that the deadline cut off.

    Args:
        options: of the command.
        cases: all cases of an extent; those that come first matter most.
        chosen: other cases than those of the command.
    """
    if chosen is None:
        chosen = cases(options.extent)
        left = len(cases("full")) - len(chosen)
        if left > 0:
            options.note(f"{options.extent}: {len(chosen)} cases; --full has {left} more")
    wanted = [case for case in chosen if options.wants(str(case))]
    for index, case in enumerate(wanted):
        if time.monotonic() > options.deadline:
            names = "; ".join(str(case) for case in wanted[index:])
            options.note(f"the time was up, not measured: {names}")
            return
        yield case


def named(layer: str) -> str:
    """A layer's name in a record, with what the process keeps torch's dense products from using."""
    limit = os.environ.get(ISA_LIMIT)
    return f"{layer}, {ISA_LIMIT}={limit}" if limit else layer


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
