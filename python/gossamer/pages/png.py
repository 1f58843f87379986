# SPDX-License-Identifier: BSD-3-Clause
"""Just enough PNG to put a picture into a page."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from torch import Tensor

__all__ = ["data_uri", "encode_png"]

_COLOUR_RGBA = 6


def encode_png(pixels: Tensor) -> bytes:
    """Encodes an image (PNG specification, W3C 2003; 8 bits a channel, no filter).

    Args:
        pixels: uint8 [height, width, 4], red, green, blue, alpha.

    Returns:
        The file's bytes.

    Raises:
        ValueError: another dtype or shape, or no pixels.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 4:
        raise ValueError(
            f"pixels are {pixels.dtype} {list(pixels.shape)}; uint8 [height, width, 4] is accepted"
        )
    height, width = pixels.shape[:2]
    if height == 0 or width == 0:
        raise ValueError(f"pixels are [{height}, {width}, 4]: an image has at least one pixel")
    filter_none = torch.zeros(height, 1, dtype=torch.uint8)
    rows = torch.cat([filter_none, pixels.reshape(height, width * 4)], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_RGBA, 0, 0, 0)
    body = zlib.compress(rows.contiguous().numpy().tobytes(), level=9)
    chunks = ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def data_uri(png: bytes) -> str:
    """The file as the `src` of an image."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
