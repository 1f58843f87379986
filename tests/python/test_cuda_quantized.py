# SPDX-License-Identifier: BSD-3-Clause
"""Quantized 2:4 products on a GPU: float8 and int8 weights and activations."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


DTYPES = (torch.int8, torch.float8_e4m3fn)
MOST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
ops = torch.ops.gossamer


def kernels(x: Tensor, out: int) -> Iterator[str]:
    """Every row of the kernel table that computes this product here."""
    rows = [row for row in json.loads(ops.cuda_kernel_table(x, out)) if not row["refuses"]]
    assert rows
    return (row["name"] for row in rows)


def small_integers(*shape: int) -> Tensor:
    """Numbers of which sums of a thousand products are exact in every accumulator."""
    return torch.randint(-2, 3, shape, device="cuda")


def packed_24(out: int, inputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A 2:4 weight of small integers, and its tiles."""
    padded = -(-inputs // 4) * 4
    keep = torch.rand(out, padded // 4, 4, device="cuda").argsort(-1) < 2
    w = (small_integers(out, inputs) * keep.reshape(out, padded)[:, :inputs]).float().to(dtype)
    packed = ops.pack(w.cpu(), None, "2:4", "nm24_tiles", False, "w").cuda()
    ops.validate(packed)
    return w, packed


def activations(tokens: int, inputs: int, dtype: torch.dtype, *, aligned: bool) -> Tensor:
    """Small integers whose rows are aligned to 16 bytes, or begin at odd addresses."""
    stride = -(-inputs // 16) * 16 if aligned else inputs | 1
    flat = small_integers(tokens * stride + 1).float().to(dtype)
    start = 0 if aligned else 1
    return flat[start : start + tokens * stride].view(tokens, stride)[:, :inputs]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("out", "inputs"), [(1, 1), (64, 128), (65, 70), (200, 300), (511, 1023), (1024, 1024)]
)
def test_every_quantized_kernel_multiplies(
    out: int, inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, packed = packed_24(out, inputs, dtype)
    weight_scale = torch.rand(out, device="cuda") + 0.5
    for tokens in (1, 7, 8, 9, 17, 33, 64, 65, 129, 300):
        x_scale = torch.rand(tokens, device="cuda") + 0.5
        bias = torch.randn(out, device="cuda", dtype=torch.float16)
        for aligned in (True, False):
            x = activations(tokens, inputs, dtype, aligned=aligned)
            sums = x.double() @ w.double().T
            scaled = sums * (weight_scale.double() * x_scale.double()[:, None]) + bias.double()
            rounding = 4 * torch.finfo(torch.float32).eps * (sums.abs() * 4 + bias.double().abs())
            bound = torch.finfo(torch.float16).eps / 2 * (scaled.abs() + rounding) + rounding
            for name in kernels(x, out):
                monkeypatch.setenv("GOSSAMER_KERNEL", name)
                y = ops.linear_quantized(
                    x, None, packed, 33, out, None, None, 0, None, torch.bfloat16, False
                )
                assert torch.equal(y, sums.to(torch.bfloat16)), (name, tokens)
                y = ops.linear_quantized(
                    x, x_scale, packed, 33, out, weight_scale, bias, 0, None, torch.float16, False
                )
                assert ((y.double() - scaled).abs() <= bound).all(), (name, tokens)
            monkeypatch.delenv("GOSSAMER_KERNEL", raising=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [5, 200])
def test_relu_and_residual(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    w, packed = packed_24(192, 256, dtype)
    x = activations(tokens, 256, dtype, aligned=True)
    residual = small_integers(tokens, 192).to(torch.bfloat16)
    exact = (x.double() @ w.double().T + residual.double()).relu().to(torch.bfloat16)
    for name in kernels(x, 192):
        monkeypatch.setenv("GOSSAMER_KERNEL", name)
        y = ops.linear_quantized(
            x, None, packed, 33, 192, None, None, 1, residual, torch.bfloat16, False
        )
        assert torch.equal(y, exact), name


@pytest.mark.parametrize("accurate", [False, True])
@pytest.mark.parametrize("tokens", [8, 200])
def test_float8_sums(tokens: int, accurate: bool) -> None:
    """Accumulators of float8 products keep 14 significant bits; accurate sums only for 256 inputs.

    Each instruction adds 32 products (64 inputs) to an accumulator, and each of the 33 terms may
    lose a unit of the 14th bit of the largest.
    """
    out, inputs = 256, 8192
    dtype = torch.float8_e4m3fn
    keep = torch.rand(out, inputs // 4, 4, device="cuda").argsort(-1) < 2
    w = (torch.randn(out, inputs, device="cuda") * keep.flatten(1)).to(dtype)
    packed = ops.pack(w.cpu(), None, "2:4", "nm24_tiles", False, "w").cuda()
    x = torch.randn(tokens, inputs, device="cuda").to(dtype)
    y = ops.linear_quantized(
        x, None, packed, 33, out, None, None, 0, None, torch.bfloat16, accurate
    )
    exact = x.double() @ w.double().T
    magnitude = x.double().abs() @ w.double().abs().T
    # Accurate: four instructions, then float32; the blocks' magnitudes add up to the whole.
    instructions = 4 if accurate else inputs // 64
    lost = 33 * instructions * 2.0**-13 * magnitude
    bound = torch.finfo(torch.bfloat16).eps / 2 * (exact.abs() + lost) + lost
    assert ((y.double() - exact).abs() <= bound).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", [torch.bfloat16, torch.float16])
def test_rows_are_quantized_as_torch_does_it(dtype: torch.dtype, source: torch.dtype) -> None:
    for shape in ((1, 1), (3, 17), (2, 5, 64), (7, 4096), (300, 1000)):
        x = torch.randn(shape, device="cuda", dtype=source)
        x.view(-1, shape[-1])[0] = 0
        q, scale = ops.quantize_rows(x, dtype)
        most = x.float().abs().amax(-1)
        # A tensor divisor: torch multiplies by the reciprocal of a number, a unit away at times.
        expected = torch.where(most == 0, 1.0, most / torch.full_like(most, MOST[dtype]))
        assert torch.equal(scale, expected)
        quotient = x.float() / scale[..., None]
        rounded = quotient.round() if dtype is torch.int8 else quotient
        assert torch.equal(q.float(), rounded.to(dtype).float())
        assert q.shape == x.shape
        assert q.stride(-2) % 16 == 0 or q.dim() == 1


def test_quantized_arguments_that_do_not_fit_are_refused() -> None:
    _, packed = packed_24(64, 128, torch.int8)
    x = torch.zeros(4, 128, device="cuda", dtype=torch.int8)

    def call(x: Tensor, dtype: torch.dtype = torch.bfloat16, scale: Tensor | None = None) -> Tensor:
        return ops.linear_quantized(x, scale, packed, 33, 64, None, None, 0, None, dtype, False)

    with pytest.raises(ValueError, match="quantized products take float8_e4m3fn and int8"):
        call(x.bfloat16())
    with pytest.raises(ValueError, match="the result is float16, bfloat16 or float32"):
        call(x, torch.float64)
    with pytest.raises(ValueError, match="x_scale is float32"):
        call(x, scale=torch.ones(3, device="cuda"))
    with pytest.raises(ValueError, match="x is on the CPU"):
        call(x.cpu())
    with pytest.raises(ValueError, match="int8 and float8_e4m3fn are accepted"):
        ops.quantize_rows(x.bfloat16(), torch.float32)
