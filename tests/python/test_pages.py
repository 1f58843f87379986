# SPDX-License-Identifier: BSD-3-Clause
"""The parts of a report: what they draw, and that they need nothing from outside."""

from __future__ import annotations

import base64
import re
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
import zlib
from html.parser import HTMLParser

import pytest
import torch

from gossamer.pages import (
    Bars,
    Ink,
    Line,
    Markup,
    Tile,
    bar_chart,
    density_picture,
    figure,
    grey_picture,
    line_chart,
    mask_crop,
    page,
    section,
    table,
    tiles,
)
from gossamer.pages.plot import ticks
from gossamer.pages.png import encode_png

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Elements, their attributes and the text; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def external(text: str) -> list[str]:
    """Everything that would make a reader's browser ask somebody."""
    sources = [
        value or ""
        for _, attributes in Outline(text).elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data", "xlink:href")
    ]
    found = [source for source in sources if not source.startswith(("data:", "#"))]
    return found + re.findall(
        r"(?:https?:)?//[a-z][^\s\"')]*|@import|url\(", re.sub(r'src="data:[^"]*"', "", text)
    )


def decode_png(png: bytes) -> torch.Tensor:
    """[height, width, 4] of a file without filters; checks the signature and every checksum."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        kind, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", png, at + 8 + length)
        assert checksum == zlib.crc32(kind + data)
        chunks[kind] = data
        at += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert (depth, colour) == (8, 6)
    rows = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8)
    rows = rows.reshape(height, 1 + 4 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 4)


def pixels(picture: Markup) -> torch.Tensor:
    found = re.search(r"base64,([^\"]+)", picture)
    assert found is not None
    return decode_png(base64.b64decode(found[1]))


def sample_page() -> str:
    chart = line_chart(
        [Line("one", [1, 2, 3], [90, 95, 99], 0), Line("zeros", [1, 3], [0, 90], 1, right=True)],
        title="lines",
        x_label="epoch",
        y_label="accuracy",
        y_range=(80, 100),
        right_label="zeros",
        marks=[(2, "pruned")],
    )
    bars = bar_chart(["a < b"], [Bars("dense", [2.0], ["2 ms"], 0)], title="bars")
    picture = figure(mask_crop(torch.eye(8) > 0, Ink.TEAL, "a diagonal"), "one & all")
    parts = [
        tiles([Tile("3.1x", "faster", 1)]),
        section("results", "Results", "lead", table(("layer", "ms"), [("<script>", "1")])),
        section("plots", "Plots", "lead", chart, bars, picture),
    ]
    return page("Title & more", "subtitle", parts, "made here")


def test_png_round_trip() -> None:
    image = torch.randint(0, 256, (5, 7, 4), dtype=torch.uint8)
    assert torch.equal(decode_png(encode_png(image)), image)


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(2, 2, 3, dtype=torch.uint8),
        torch.zeros(2, 2, 4),
        torch.zeros(0, 2, 4, dtype=torch.uint8),
    ],
)
def test_png_refuses(image: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="pixel"):
        encode_png(image)


def test_mask_crop_shows_each_weight() -> None:
    mask = torch.rand(40, 80) > 0.5
    image = pixels(mask_crop(mask, Ink.AMBER, "mask", 32, 64))
    assert torch.equal(image[:, :, 3] == 255, mask[:32, :64])
    assert torch.equal(image[:, :, 3] == 0, ~mask[:32, :64])
    assert tuple(image[0, 0, :3].tolist()) == Ink.AMBER.value


def test_density_picture_averages() -> None:
    mask = torch.zeros(512, 1024, dtype=torch.bool)
    mask[:, :512] = True
    mask[:256, 512::2] = True
    image = pixels(density_picture(mask, Ink.TEAL, "mask", max_side=256))[:, :, 3]
    assert image.shape == (128, 256)
    assert (image[:, :128] == 255).all()
    assert (image[:64, 128:] == 128).all()
    assert (image[64:, 128:] == 0).all()


def test_density_picture_of_an_empty_mask_is_blank() -> None:
    image = pixels(density_picture(torch.zeros(4, 4, dtype=torch.bool), Ink.TEAL, "mask"))
    assert not image[:, :, 3].any()


def test_grey_picture_keeps_values() -> None:
    image = pixels(grey_picture(torch.tensor([[0.0, 0.5, 1.0]]), "three"))
    assert image[0, :, 3].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (1, 3, [1, 1.5, 2, 2.5, 3]),
        (90, 100, [90, 92, 94, 96, 98, 100]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_ticks_refuse_an_empty_axis() -> None:
    with pytest.raises(ValueError, match="low < high"):
        ticks(1, 1)


def test_lines_are_drawn_to_scale() -> None:
    chart = line_chart(
        [Line("one", [0, 10], [80, 120], 0)],
        title="t",
        x_label="x",
        y_label="y",
        y_range=(80, 100),
    )
    tree = ET.fromstring(chart[chart.index("<svg") :])
    (path,) = [part for part in tree.iter("path") if "line" in (part.get("class") or "").split()]
    (x0, y0), (x1, y1) = (map(float, point.split()) for point in path.get("d", "")[1:].split("L"))
    grid = [part.get("d", "") for part in tree.iter("path") if part.get("class") == "grid"]
    levels = [float(found[1]) for d in grid if (found := re.search(r" ([\d.]+)H", d))]
    assert x0 < x1
    assert (y0, y1) == (max(levels), min(levels))  # 120 is drawn on the edge, at 100


def test_bars_are_proportional() -> None:
    chart = bar_chart(["g"], [Bars("a", [4.0], ["4"], 0), Bars("b", [1.0], ["1"], 1)], title="t")
    tree = ET.fromstring(chart[chart.index("<svg") :])
    long, short = (float(part.get("width", "0")) for part in tree.iter("rect"))
    assert long / short == pytest.approx(4, rel=0.01)


def test_table_refuses_ragged_rows() -> None:
    with pytest.raises(ValueError, match="1 cells"):
        table(("a", "b"), [("1",)])


def test_page_has_its_parts_and_escapes() -> None:
    text = sample_page()
    outline = Outline(text)
    assert [outline.count(tag) for tag in ("h1", "section", "table", "svg", "img")] == [
        1,
        2,
        1,
        2,
        1,
    ]
    assert outline.count("script") == 0
    assert "<script>" in outline.text
    assert "a < b" in outline.text
    assert "one & all" in outline.text
    ids = [attributes["id"] for tag, attributes in outline.elements if tag == "section"]
    assert ids == ["results", "plots"]


def test_page_needs_nothing_from_outside() -> None:
    assert external(sample_page()) == []
    assert external('<img src="https://example.org/a.png">') != []
    assert external("<style>a{background:url(b.png)}</style>") != []


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_it(tmp_path) -> None:
    file = tmp_path / "report.html"
    file.write_text(sample_page(), encoding="utf-8")
    done = subprocess.run(
        [
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/p",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    for part in ('id="results"', 'id="plots"', "<svg", "<table>", "data:image/png;base64,"):
        assert part in done.stdout
