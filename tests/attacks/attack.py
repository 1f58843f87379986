# SPDX-License-Identifier: BSD-3-Clause
"""What an attack is, and the frame of a safetensors file."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass
class Attack:
    """One file: its bytes, what is wrong with it, and a part of the message that refuses it."""

    name: str
    wrong: str
    message: str
    data: bytes


def framed(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A file: 8-byte length, header, data; `length` overrides the true one."""
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    """The JSON object of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
