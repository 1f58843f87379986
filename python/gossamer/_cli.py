# SPDX-License-Identifier: BSD-3-Clause
"""The `gossamer` command of the wheel: hands over to the binary in the package."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Replaces this process by `gossamer/bin/gossamer` with the same arguments."""
    binary = Path(__file__).with_name("bin") / "gossamer"
    if not os.access(binary, os.X_OK):
        sys.exit(
            f"gossamer: {binary} does not exist or cannot be executed; install the wheel (pip "
            "install gossamer), or build the command with CMake (-DGOSSAMER_CLI=ON)"
        )
    os.execv(binary, [str(binary), *sys.argv[1:]])


if __name__ == "__main__":
    main()
