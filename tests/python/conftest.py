# SPDX-License-Identifier: BSD-3-Clause
"""Shared by the Python tests: no plan leaks between runs, seeded data, small pruned models."""

from __future__ import annotations

import os

# Before gossamer is imported: verdicts of this machine's user are neither read nor written.
os.environ.setdefault("GOSSAMER_CACHE", "off")

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20)
    # Plans depend on the number of threads; tests ask for the same ones everywhere.
    torch.set_num_threads(min(2, os.cpu_count() or 1))
