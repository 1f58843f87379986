# SPDX-License-Identifier: BSD-3-Clause
"""Compiled and exported packed models, run where gossamer's classes were never imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gossamer._library import library_path
from gossamer.weight import SparseWeight

TOKENS = (1, 2, 7, 40)


def packed_model(layout: str = "kcsr128") -> nn.Module:
    model = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8, bias=False))
    model.requires_grad_(False)
    for index in (0, 2):
        w = model[index].weight * (torch.rand_like(model[index].weight) < 0.2)
        weight = SparseWeight.from_dense(w, layout=layout)
        model[index].weight = nn.Parameter(weight, requires_grad=False)
    return model


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    shapes = ({0: torch.export.Dim("tokens")},)
    return torch.export.export(model, (torch.randn(6, 48),), dynamic_shapes=shapes)


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_whole(dynamic: bool) -> None:
    model = packed_model()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for tokens in TOKENS:
        x = torch.randn(tokens, 48)
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    with torch.inference_mode():
        assert torch.allclose(compiled(x), model(x), atol=1e-5)


def test_dynamic_shapes_compile_once() -> None:
    model = packed_model()
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (3, 7, 40, 500):
        x = torch.randn(tokens, 48)
        assert torch.allclose(compiled(x), model(x), atol=1e-5)
    assert len(graphs) == 1


def test_compiled_gradients() -> None:
    model = packed_model()
    compiled = torch.compile(model, fullgraph=True)
    grads = []
    x = torch.randn(5, 48)
    for run in (model, compiled):
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-4)


def test_compiled_after_new_values() -> None:
    model = packed_model()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.randn(5, 48)
    compiled(x)
    model[0].weight.copy_(torch.randn(32, 48))
    assert torch.allclose(compiled(x), model(x), atol=1e-5)


RUN = """
import sys
import torch
torch.ops.load_library(sys.argv[1])
inputs, expected = torch.load(sys.argv[3])
{load}
for x, y in zip(inputs, expected, strict=True):
    torch.testing.assert_close(run(x), y, rtol=1e-5, atol=1e-5)
assert not [name for name in sys.modules if name.split(".")[0] == "gossamer"]
print("ran", len(inputs))
"""


def run_elsewhere(load: str, program: Path, model: nn.Module, tmp_path: Path) -> None:
    """Runs a program in a process that has loaded the operators and nothing else of ours."""
    inputs = [torch.randn(tokens, 48) for tokens in TOKENS]
    data = tmp_path / "data.pt"
    torch.save((inputs, [model(x) for x in inputs]), data)
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(load=load), library_path(), program, data],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"ran {len(TOKENS)}" in done.stdout


@pytest.mark.parametrize("layout", ["format", "kcsr128"])
def test_an_exported_program_runs_elsewhere(layout: str, tmp_path: Path) -> None:
    model = packed_model(layout)
    program = exported(model)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.gossamer.linear.default) == 2
    x = torch.randn(3, 48)
    assert torch.allclose(program.module()(x), model(x), atol=1e-5)
    path = tmp_path / "model.pt2"
    torch.export.save(program.run_decompositions({}), path)
    run_elsewhere("run = torch.export.load(sys.argv[2]).module()", path, model, tmp_path)


@pytest.mark.slow
def test_an_aotinductor_package_runs_elsewhere(tmp_path: Path) -> None:
    model = packed_model()
    path = tmp_path / "model_aoti.pt2"
    torch._inductor.aoti_compile_and_package(exported(model), package_path=str(path))
    # torch 2.10 uses this module there without importing it.
    load = "import torch._inductor.codecache\nrun = torch._inductor.aoti_load_package(sys.argv[2])"
    run_elsewhere(load, path, model, tmp_path)
