# SPDX-License-Identifier: BSD-3-Clause
"""Parts of a page in one HTML file: pictures, plots and tables, with nothing to download.

Everything is inline (SVG by hand, PNG as data URIs), follows the reader's light or dark preference,
and adapts to the width of the window.
"""

from __future__ import annotations

from gossamer.pages.curves import Curve, curve_chart
from gossamer.pages.page import Markup, Tile, figure, page, scrolling, section, table, tiles
from gossamer.pages.picture import Ink, density_picture, grey_picture, mask_crop
from gossamer.pages.plot import Bars, Line, bar_chart, line_chart
from gossamer.pages.rows import Column, row_chart

__all__ = [
    "Bars",
    "Column",
    "Curve",
    "Ink",
    "Line",
    "Markup",
    "Tile",
    "bar_chart",
    "curve_chart",
    "density_picture",
    "figure",
    "grey_picture",
    "line_chart",
    "mask_crop",
    "page",
    "row_chart",
    "scrolling",
    "section",
    "table",
    "tiles",
]
