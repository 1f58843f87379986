# SPDX-License-Identifier: BSD-3-Clause
"""What an error of somebody else says in a sentence of ours."""

from __future__ import annotations

__all__ = ["first_line"]


def first_line(error: BaseException) -> str:
    """What an error says in one line: its first, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
