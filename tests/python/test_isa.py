# SPDX-License-Identifier: BSD-3-Clause
"""The same products under each level of instruction sets, every kernel that it leaves in turn."""

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

import gossamer as gs
from gossamer.weight import SparseWeight, linear

PATTERNS = [
    "unstructured:0.8",
    "2:4",
    "1:4",
    "4:8",
    "block:4x4:0.5",
    "block:16x32:0.5",
    "fanin:0.75",
    "vnm:8:2:8",
]
SHAPES = [(24, 40), (7, 33), (65, 300)]
TOKENS = [1, 5, 17, 70]
LEVELS = {"generic": (), "avx2": ("avx2", "avx_vnni")}
"""The instruction sets that a level may leave; avx512 leaves all but AMX."""


def assert_close(y: Tensor, x: Tensor, w: Tensor, bias: Tensor | None, *, relu: bool) -> None:
    """Within the rounding of any order of summation of the float64 result.

    Sums of n = K + 1 terms, in float64 for float64 and in float32 otherwise, err by at most
    n·u / (1 − n·u) · (Σ|x||w| + |b|) (Higham 2002, eq. 4.4); products of float16 or bfloat16 are
    exact in float32. The reference's own sum errs likewise, in float64. Rounding the sum to the
    result's dtype adds half a unit in its last place, or half the smallest subnormal. ReLU brings
    no two numbers further apart.
    """
    exact, magnitude = x.double() @ w.double().mT, x.double().abs() @ w.double().abs().mT
    if bias is not None:
        exact, magnitude = exact + bias.double(), magnitude + bias.double().abs()
    terms = x.shape[-1] + 1

    def rounding(unit: float) -> Tensor:
        return terms * unit / (1 - terms * unit) * magnitude

    summed = rounding(2.0**-53 if y.dtype == torch.float64 else 2.0**-24) + rounding(2.0**-53)
    info = torch.finfo(y.dtype)
    bound = summed + (exact.abs() + summed) * (info.eps / 2) + info.smallest_normal * info.eps / 2
    exact = exact.relu() if relu else exact
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= bound).all())


def rows_for(weight: SparseWeight) -> list[gs.Kernel]:
    dtype = str(weight.dtype).removeprefix("torch.")
    return [
        row
        for row in gs.kernels()
        if row.operation == "linear"
        and row.runs_here
        and row.weight_dtype == row.activation_dtype == dtype
    ]


def check_products(pattern: str, out: int, inputs: int, dtype: torch.dtype) -> set[str]:
    """Every kernel that runs here and every count of tokens; the names of those that ran."""
    w = torch.randn(out, inputs)
    w = (w * torch.ops.gossamer.magnitude_mask(w, pattern, "tensor")).to(dtype)
    formed = SparseWeight.from_dense(w, pattern)
    bias = torch.randn(out).to(dtype)
    ran = set()
    for row in rows_for(formed):
        try:
            packed = torch.ops.gossamer.convert(formed.packed, row.layout)
        except ValueError as error:
            if not str(error).startswith(f"layout {row.layout} holds "):  # other patterns
                raise
            continue
        kernels = json.dumps([row.name] * 8)
        weight = SparseWeight.from_packed(torch.ops.gossamer.with_plan(packed, kernels))
        assert weight.plan == [row.name] * 8
        ran.add(row.name)
        for tokens in TOKENS:
            x = torch.randn(tokens, inputs).to(dtype)
            assert_close(F.linear(x, weight), x, w, None, relu=False)
            y = linear(x, weight, bias, activation="relu")
            assert_close(y, x, w, bias, relu=True)
    return ran


def check_model() -> None:
    """What the cost model plans on this level computes what the dense model does."""
    model = nn.Sequential(nn.Linear(512, 768), nn.ReLU(), nn.Linear(768, 256))
    pruner = gs.Magnitude("unstructured:0.97")
    pruner.prepare(model, {"0": "unstructured:0.97", "2": "2:4"})
    pruner.step()
    pruner.squash_mask()
    dense = [layer.weight.detach().clone() for layer in (model[0], model[2])]
    gs.sparsify_(model, plan="model")
    with torch.no_grad():
        for tokens in TOKENS:
            x = torch.randn(tokens, 512)
            hidden = model[0](x)
            assert_close(hidden, x, dense[0], model[0].bias, relu=False)
            assert_close(model[2](hidden), hidden, dense[1], model[2].bias, relu=False)


def check_all() -> None:
    """Runs in a process of its own; prints what the level left and which kernels ran."""
    torch.manual_seed(20)
    torch.set_num_threads(1)  # three processes in a row; threads are tested elsewhere
    ran: set[str] = set()
    for pattern in PATTERNS:
        for out, inputs in SHAPES:
            ran |= check_products(pattern, out, inputs, torch.float32)
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            ran |= check_products(pattern, *SHAPES[0], dtype)
    check_model()
    print(json.dumps({"isa": gs.machine().isa, "ran": sorted(ran)}))


@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_products_at_each_level(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import test_isa; test_isa.check_all()"],
        cwd=Path(__file__).parent,
        env={**os.environ, "GOSSAMER_MAX_ISA": level, "GOSSAMER_CACHE": "off"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    left = set(found["isa"])
    assert not any(name.startswith("amx") for name in left)
    assert left <= set(LEVELS.get(level, left))
    floats = {"float64", "float32", "float16", "bfloat16"}
    rows = {row.name: row for row in gs.kernels() if row.operation == "linear"}
    wanted = {
        name
        for name, row in rows.items()
        if set(row.needs) <= left and row.weight_dtype == row.activation_dtype
    }
    assert set(found["ran"]) == {name for name in wanted if rows[name].weight_dtype in floats}
    assert any(name.startswith("generic_") for name in found["ran"])
    # Where the machine has them, a higher level really brings more kernels.
    if "avx2" in gs.machine().isa and level != "generic":
        assert any(name.startswith("avx2_") for name in found["ran"])
    if "avx512" in gs.machine().isa and level == "avx512":
        assert any(name.startswith("avx512_") for name in found["ran"])
