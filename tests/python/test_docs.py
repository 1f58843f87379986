# SPDX-License-Identifier: BSD-3-Clause
"""Runs the examples of the documentation as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import gossamer

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(gossamer.__file__).parent / "libgossamer.so"


def blocks(page: str, language: str) -> list[str]:
    """The fenced code blocks of one language on a page."""
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def test_the_page_shows_each_extension_once() -> None:
    assert len(blocks("extending.md", "python")) == 6
    assert len(blocks("extending.md", "cpp")) == 1


def test_the_methods_of_the_page_are_there_by_their_names() -> None:
    page = (ROOT / "docs" / "pruning.md").read_text()
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", page, re.M)
    names = {name for row in rows for name in re.findall(r"\w+", row)}
    assert {"Best", "Movement", "LotteryTicket"} <= names
    assert names <= set(gossamer.__all__)
    parts = re.search(r"^Parts \(`gossamer.prune`\): (.*?)\[", page, re.M | re.S)
    assert parts is not None
    assert set(re.findall(r"`(\w+)`", parts[1])) <= set(gossamer.prune.__all__)


PAGES = ["extending.md", "fusion.md", "patterns.md", "pruning.md", "quantization.md"]


@pytest.mark.parametrize("page", PAGES)
def test_python_examples_run_and_are_short(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Some write files.
    examples = blocks(page, "python")
    assert examples
    for source in examples:
        assert source.count("\n") < 40
        exec(compile(source, page, "exec"), {"__name__": "example"})


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_cpp_example_builds_and_runs(tmp_path: Path) -> None:
    (source,) = blocks("extending.md", "cpp")
    assert source.count("\n") < 60
    (tmp_path / "kernel.cpp").write_text(source)
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'include'}"]
    link = [str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"]
    subprocess.run(["g++", *flags, "kernel.cpp", *link, "-o", "kernel"], cwd=tmp_path, check=True)
    ran = subprocess.run([tmp_path / "kernel"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "201 4030\n")


def test_the_reader_of_formats_finds_tied_weights(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict(
        {
            "wte": torch.nn.Embedding(50, 32),
            "head": torch.nn.Linear(32, 50, bias=False),
            "a": torch.nn.Linear(64, 64, bias=False),
            "b": torch.nn.Linear(64, 64, bias=False),
        }
    )
    model["head"].weight = model["wte"].weight
    model["b"].weight = model["a"].weight
    with torch.no_grad():
        model["a"].weight.mul_(torch.rand(64, 64) < 0.1)
    want = {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}
    gossamer.sparsify_(model, layout="format")
    gossamer.save(model, tmp_path / "m.safetensors")
    (source,) = blocks("formats.md", "python")
    scope: dict[str, Any] = {}
    exec(compile(source, "formats.md", "exec"), scope)
    got = scope["read"](tmp_path / "m.safetensors")
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert np.array_equal(got[name], values), name


def test_the_readmes_ten_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def train_step(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    batch = (torch.randn(16, 64), torch.randint(8, (16,)))
    (source,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    scope = {"model": model, "batches": [batch] * 600, "train_step": train_step}
    exec(compile(source, "README.md", "exec"), scope)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.keys()
    zeros = sum((layer.weight.to_dense() == 0).sum() for layer in (model[0], model[2]))
    assert int(zeros) == round(0.9 * 64 * 96) + round(0.9 * 96 * 8)


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / link).exists(), link
    for name in set(re.findall(r"\bgs\.(\w+)", text)):
        assert hasattr(gossamer, name), name
