# SPDX-License-Identifier: BSD-3-Clause
"""Packed weights put together by hand from docs/formats.md, and ways to spoil one."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from attack import framed, tensor

DTYPE_CODES = {"F32": "f", "U8": "B", "U16": "H", "I32": "i", "I64": "q", "F64": "d"}


@dataclass
class Packed:
    """A packed weight "w" put together by hand, and a good one until something is changed."""

    info: dict[str, object]
    arrays: dict[str, tuple[str, list[int], list[float] | list[int]]]
    version: str | None = "1"
    text: str | None = None
    extra: dict[str, tuple[str, list[int], list[float] | list[int]]] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """The file."""
        metadata: dict[str, str] = {}
        if self.version is not None:
            metadata["gossamer.version"] = self.version
        metadata["gossamer.weight.w"] = json.dumps(self.info) if self.text is None else self.text
        header: dict[str, object] = {"__metadata__": metadata}
        data = b""
        named = {f"w.{key}": value for key, value in self.arrays.items()} | self.extra
        for name, (dtype, shape, values) in named.items():
            raw = struct.pack(f"<{len(values)}{DTYPE_CODES[dtype]}", *values)
            header[name] = tensor(dtype, shape, len(data), len(data) + len(raw))
            data += raw
        return framed(json.dumps(header), data)


def info(fmt: str, pattern: str, shape: list[int]) -> dict[str, object]:
    """The metadata of a float32 weight."""
    return {
        "format": fmt,
        "pattern": pattern,
        "dtype": "float32",
        "shape": shape,
        "transposed": False,
        "version": 1,
    }


def bitmask() -> Packed:
    """[[1, 0, 0, 2, 0, 0, 0, 0, 0, 3], [0 …], [0, 4, 0 …]]."""
    return Packed(
        info("bitmask", "unstructured:0.8", [3, 10]),
        {
            "bitmask": ("U8", [3, 2], [0b1001, 0b10, 0, 0, 0b10, 0]),
            "values": ("F32", [4], [1, 2, 3, 4]),
            "row_offsets": ("I64", [4], [0, 3, 3, 4]),
        },
    )


def two_four() -> Packed:
    """[[1, 2, 0, 0, 0, 0, 3, 4], [0, 5, 0, 6, 7, 0, 8, 0]]."""
    return Packed(
        info("nm", "2:4", [2, 8]),
        {
            "values": ("F32", [2, 4], [1, 2, 3, 4, 5, 6, 7, 8]),
            "indices": ("U8", [2, 1], [0b1110_0100, 0b1000_1101]),
        },
    )


def four_eight() -> Packed:
    """One row of one group, kept columns 0 to 3."""
    return Packed(
        info("nm", "4:8", [1, 8]),
        {
            "values": ("F32", [1, 4], [1, 2, 3, 4]),
            "indices": ("U8", [1, 1], [0b0000_1111]),
        },
    )


def blocks() -> Packed:
    """A 4×6 weight with 2×2 blocks at (0, 0), (0, 2) and (1, 1)."""
    return Packed(
        info("bsr", "block:2x2:0.5", [4, 6]),
        {
            "block_row_offsets": ("I64", [3], [0, 2, 3]),
            "block_cols": ("I32", [3], [0, 2, 1]),
            "values": ("F32", [3, 2, 2], list(range(1, 13))),
        },
    )


def fan_in() -> Packed:
    """Two rows that keep two of four inputs each."""
    return Packed(
        info("fanin", "fanin:0.5", [2, 4]),
        {
            "values": ("F32", [2, 2], [1, 2, 3, 4]),
            "cols": ("U16", [2, 2], [0, 3, 1, 2]),
        },
    )


def changed(
    base: Packed,
    array: str,
    values: list[float] | list[int],
    dtype: str | None = None,
    shape: list[int] | None = None,
) -> Packed:
    """The same with one array replaced."""
    old_dtype, old_shape, _ = base.arrays[array]
    base.arrays[array] = (dtype or old_dtype, shape or old_shape, values)
    return base


def without(base: Packed, array: str) -> Packed:
    """The same with one array missing."""
    del base.arrays[array]
    return base


def with_info(base: Packed, **keys: object) -> Packed:
    """The same with metadata keys replaced, or removed where None."""
    merged = base.info | keys
    base.info = {key: value for key, value in merged.items() if value is not None}
    return base


def with_text(base: Packed, text: str) -> Packed:
    """The same with another metadata text."""
    base.text = text
    return base


def with_version(base: Packed, version: str | None) -> Packed:
    """The same with another file version."""
    base.version = version
    return base


def with_plain(base: Packed) -> Packed:
    """The same with a plain tensor of the weight's name beside it."""
    base.extra["w"] = ("F32", [1], [1.0])
    return base
