# SPDX-License-Identifier: BSD-3-Clause
"""Running the `gossamer` command: the one that GOSSAMER_BIN names, or the installed one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

BINARY = (
    os.environ.get("GOSSAMER_BIN")
    or shutil.which("gossamer", path=str(Path(sys.executable).parent))
    or "gossamer"
)


def gossamer(*arguments: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command; fails the test where the exit status is another."""
    run = subprocess.run(
        [BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == status, f"status {run.returncode}\n{run.stdout}\n{run.stderr}"
    if status == 2:
        assert run.stderr.startswith("gossamer: error: ")
        assert run.stderr.count("\n") == 1
    return run


def report(*arguments: object, status: int = 0) -> dict[str, Any]:
    """Runs the command with --json; stdout must be one document."""
    return json.loads(gossamer(*arguments, "--json", status=status).stdout)
