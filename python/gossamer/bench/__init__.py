# SPDX-License-Identifier: BSD-3-Clause
"""Benchmarks: `python -m gossamer.bench SUITE` measures this machine, beside its peers.

The command checks every result before it times it, and writes one JSON line for each case
(`gossamer.bench.record.Record` lists the fields). `contest` is the clock that it uses.
"""

from __future__ import annotations

from gossamer.bench.record import Record, append
from gossamer.bench.timing import Contest, contest

__all__ = ["Contest", "Record", "append", "contest"]
