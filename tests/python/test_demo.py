# SPDX-License-Identifier: BSD-3-Clause
"""The demo, small; and that its checks can fail."""

from __future__ import annotations

import copy
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"

pytest.importorskip("sklearn")


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "digits_demo.py"), "--fast", "--out", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_files_and_table(outcome) -> None:
    folder, shown = outcome
    names = {file.name for file in folder.iterdir()}
    assert names == {
        "dense.safetensors",
        "sparse90.safetensors",
        "sparse24.safetensors",
        "sparse90-packed.safetensors",
        "sparse24-packed.safetensors",
        "logits.safetensors",
        "report.html",
        "results.json",
    }
    for text in ("accuracy", "90 % unstructured", "2:4", "Plan of the", "layer 2, 256x128"):
        assert text in shown


def test_results_say_what_was_run(outcome) -> None:
    folder, _ = outcome
    results = json.loads((folder / "results.json").read_text())
    for name, kept in {"sparse90": 0.1, "sparse24": 0.5}.items():
        network = results[name]
        assert 0 <= network["share_of_error_bound"] <= 1
        assert network["bytes"] == (folder / f"{name}-packed.safetensors").stat().st_size
        assert network["bytes"] < results["dense"]["bytes"]
        assert len(network["history"]["accuracy"]) == 5
        assert network["history"]["sparsity"][-1] == pytest.approx(1 - kept, abs=0.002)
        layers = network["layers"]
        assert [layer["name"] for layer in layers] == ["0", "2", "4", "6"]
        assert all(layer["reason"] for layer in layers)
        assert not layers[3]["packed"]
        for layer in layers[:3]:
            assert layer["density"] == pytest.approx(kept, abs=0.002)
            assert ("latency" in layer) == layer["packed"]


def test_report_is_whole_and_self_contained(outcome) -> None:
    from test_pages import Outline, external

    text = (outcome[0] / "report.html").read_text(encoding="utf-8")
    outline = Outline(text)
    ids = [attributes.get("id") for tag, attributes in outline.elements if tag == "section"]
    assert ids == ["results", "training", "latency", "masks", "digits", "plan"]
    assert outline.count("svg") == 3
    assert outline.count("table") == 2
    assert outline.count("img") >= 8
    assert external(text) == []


def test_error_bound_holds_and_is_not_idle() -> None:
    network = importlib.import_module("digits.network")
    bound_of = importlib.import_module("digits.run_packed").error_bound
    model = network.build_network(fast=True)
    x = torch.rand(50, 64)
    with torch.no_grad():
        bound = bound_of(model, x)
        exact = copy.deepcopy(model).double()(x.double())
        assert ((model(x) - exact).abs() <= bound).all()
        model[4].weight[:, 16:32] = 0  # a kernel that loses 16 columns is outside of it
        assert ((model(x) - exact).abs() > bound).any()


def good_results() -> dict:
    latency = {"256": {"sparse_ms": 1.0, "dense_ms": 3.0, "speedup": 3.0, "slower": False}}
    layer = {"name": "2", "out": 2048, "in": 1024, "packed": True, "reason": "", "latency": latency}
    network = {"accuracy": 98.0, "bytes": 20, "share_of_error_bound": 0.1, "layers": [layer]}
    dense = {"accuracy": 98.5, "bytes": 100, "share_of_error_bound": 0.0}
    return {"dense": dense, "sparse90": network, "sparse24": copy.deepcopy(network)}


def test_checks_pass_what_is_good() -> None:
    checks = importlib.import_module("digits.checks")
    assert checks.wrong_results(good_results()) == []
    assert checks.broken_promises(good_results()) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sparse90", "accuracy"), 97.25, "points of accuracy"),
        (("sparse90", "bytes"), 26, "of the dense one"),
        (("sparse90", "layers", 0, "latency", "256", "speedup"), 1.9, "1.90x dense at batch 256"),
        (("sparse90", "layers", 0, "packed"), False, "stayed dense"),
        (("sparse24", "layers", 0, "latency", "256", "slower"), True, "slower than dense"),
    ],
)
def test_checks_name_each_broken_promise(path, value, message) -> None:
    results = good_results()
    place = results
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    found = importlib.import_module("digits.checks").broken_promises(results)
    assert len(found) == 1
    assert message in found[0]


@pytest.mark.parametrize("share", [1.5, float("nan")])
def test_checks_name_wrong_results(share: float) -> None:
    results = good_results()
    results["sparse24"]["share_of_error_bound"] = share
    (found,) = importlib.import_module("digits.checks").wrong_results(results)
    assert found.startswith("sparse24")
