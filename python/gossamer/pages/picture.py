# SPDX-License-Identifier: BSD-3-Clause
"""Pictures of masks and of small images, as PNG inside HTML."""

from __future__ import annotations

import html
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.pages.page import Markup
from gossamer.pages.png import data_uri, encode_png

__all__ = ["Ink", "density_picture", "grey_picture", "mask_crop"]


class Ink(Enum):
    """Colours that read on light and on dark paper; the same as the plots' series."""

    SLATE = (100, 116, 139)
    TEAL = (13, 148, 136)
    AMBER = (217, 119, 6)


def density_picture(
    mask: Tensor, ink: Ink, alt: str, max_side: int = 256, full: float | None = None
) -> Markup:
    """How densely each part of a mask is kept.

    Args:
        mask: bool [rows, cols].
        ink: where nothing is kept the paper shows; the more is kept, the more ink.
        alt: what is seen, for those who do not see it.
        max_side: pixels of the longer side at most; larger masks are averaged.
        full: the density that gets all the ink; the greatest there is where None.

    Returns:
        An `<img>`.
    """
    rows, cols = mask.shape
    shrink = max(1.0, max(rows, cols) / max_side)
    size = (max(1, round(rows / shrink)), max(1, round(cols / shrink)))
    density = F.adaptive_avg_pool2d(mask.float()[None, None], size)[0, 0]
    full = float(density.max()) if full is None else full
    return _image(density / max(full, 1e-9), ink, alt)


def mask_crop(mask: Tensor, ink: Ink, alt: str, rows: int = 32, cols: int = 64) -> Markup:
    """The upper left corner of a mask, one cell a weight.

    Args:
        mask: bool [rows, cols].
        ink: of the kept weights.
        alt: what is seen.
        rows: of the corner, at most.
        cols: of the corner, at most.

    Returns:
        An `<img>`.
    """
    return _image(mask[:rows, :cols].float(), ink, alt)


def grey_picture(values: Tensor, alt: str, ink: Ink = Ink.SLATE) -> Markup:
    """A small image, 1 being all ink.

    Args:
        values: [rows, cols], 0..1.
        alt: what is seen.
        ink: its colour.

    Returns:
        An `<img>`.
    """
    return _image(values.float(), ink, alt)


def _image(alpha: Tensor, ink: Ink, alt: str) -> Markup:
    alpha = (alpha.clamp(0, 1) * 255).round().to(torch.uint8)[:, :, None]
    colour = torch.tensor(ink.value, dtype=torch.uint8).expand(*alpha.shape[:2], 3)
    source = data_uri(encode_png(torch.cat([colour, alpha], dim=2)))
    rows, cols = alpha.shape[:2]
    return Markup(
        f'<img class="pixels" src="{source}" alt="{html.escape(alt, quote=True)}" '
        f'width="{cols}" height="{rows}" style="aspect-ratio:{cols}/{rows}">'
    )
