# SPDX-License-Identifier: BSD-3-Clause
"""Runs the examples of the documentation as they stand there."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import gossamer
from gossamer import prune as P
from gossamer.prune import Transposable

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
    methods = page.split("## Methods")[1].split("Parts (")[0]
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", methods, re.M)
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


TABLE_PATTERNS = {
    "unstructured": ["unstructured:0.5"],
    "N:M": ["2:4"],
    "fanin": ["fanin:0.5"],
    "block": ["block:4x4:0.5"],
    "vnm": ["vnm:4:4:8"],
    "transposable": ["transposable:2:4", Transposable("4:8")],
}
TABLE_PARTS: dict[str, list[Any]] = {
    "scores": [P.ByMagnitude(), P.ByRandom(), P.ByWanda(), P.ByRIA(), P.ByObs()],
    "Swap": [(P.ByWanda(), P.Swap())],
    "ObsSweep": [P.ObsSweep(), (P.ByWanda(), P.ObsSweep())],
    "Admm": [P.Admm(20)],
    "LeastSquares": [(P.ByWanda(), P.LeastSquares())],
}


def test_the_table_of_parts_and_patterns_is_what_parts_do() -> None:
    page = (ROOT / "docs" / "pruning.md").read_text()
    found = re.search(r"^\| part \|(.*?)\n\n", page, re.M | re.S)
    assert found is not None
    rows = [
        [cell.strip() for cell in row.split("|")[1:-1]] for row in found[0].strip().splitlines()
    ]
    names = [re.findall(r"`?([\w:]+)`?", cell)[0] for cell in rows[0][1:]]
    assert names == list(TABLE_PATTERNS)
    said = {re.findall(r"\w+", row[0])[0]: row[1:] for row in rows[2:]}
    assert said.keys() == TABLE_PARTS.keys()
    for part, cells in said.items():
        for (name, patterns), cell in zip(TABLE_PATTERNS.items(), cells, strict=True):
            for pattern, parts in itertools.product(patterns, TABLE_PARTS[part]):
                model = torch.nn.Sequential(torch.nn.Linear(16, 16))
                own = parts if isinstance(parts, tuple) else (parts,)
                if cell == "refused":
                    with pytest.raises(ValueError, match=f"'{pattern}' would be broken"):
                        P.OneShot(pattern, *own)
                    continue
                assert cell in ("yes", "mask first"), (part, name)
                method = P.OneShot(pattern, *own)
                method.prepare(model)
                inputs = [torch.randn(64, 16)]
                assert method.calibrate(inputs).layers[0].zeros == pytest.approx(0.5)
                if cell == "mask first" and len(own) == 1:
                    problem = P.LayerProblem(
                        "w", torch.randn(1, 16, 16), torch.eye(16)[None], pattern
                    )
                    own[0](problem)
                    alone, problem.mask, problem.solution = problem.mask, None, None
                    P.ByObs()(problem)
                    assert torch.equal(problem.mask, alone)


def test_the_example_of_hugging_face_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(torch.nn.Module):
        """What the example uses of a model."""

        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(32, 16)
            layers = [torch.nn.Linear(16, 16) for _ in range(2)]
            self.layers, self.head = torch.nn.ModuleList(layers), torch.nn.Linear(16, 32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            x = self.embed(input_ids) * attention_mask[..., None]
            for layer in self.layers:
                x = x + layer(x).relu()
            return self.head(x)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

        def save_pretrained(self, folder: str) -> None:
            saved.append({name: value.clone() for name, value in self.state_dict().items()})

    def tokenizer(text: str, **options: Any) -> dict[str, torch.Tensor]:
        assert options == {"return_tensors": "pt", "truncation": True, "max_length": 2048}
        ids = torch.tensor([[ord(letter) % 32 for letter in text]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    saved: list[dict[str, torch.Tensor]] = []
    fake = types.ModuleType("transformers")
    fake.AutoModelForCausalLM = types.SimpleNamespace(from_pretrained=lambda name: Model())
    fake.AutoTokenizer = types.SimpleNamespace(from_pretrained=lambda name: tokenizer)
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calibration.txt").write_text("to be or not to be\n\n" * 9 + "that is it")
    (source,) = blocks("pruning.md", "py")
    exec(compile(source, "pruning.md", "exec"), {"__name__": "example"})
    (state,) = saved
    assert (state["layers.1.weight"].view(-1, 4) != 0).sum(dim=1).eq(2).all()
    assert (state["head.weight"] != 0).all()


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
