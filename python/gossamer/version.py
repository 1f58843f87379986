# SPDX-License-Identifier: BSD-3-Clause
"""The version, which the VERSION file at the root of the sources holds."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

__all__ = ["__version__"]


def _read_version() -> str:
    try:
        return metadata.version("gossamer")
    except metadata.PackageNotFoundError:  # a checkout on PYTHONPATH
        file = Path(__file__).parents[2] / "VERSION"
        return file.read_text(encoding="utf-8").strip() if file.is_file() else "0+unknown"


__version__: str = _read_version()
"""The installed package's version, or a checkout's own."""
