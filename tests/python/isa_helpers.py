# SPDX-License-Identifier: BSD-3-Clause
"""The same work under several instruction sets, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys


def assert_all_levels_print_one_hash(program: str) -> None:
    """Runs a program that prints a SHA-256, from the portable code up to all that is here."""
    hashes = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "GOSSAMER_MAX_ISA": level},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for level in ("generic", "avx2", "amx")
    }
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64
