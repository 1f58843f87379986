# SPDX-License-Identifier: BSD-3-Clause
"""Where the data of the recipes is, and which of their tests run.

The folder that GOSSAMER_DATA names, whose tests all run, else `shared/data` beside the checkout,
of which a few that take seconds run.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "data"
WHOLE = bool(os.environ.get("GOSSAMER_DATA"))
FOLDER = Path(os.environ["GOSSAMER_DATA"]) if WHOLE else BESIDE

long = pytest.mark.skipif(not WHOLE, reason="takes long: runs where GOSSAMER_DATA names the folder")


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips where the folder lacks a file, unless GOSSAMER_DATA names it: then that is an error."""
    there = all((FOLDER / name).exists() for name in names)
    reason = f"no {' and '.join(names)} in shared/data beside the checkout; set GOSSAMER_DATA"
    return pytest.mark.skipif(not there and not WHOLE, reason=reason)


def cases(known: Any, quick: Any) -> list[Any]:
    """Parameters, of which all but the quick ones are `long`."""
    return [case if case in quick else pytest.param(*_items(case), marks=long) for case in known]


def _items(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
