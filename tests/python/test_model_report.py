# SPDX-License-Identifier: BSD-3-Clause
"""The page about a pruned model: its parts, what it says, and that a browser shows them."""

from __future__ import annotations

import html
import itertools
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer import model_report
from gossamer.pages import Column, Curve, Markup, curve_chart, page, row_chart
from gossamer.prune import measure_sensitivity, sparsity_report
from test_pages import Outline, external

WIDTHS = [360, 768, 1280]
SECTIONS = ["methods", "layers", "sensitivity", "plan", "masks"]
OUTCOMES = [
    gs.Outcome("dense", "dense", 0.0, 90.0, 4.0),
    gs.Outcome("SparseGPT", "unstructured:0.5", 0.5, 88.0, 3.0),
    gs.Outcome("SparseGPT", "unstructured:0.8", 0.8, 70.0, 2.0),
    gs.Outcome("Best", "unstructured:0.5", 0.5, 89.5),
    gs.Outcome("Best", "2:4", 0.5, 89.0, 2.5),
]


def net() -> nn.Sequential:
    first = nn.Conv2d(8, 16, 3)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 64), nn.Linear(64, 10))


def data() -> Tensor:
    return torch.randn(32, 8, 8, 8)


def score(model: nn.Module, x: Tensor, wanted: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == wanted).float().mean() * 100)


def whole_page(path: Path | None = None) -> str:
    model, x = net(), data()
    with torch.no_grad():
        wanted = model(x).argmax(1)
    found = measure_sensitivity(model, lambda own: score(own, x, wanted))
    method = gs.Wanda("2:4")
    method.prepare(model, {"4": None, "*": "2:4"})
    calibration = method.calibrate([x])
    method.squash_mask()
    gs.sparsify_(model, layout="format")
    return gs.report(
        model,
        path,
        outcome=OUTCOMES[-1],
        outcomes=OUTCOMES,
        calibration=calibration,
        sensitivity=found,
    )


def pruned_layer() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(511, 257))
    pruner = gs.Magnitude("unstructured:0.9")
    pruner.prepare(model)
    pruner.step()
    pruner.squash_mask()
    return model


def test_the_page_has_its_parts() -> None:
    text = whole_page()
    outline = Outline(text)
    ids = [attributes["id"] for tag, attributes in outline.elements if tag == "section"]
    assert ids == SECTIONS
    assert external(text) == []
    assert outline.count("script") == 0
    for part in ("89.00", "Best; dense 90.00", "2.5 ms, 1.60x", "dense: not chosen", "0.weight"):
        assert part in outline.text, part
    assert "times as fast as dense" in outline.text


def test_only_what_is_given_is_shown() -> None:
    outline = Outline(gs.report(net()))
    ids = [attributes["id"] for tag, attributes in outline.elements if tag == "section"]
    assert ids == ["layers", "masks"]
    assert "Nothing is pruned" in outline.text


def test_live_masks_plain_zeros_and_packed_weights_show_the_same_densities() -> None:
    model = net()
    pruner = gs.Magnitude("unstructured:0.75")
    pruner.prepare(model)
    pruner.step()

    def kept() -> list[str]:
        return re.findall(r">(\d+\.\d%)</text>", gs.report(model))

    live = kept()
    pruner.squash_mask()
    assert kept() == live
    assert live == ["25.0%", "25.0%", "25.0%"]
    gs.sparsify_(model, layout="format")
    assert kept() == live


