# SPDX-License-Identifier: BSD-3-Clause
"""The fusion pass under torch.compile: residuals, and inductor's cache."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.custom_graph_pass import CustomGraphPass

import gossamer as gs
from sparsify_helpers import GENERIC


class Residual(nn.Module):
    """Two convolutions and a shortcut; `late` changes the input before the sum."""

    def __init__(self, late: bool, shortcut: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 8, 1)
        self.late = late
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        z = self.second(y)
        other = self.norm(self.down(x)) if self.shortcut else x
        if self.late:
            y.mul_(2)
        z += other
        return F.relu(z)


@pytest.mark.parametrize(
    ("late", "shortcut", "fused"), [(False, False, 2), (False, True, 2), (True, False, 1)]
)
def test_the_compile_pass_adds_residuals(late: bool, shortcut: bool, fused: int) -> None:
    torch.manual_seed(4)
    torch.compiler.reset()
    model = Residual(late, shortcut).eval()
    for layer in (model.first, model.second, model.down):
        with torch.no_grad():
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
    gs.sparsify_(model, layout=GENERIC)
    calls: list[tuple[int, bool]] = []

    class Note(CustomGraphPass):
        def __call__(self, graph: torch.fx.Graph) -> None:
            for node in graph.nodes:
                if node.target is torch.ops.gossamer.conv2d.default:
                    rest = [*node.args[9:], None, None]
                    calls.append((rest[0] or 0, rest[1] is not None))

        def uuid(self) -> None:
            return None

    x = torch.randn(2, 8, 9, 9)
    options = {"pre_grad_custom_pass": gs.fusion_pass, "post_grad_custom_post_pass": Note()}
    with torch.no_grad():
        expected = model(x)
        actual = torch.compile(model, options=options, fullgraph=True)(x)
    torch.testing.assert_close(actual, expected)
    assert sum(activation == 1 for activation, _ in calls) == fused
    assert sum(has_residual for _, has_residual in calls) == (0 if late else 1)


def test_compiled_graphs_are_kept_and_told_apart(tmp_path: Path) -> None:
    """The pass has an identity, so that inductor keeps what it compiled."""
    first, again = run_cached(tmp_path), run_cached(tmp_path)
    assert first["errors"] == again["errors"] == 0
    assert first["hits"] == 0
    assert again["hits"] == first["misses"] > 0
    assert len(gs.fusion_pass.uuid()) == 32


def run_cached(folder: Path) -> dict[str, int]:
    """Three models of one graph in a process of its own, with inductor's cache in `folder`."""
    code = """
import json, torch, gossamer as gs
from torch import nn
from torch._dynamo.utils import counters
torch.manual_seed(0)
errors = 0
for layout in ("bitmask", "kcsr128", None):
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.Linear(48, 8)).eval()
    for layer in (model[0], model[2]):
        layer.weight.data.mul_(torch.rand_like(layer.weight) < 0.3)
    if layout:
        gs.sparsify_(model, layout=layout)
    x = torch.randn(5, 32)
    with torch.no_grad():
        wanted = model(x)
        options = {"pre_grad_custom_pass": gs.fusion_pass}
        got = torch.compile(model, options=options, fullgraph=True)(x)
    errors += not torch.allclose(got, wanted, rtol=1e-5, atol=1e-5)
found = counters["aot_autograd"]
print(json.dumps({
    "errors": errors,
    "hits": found["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"],
    "misses": found["autograd_cache_miss"] + counters["inductor"]["fxgraph_cache_miss"],
    "bypass": found["autograd_cache_bypass"] + counters["inductor"]["fxgraph_cache_bypass"],
}))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])
