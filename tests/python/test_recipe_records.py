# SPDX-License-Identifier: BSD-3-Clause
"""Records of the recipes that prune at once, and the tables of their page."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "recipes"))

import minilm_stsb as stsb
import resnet_cifar10 as resnet
import run_tools
from cifar10 import Images

FOLDER = Path(__file__).parents[2] / "examples" / "recipes"


def options(record: Path | None, **changes: object) -> argparse.Namespace:
    values = {"methods": "magnitude;Wanda", "patterns": "2:4", "quick": False, "device": "cpu"}
    return argparse.Namespace(**{**values, "data": None, "record": record, **changes})


def tables() -> list[list[list[str]]]:
    """The page's tables: rows of cells, headings first."""
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"(?:^\|.*\|\n)+", page, re.M)
    return [
        [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
        for table in found
    ]


@pytest.fixture
def pruned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Patterns in the order in which they were pruned; nothing real is loaded or run."""
    calls: list[str] = []

    def prune(model: nn.Module, sparsifier: object, pattern: str, images: Images):
        calls.append(pattern)
        return model, SimpleNamespace(mean_error=0.25)

    images = Images(torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))
    monkeypatch.setattr(resnet, "data_folder", lambda path: Path("none"))
    monkeypatch.setattr(resnet, "load_test", lambda folder, **_: images)
    monkeypatch.setattr(resnet, "load_calibration", lambda folder: images)
    monkeypatch.setattr(resnet, "load_resnet", lambda folder, depth: nn.Linear(4, 4))
    monkeypatch.setattr(resnet, "accuracy", lambda model, test: 50.0 + len(calls))
    monkeypatch.setattr(resnet, "prune", prune)
    return calls


def test_a_run_of_the_resnet_goes_on_behind_its_record(
    tmp_path: Path, pruned: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "results" / "resnet.jsonl"
    resnet.run(options(record, depth=20, report=None))
    assert pruned == ["2:4", "2:4"]
    first = capsys.readouterr().out
    assert "dense accuracy 50.00" in first
    assert "| Wanda | 0.2500 / 52.00 |" in first
    resnet.run(options(record, depth=20, report=None))
    assert len(pruned) == 2
    assert capsys.readouterr().out == first
    resnet.run(options(record, depth=20, report=None, patterns="70 %;2:4"))
    assert pruned[2:] == ["unstructured:0.7"] * 2
    assert "| Wanda | 0.2500 / 54.00 | 0.2500 / 52.00 |" in capsys.readouterr().out
    resnet.run(options(record, depth=32, report=None))
    assert len(pruned) == 6  # Another network has results of its own.
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [line["run"] for line in lines] == 5 * ["resnet-20 cpu"] + 3 * ["resnet-32 cpu"]
    assert all(len(line["result"]) == 4 for line in lines)


def test_the_page_is_about_the_last_model_of_a_record_too(
    tmp_path: Path, pruned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr(resnet, "write_report", lambda *arguments: written.append(arguments))
    for _ in range(2):
        resnet.run(options(tmp_path / "r.jsonl", depth=20, report=tmp_path / "page.html"))
    assert len(pruned) == 3  # The last cell once more, for its model.
    for file, _, _, layers, outcomes, _ in written:
        assert file == tmp_path / "page.html"
        assert layers.mean_error == 0.25
        assert [one.accuracy for one in outcomes] == [50.0, 51.0, 52.0]


def test_a_run_of_minilm_goes_on_behind_its_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[tuple[str, str]] = []

    class Task:
        dense_score = 82.0

        def __init__(self, data: str | None, device: torch.device) -> None:
            calls.append(("loaded", str(device)))

        def run(self, method: str, pattern: str) -> tuple[float, float]:
            calls.append((method, pattern))
            return 80.0 + len(calls), 0.5

    monkeypatch.setattr(stsb, "Task", Task)
    record = tmp_path / "stsb.jsonl"
    stsb.run(options(record))
    assert calls == [("loaded", "cpu"), ("magnitude", "2:4"), ("Wanda", "2:4")]
    first = capsys.readouterr().out
    assert "| Wanda | 83.00 / 0.5000 |" in first
    stsb.run(options(record))
    assert len(calls) == 3  # Not even the model is loaded.
    assert capsys.readouterr().out == first
    stsb.run(options(record, patterns="60 %"))
    assert calls[3:] == [
        ("loaded", "cpu"),
        ("magnitude", "unstructured:0.6"),
        ("Wanda", "unstructured:0.6"),
    ]


def test_results_of_several_numbers_come_back(tmp_path: Path) -> None:
    record = run_tools.Record(tmp_path / "r.jsonl", "a")
    record.add(0, "m", "2:4", 1.0, 2.0)
    record.add(0, "m", "50 %", 3.0)
    again = run_tools.Record(tmp_path / "r.jsonl", "a")
    assert again.get("m", "2:4") == (1.0, 2.0)
    assert again.get("m", "50 %") == (3.0,)
    assert again.get("m", "70 %") is None
    assert again.rows([0], [("m", "2:4")]) == {"m": {"2:4": [1.0]}}


# --- The page -------------------------------------------------------------------------------------


def test_what_is_reached_is_what_the_tables_have() -> None:
    (asked,) = [table for table in tables() if table[0][:3] == ["model", "pattern", "method"]]
    measured = {
        "ResNet-20": next(t for t in tables() if t[0][:2] == ["method", "50 %"]),
        "MiniLM": next(t for t in tables() if t[0][:4] == ["method", "50 %", "2:4", "60 %"]),
    }
    model, misses = "", []
    for row in asked[2:]:
        model = row[0].split(",")[0] or model
        heads, *rows = measured[model]
        (found,) = [own for own in rows if own[0].removesuffix(" *") == row[2]]
        cell = found[heads.index(row[1])]
        assert cell.endswith(row[4]), row  # An error may stand before the accuracy.
        wanted = [float(number) for number in row[3].split(" / ")]
        reached = [float(number) for number in row[4].split(" / ")][: len(wanted)]
        holds = all(got >= least for got, least in zip(reached, wanted, strict=True))
        assert row[5] == ("yes" if holds else "no"), row
        misses += [] if holds else [row[2]]
    assert len(asked) == 12
    assert misses == ["ALPS, dense target"]


def test_the_quick_table_is_that_of_its_record() -> None:
    record = run_tools.Record(FOLDER / "results" / "resnet20-zen4.jsonl", "resnet-20 cpu")
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for method in resnet.QUICK_METHODS:
        row = resnet.table_row(record, method, resnet.QUICK_PATTERNS)
        assert f"\n{row}\n" in page


def test_the_column_of_sixty_percent_is_that_of_its_record() -> None:
    record = run_tools.Record(FOLDER / "results" / "minilm_stsb-zen4.jsonl", "minilm-stsb cpu")
    (table,) = [t for t in tables() if t[0][:4] == ["method", "50 %", "2:4", "60 %"]]
    rows = {row[0].removesuffix(" *"): row for row in table[2:]}
    assert rows.keys() == stsb.METHODS.keys()
    for method, row in rows.items():
        score, cosine, _ = stsb.known(record, method, "60 %")
        assert row[3] == f"{score:.2f} / {cosine:.4f}"