def test_the_model_is_read_only() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gs.report(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="no linear or 2-D convolution"):
        gs.report(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize(
    ("zeros", "accuracy", "ms", "match"),
    [
        (50.0, 80.0, None, "zeros 50.0: a fraction from 0 to 1"),
        (0.5, float("nan"), None, "accuracy nan: a finite number"),
        (0.5, 80.0, float("inf"), "ms inf: a finite number"),
    ],
)
def test_outcomes_that_cannot_be_drawn(
    zeros: float, accuracy: float, ms: float | None, match: str
) -> None:
    with pytest.raises(ValueError, match=f"Outcome 'Wanda', '2:4': {match}"):
        gs.Outcome("Wanda", "2:4", zeros, accuracy, ms)


def test_times_have_no_exponent() -> None:
    slow = [
        gs.Outcome("dense", "dense", 0.0, 90.0, 3714.0),
        gs.Outcome("Best", "2:4", 0.5, 89.0, 3281.0),
    ]
    text = Outline(gs.report(net(), outcome=slow[1], outcomes=slow)).text
    assert "3.28 s, not 3.71 s" in text
    assert "3.28 s, 1.13x" in text
    assert "e+0" not in text


def test_counts_have_no_exponent() -> None:
    text = Outline(gs.report(nn.Linear(1200, 833))).text
    assert "1 M" in text
    assert "e+0" not in text


def test_patterns_of_the_plan_are_rounded() -> None:
    model = gs.sparsify_(pruned_layer(), layout="format")
    pattern = gs.explain(model)["0"].pattern
    assert len(pattern) > len("unstructured:0.9000")  # So many digits are the weight's own.
    shown = str(gs.report(model))
    assert "<td class=text>unstructured:0.9</td>" in shown
    assert pattern not in shown


def test_names_are_escaped() -> None:
    outcomes = [*OUTCOMES[:2], gs.Outcome("<script>x", "2:4", 0.5, 1.0)]
    outline = Outline(gs.report(net(), outcomes=outcomes, title="a < b"))
    assert outline.count("script") == 0
    assert "<script>x" in outline.text


def test_the_front_joins_what_no_other_beats() -> None:
    text = gs.report(net(), outcomes=OUTCOMES)
    (path,) = re.findall(r'class="front" d="([^"]+)"', text)
    # Best at 50 % and SparseGPT at 80 %: one corner, one step down and to the right.
    assert re.fullmatch(r"M[\d. ]+V[\d.]+H[\d.]+", path)


def test_a_rounding_of_zeros_puts_nothing_on_the_front() -> None:
    rounded = gs.Outcome("magnitude", "unstructured:0.8", 0.8004, 1.0)
    best = max((one for one in OUTCOMES if one.zeros == 0.8), key=lambda one: one.accuracy)
    assert rounded.accuracy < best.accuracy
    fronts = [
        re.findall(r'class="front" d="([^"]+)"', gs.report(net(), outcomes=own))
        for own in (OUTCOMES, [*OUTCOMES, rounded])
    ]
    assert [len(path[0].split("V")) for path in fronts] == [2, 2]


def test_sensitivity_says_where_its_judge_is_another() -> None:
    model = net()
    found = measure_sensitivity(model, lambda own: 12.5)
    text = gs.report(model, outcomes=OUTCOMES, sensitivity=found)
    assert "Its judge is another: dense has 12.50 by it." in text
    assert "judge" not in gs.report(model, sensitivity=found)


def test_labels_do_not_touch() -> None:
    curves = [Curve(f"c{i}", [0, 1], [0, 1 + i / 1000], series=1) for i in range(8)]
    chart = curve_chart(
        curves, title="t", x_label="x", y_label="y", level=(1.0, "dense"), front=[(0, 1), (1, 0)]
    )
    tree = ET.fromstring(chart)
    ys = sorted(
        float(text.get("y", "0"))
        for text in tree.iter("text")
        if (text.get("class") or "").startswith("name")
    )
    assert len(ys) == 9
    assert all(later - earlier >= 15.9 for earlier, later in itertools.pairwise(ys))
    assert max(ys) <= 420


def test_bars_of_a_column_share_a_scale() -> None:
    columns = [Column("a", [1.0, 2.0, None], ["1", "2", "none"], 1)]
    tree = ET.fromstring(
        re.search(r"<svg.*</svg>", row_chart(["x", "y", "z"], columns, title="t"))[0]
    )
    short, long = (
        float(part.get("width", "0"))
        for part in tree.iter("rect")
        if (part.get("class") or "").startswith("bar")
    )
    assert long == pytest.approx(2 * short, rel=0.01)


def test_sensitivity_leaves_the_model_as_it_was() -> None:
    model, x = net(), data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen: list[dict[str, float]] = []

    def evaluate(own: nn.Module) -> float:
        seen.append(sparsity_report(own))
        return float(len(seen))

    found = measure_sensitivity(
        model, evaluate, ["unstructured:0.5", "2:4"], method=gs.Wanda, batches=[x]
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert list(model.state_dict()) == list(before)
    assert len(seen) == 1 + 3 * 2
    assert found.dense == 1.0
    for index, name in enumerate(found.layers):
        assert found.zeros[name] == pytest.approx([0.5, 0.5], abs=0.01)
        for zeros in seen[1 + 2 * index : 3 + 2 * index]:
            assert [own for own, share in zeros.items() if share > 0] == [name]
    assert found.most_sensitive(1) == [next(iter(found.layers))]


def test_sensitivity_refuses_live_masks_and_missing_batches() -> None:
    model = net()
    with pytest.raises(ValueError, match="pass batches"):
        measure_sensitivity(model, lambda own: 1.0, ["2:4"], method=gs.Wanda)
    gs.Magnitude("2:4").prepare(model)
    with pytest.raises(ValueError, match="live mask"):
        measure_sensitivity(model, lambda own: 1.0)


needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)


def in_browser(file: Path, folder: Path) -> str:
    """The document as a browser has it once everything is loaded."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    command += [f"--user-data-dir={folder}/p", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout


@needs_browser
def test_a_browser_shows_every_part(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    whole_page(file)
    shown = in_browser(file, tmp_path)
    for name in SECTIONS:
        assert f'id="{name}"' in shown
    assert shown.count("<svg") == 3
    assert shown.count("data:image/png;base64,") >= 3


@needs_browser
def test_a_plan_with_long_names_needs_no_scrolling(tmp_path: Path) -> None:
    report = gs.explain(gs.sparsify_(pruned_layer(), layout="format"))["0"]
    name = "avx512_linear_rowpairs64_bf16_x4+avx512_linear_bitmask_bf16_few"
    layers = [replace(report, name="encoder.layer.0.attention.output.dense", kernel=name)] * 3
    section = str(model_report._plan_section(layers, None))
    own = page("A plan", "", [Markup(section)], "")
    script = (
        "<script>onload=()=>{const e=document.querySelector('.scroll');"
        "document.body.dataset.over=e.scrollWidth-e.clientWidth}</script>"
    )
    over = []
    for text in (own, own.replace("overflow-wrap:anywhere", "white-space:nowrap")):
        (tmp_path / "plan.html").write_text(text + script, encoding="utf-8")
        shown = in_browser(tmp_path / "plan.html", tmp_path)
        over.append(int(re.search(r'data-over="(\d+)"', shown)[1]))
    assert over[0] == 0 < over[1]


@needs_browser
def test_nothing_is_wider_than_its_window(tmp_path: Path) -> None:
    page = whole_page()
    too_wide = page.replace("<main>", '<main><div style="width:1000px">wide</div>')
    frames = "".join(
        f'<iframe srcdoc="{html.escape(text)}" style="width:{width}px;height:600px"></iframe>'
        for text, width in [*((page, width) for width in WIDTHS), (too_wide, WIDTHS[0])]
    )
    script = (
        "onload=()=>{document.body.dataset.over=[...document.querySelectorAll('iframe')].map("
        "f=>f.contentDocument.documentElement).map(e=>e.scrollWidth-e.clientWidth)}"
    )
    file = tmp_path / "frames.html"
    file.write_text(f"<!doctype html><body>{frames}<script>{script}</script>", encoding="utf-8")
    found = re.search(r'data-over="([\d,]+)"', in_browser(file, tmp_path))
    assert found is not None
    *over, control = (int(pixels) for pixels in found[1].split(","))
    assert over == [0] * len(WIDTHS)
    assert control > 0
