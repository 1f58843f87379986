# SPDX-License-Identifier: BSD-3-Clause
"""float16 and bfloat16 products of a packed weight, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.weight import SparseWeight, linear

OUT, IN = 24, 200
SHAPES = [(IN,), (1, IN), (17, IN), (2, 3, IN)]
PATTERNS = ["unstructured:0.8", "2:4", "block:4x4:0.5", "fanin:0.75"]


def assert_rounded_once(y: Tensor, x: Tensor, w: Tensor, *added: Tensor) -> None:
    """The exact sum, accumulated in float32 and rounded once to the dtype of `y`.

    Products of two 11-bit (float16) or 8-bit (bfloat16) significands are exact in float32. Each of
    the n = K + terms additions, in any order, adds a relative float32 rounding u = 2^-24 of the
    magnitudes: |s - exact| <= n·u / (1 - n·u) · (Σ|x||w| + Σ|added|) =: e (Higham 2002, eq. 4.4).
    Rounding s to the result's precision errs by at most half a unit in the last place of |s| <=
    |exact| + e, or half the smallest subnormal.
    """
    exact, magnitude = x.double() @ w.double().mT, x.double().abs() @ w.double().abs().mT
    for term in added:
        exact, magnitude = exact + term.double(), magnitude + term.double().abs()
    steps = (x.shape[-1] + len(added)) * 2.0**-24
    accumulated = steps / (1 - steps) * magnitude
    info = torch.finfo(y.dtype)
    bound = (
        accumulated
        + (exact.abs() + accumulated) * info.eps / 2
        + info.smallest_normal * (info.eps / 2)
    )
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_products(dtype: torch.dtype, pattern: str) -> None:
    w = torch.randn(OUT, IN)
    w = (w * torch.ops.gossamer.magnitude_mask(w, pattern, "tensor")).to(dtype)
    weight = SparseWeight.from_dense(w, pattern)
    assert weight.dtype is dtype
    assert torch.equal(weight.to_dense(), w)
    bias = torch.randn(OUT).to(dtype)
    for shape in SHAPES:
        x = torch.randn(*shape).to(dtype)
        y = F.linear(x, weight, bias)
        assert y.dtype is dtype
        assert_rounded_once(y, x, w, bias)
        assert_rounded_once(F.linear(x, weight), x, w)
        residual = torch.randn(*shape[:-1], OUT).to(dtype)
        summed = linear(x, weight, bias, residual=residual)
        assert_rounded_once(summed, x, w, bias, residual)
        relu = linear(x, weight, bias, activation="relu", residual=residual)
        assert torch.equal(relu, summed.relu())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_transposed_weight(dtype: torch.dtype) -> None:
    w = (torch.randn(IN, OUT) * (torch.rand(IN, OUT) < 0.2)).to(dtype)
    weight = SparseWeight.from_dense(w, transposed=True)
    x, bias = torch.randn(7, IN).to(dtype), torch.randn(OUT).to(dtype)
    assert_rounded_once(torch.addmm(bias, x, weight), x, w.mT, bias)
    assert_rounded_once(x @ weight, x, w.mT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_cast_to_half_precision(dtype: torch.dtype) -> None:
    layer = nn.Linear(IN, OUT)
    w = layer.weight.detach() * (torch.rand(OUT, IN) < 0.2)
    layer.weight = nn.Parameter(SparseWeight.from_dense(w, layout="kcsr128"), requires_grad=False)
    layer.to(dtype)
    assert isinstance(layer.weight, SparseWeight)
    x = torch.randn(5, IN).to(dtype)
    assert_rounded_once(layer(x).detach(), x, w.to(dtype), layer.bias.detach())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_large_sum_overflows_like_the_dense_product(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    w = torch.zeros(1, 4, dtype=dtype)
    w[0, :2] = 1.0
    x = torch.full((1, 4), largest, dtype=dtype)
    weight = SparseWeight.from_dense(w, "unstructured:0.5")
    assert torch.equal(F.linear(x, weight), F.linear(x, w))
    assert bool(F.linear(x, weight).isinf().all())
