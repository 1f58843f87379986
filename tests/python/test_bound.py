# SPDX-License-Identifier: BSD-3-Clause
"""The least time that `explain` sets beside each planned kernel."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import gossamer as gs
from gossamer import _bound, _ops
from gossamer._bound import Work, bound_of
from gossamer._roofline import Roofline
from sparsify_helpers import VERY_SPARSE, mlp, prune_

FLOPS, READS = 1e11, 1e10


@pytest.fixture
def ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bound, "_ceilings", lambda threads, size: Roofline(FLOPS, READS))


@pytest.mark.usefixtures("ceilings")
def test_every_planned_bucket_has_the_bound_of_its_kernel() -> None:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512)), plan="model")
    report = gs.explain(model)["0"]
    weight = model[0].weight
    assert "+" not in weight.layout_name, "one layout, whose bytes are the weight's"
    kept = _ops.info(weight.packed)["kept"]
    first, last = report.plan[0], report.plan[-1]
    moved = weight.packed.numel() + 4 * (512 + 512)
    assert first.bound_ms == pytest.approx(1e3 * moved / READS)
    assert first.bound_by == "bytes"
    assert all(bucket.bound_ms > 0 for bucket in report.plan)
    # Of so few values reading x and y takes longer than multiplying them.
    assert last.bound_ms > 1e3 * 2 * last.timed_at * kept / FLOPS
    rows = json.loads(gs.explain(model).to_json())
    assert rows[0]["plan"][0]["bound_ms"] == first.bound_ms


@pytest.mark.usefixtures("ceilings")
def test_arithmetic_binds_many_tokens_and_only_kept_values_count() -> None:
    weight = prune_(torch.randn(768, 768), "unstructured:0.5")
    work = Work.of_packed(_ops.info(gs.SparseWeight.from_dense(weight, "unstructured:0.5").packed))
    bound = bound_of(work, "any row", 4096)
    assert bound.by == "arithmetic"
    assert bound.ms == pytest.approx(1e3 * 2 * 4096 * 768 * 768 / 2 / FLOPS)
    assert bound_of(work, "dense", 4096).ms == pytest.approx(2 * bound.ms)
    assert bound_of(Work.of_plain(weight), "dense", 4096) == bound_of(work, "dense", 4096)


def test_of_two_layouts_the_one_that_runs_is_read() -> None:
    weight = prune_(torch.randn(768, 768), "unstructured:0.5")
    packed = {
        layout: gs.SparseWeight.from_dense(weight, "unstructured:0.5", layout=layout).packed
        for layout in ("bitmask", "rowpairs64", "bitmask+rowpairs64")
    }
    work = Work.of_packed(_ops.info(packed["bitmask+rowpairs64"]))
    header = 1024  # two of them, and what aligns the arrays
    for layout in ("bitmask", "rowpairs64"):
        assert work.held[layout] == pytest.approx(packed[layout].numel(), abs=header)
    kernel = next(row.name for row in gs.kernels() if row.layout == "rowpairs64")
    assert work.weight_bytes(kernel) == work.held["rowpairs64"]
    assert work.weight_bytes("dense") == 4 * 768 * 768


def test_a_convolution_reads_its_channels_and_multiplies_its_taps() -> None:
    weight = prune_(torch.randn(64, 32, 3, 3).flatten(1), "unstructured:0.9").view(64, 32, 3, 3)
    plain = Work.of_plain(weight)
    assert (plain.out, plain.inputs, plain.positions) == (64, 32, 64 * 32 * 9)
    layer = nn.Conv2d(32, 64, 3)
    layer.weight.data.copy_(weight)
    gs.sparsify_(layer, layout="bitmask")
    packed = Work.of_packed(_ops.info(layer.weight.packed))
    assert (packed.out, packed.inputs, packed.positions) == (64, 32, 64 * 32 * 9)
    assert packed.kept == int(weight.count_nonzero())


def test_the_text_says_time_and_bound_within_the_columns() -> None:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512)), plan="model")
    text = str(gs.explain(model))
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    report = gs.explain(model)["0"]
    first = report.plan[0]
    assert f"bound: {1e3 * first.bound_ms:.1f} µs at 1 token (by {first.bound_by}; " in flat
    assert f"{first.kernel} takes {1e3 * first.ms:.1f} µs" in flat
    plain = str(gs.explain(mlp(VERY_SPARSE, sizes=(512, 512))))
    assert "bound" not in plain, "nothing was planned"


def test_ceilings_err_on_the_high_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_bound, "measure_product", lambda side, rounds: 1.0)
    monkeypatch.setattr(_bound, "measure_reading", lambda size, rounds: 1.0)
    _bound._ceilings.cache_clear()
    _bound._product.cache_clear()
    try:
        disturbed = _bound._ceilings(1, 1 << 20)
    finally:
        _bound._ceilings.cache_clear()
        _bound._product.cache_clear()
    assert disturbed.flops >= 24e9
    assert disturbed.bandwidth == 12e9


def test_explaining_leaves_random_numbers_alone() -> None:
    model = gs.sparsify_(mlp(VERY_SPARSE, sizes=(512, 512)), plan="model")
    _bound._ceilings.cache_clear()
    _bound._product.cache_clear()
    before = torch.get_rng_state()
    gs.explain(model)
    assert torch.equal(torch.get_rng_state(), before)
