# SPDX-License-Identifier: BSD-3-Clause
"""Parts of a report in one HTML file: pictures, plots and tables, with nothing to download.

Everything is inline (SVG by hand, PNG as data URIs), follows the reader's light or dark preference,
and adapts to the width of the window.
"""

from __future__ import annotations

from gossamer.report.page import Markup, Tile, figure, page, section, table, tiles
from gossamer.report.picture import Ink, density_picture, grey_picture, mask_crop
from gossamer.report.plot import Bars, Line, bar_chart, line_chart

__all__ = [
    "Bars",
    "Ink",
    "Line",
    "Markup",
    "Tile",
    "bar_chart",
    "density_picture",
    "figure",
    "grey_picture",
    "line_chart",
    "mask_crop",
    "page",
    "section",
    "table",
    "tiles",
]
