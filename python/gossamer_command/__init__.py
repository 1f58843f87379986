# SPDX-License-Identifier: BSD-3-Clause
"""The `gossamer` command of the wheel: hands over to the binary in the package.

A package of its own, because importing anything of `gossamer` imports torch, which takes longer
than most of what the command does.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Replaces this process by `gossamer/bin/gossamer` with the same arguments."""
    package = importlib.util.find_spec("gossamer")
    if package is None or package.origin is None:
        sys.exit("gossamer: the package gossamer is not installed; pip install gossamer")
    binary = Path(package.origin).with_name("bin") / "gossamer"
    if not os.access(binary, os.X_OK):
        sys.exit(
            f"gossamer: {binary} does not exist or cannot be executed; install the wheel (pip "
            "install gossamer), or build the command with CMake (-DGOSSAMER_CLI=ON)"
        )
    os.execv(binary, [str(binary), *sys.argv[1:]])
