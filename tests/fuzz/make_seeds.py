#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the seeds of the fuzz targets: pattern texts, and one packed weight in memory per format.

    python3 tests/fuzz/make_seeds.py

The blocks are put together by hand from docs/formats.md. fuzz_safetensors is seeded with
tests/attacks itself.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "attacks"))

from packed_samples import DTYPE_CODES, Packed, bitmask, blocks, fan_in, four_eight, two_four  # noqa: E402

PATTERNS = ["unstructured:0.9", "2:4", "8:16", "block:64x64:0.8", "vnm:64:2:8", "fanin:0.25"]
HEADER = "<IHBBiBBHiiiiiidqqqqq"
ALIGNMENT = 64


def block_of(weight: Packed, layout: int, kind: int, numbers: list[int], sparsity: float) -> bytes:
    """The in-memory block of a float32 weight; `numbers` are N, M, V and the block's two sides."""
    shape = weight.info["shape"]
    assert isinstance(shape, list)
    body, places, values = b"", [], 0
    for name, (dtype, _, items) in weight.arrays.items():
        raw = struct.pack(f"<{len(items)}{DTYPE_CODES[dtype]}", *items)
        places += [256 + len(body), len(raw)]
        body += raw + bytes(ALIGNMENT)
        body += bytes(-len(body) % ALIGNMENT)
        if name == "values":
            values = len(items)
    places += [0] * (12 - len(places))
    head = struct.pack(
        HEADER,
        *(0x524D5347, 1, 1, 0, layout, kind, len(weight.arrays), 0, *numbers, 0, sparsity),
        *(1, *shape, values, 256 + len(body)),
    )
    head += struct.pack("<12q", *places)
    return head + bytes(256 - len(head)) + body


def main() -> None:
    """Writes every seed."""
    weights = {
        "nm24": block_of(two_four(), 1, 1, [2, 4, 0, 0, 0], 0.5),
        "nm48": block_of(four_eight(), 1, 1, [4, 8, 0, 0, 0], 0.5),
        "bitmask": block_of(bitmask(), 2, 0, [0] * 5, 0.8),
        "bsr": block_of(blocks(), 3, 2, [0, 0, 0, 2, 2], 0.5),
        "fanin": block_of(fan_in(), 4, 4, [0] * 5, 0.5),
    }
    patterns = {text.replace(":", "_"): text.encode() for text in PATTERNS}
    for folder, seeds in (("fuzz_packed", weights), ("fuzz_pattern", patterns)):
        target = HERE / "seeds" / folder
        target.mkdir(parents=True, exist_ok=True)
        for name, data in seeds.items():
            (target / name).write_bytes(data)


if __name__ == "__main__":
    main()
