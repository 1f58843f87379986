# SPDX-License-Identifier: BSD-3-Clause
"""What the GPU's kernels fuse behind a product, beside the same in float64.

Sums are exact: products of small integers times powers of two. What is left is the error of the
activation, which src/cuda/common/activations.cuh derives, and one rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import gossamer as gs
from gossamer._activation import Activation, apply_activation
from gossamer._layout_argument import RESULT_SHIFT
from gossamer.weight import SparseWeight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

X_DTYPES = (torch.bfloat16, torch.float16, torch.int8, torch.float8_e4m3fn)
Y_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
U = 2.0**-24
ops = torch.ops.gossamer


def kernels(x: Tensor, out: int) -> Iterator[str]:
    """Every row of the kernel table that computes this product here."""
    rows = [row for row in json.loads(ops.cuda_kernel_table(x, out)) if not row["refuses"]]
    assert rows
    return (row["name"] for row in rows)


class Case:
    """Operands, and the sum that the activation is applied to, exact in float32."""

    def __init__(self, out: int, inputs: int, tokens: int, dtype: torch.dtype) -> None:
        padded = -(-inputs // 4) * 4
        keep = torch.rand(out, padded // 4, 4, device="cuda").argsort(-1) < 2
        kept = keep.reshape(out, padded)[:, :inputs]
        self.out = out
        self.x = torch.randint(-2, 3, (tokens, inputs), device="cuda").float().to(dtype)
        integers = torch.randint(-2, 3, (out, inputs), device="cuda") * kept
        # The kept half of the inputs, times 2 for the variance of x and 2 for that of w: a scale
        # that makes the sums about 3.
        size = 2.0 ** round(float(torch.tensor(3 / (2 * inputs) ** 0.5).log2()))
        self.is_scaled = dtype.itemsize == 1
        w = integers.float() if self.is_scaled else integers * size
        self.packed = ops.pack(w.to(dtype).cpu(), None, "2:4", "nm24_tiles", False, "w").cuda()
        self.sums = self.x.double() @ w.double().T
        self.x_scale = self.w_scale = None
        if self.is_scaled:
            self.x_scale = 2.0 ** torch.randint(-1, 2, (tokens,), device="cuda")
            self.w_scale = size * 2.0 ** torch.randint(-1, 2, (out,), device="cuda")
            self.sums = self.sums * self.x_scale.double()[:, None] * self.w_scale.double()
        self.bias = torch.randint(-16, 17, (out,), device="cuda") / 16
        self.residual = torch.randint(-16, 17, (tokens, out), device="cuda") / 16

    def run(
        self, activation: int, y_dtype: torch.dtype, *, bias: Tensor | None, residual: Tensor | None
    ) -> Tensor:
        if self.is_scaled:
            return ops.linear_quantized(
                self.x,
                self.x_scale,
                self.packed,
                33,
                self.out,
                self.w_scale,
                bias,
                activation,
                residual,
                y_dtype,
                False,
            )
        layout = 33 | (1 + Y_DTYPES.index(y_dtype)) << RESULT_SHIFT
        return ops.linear(self.x, self.packed, layout, self.out, None, bias, activation, residual)

    def check(self, name: str, activation: int, y_dtype: torch.dtype, *, adds: bool) -> None:
        """`adds`: a bias, of x's dtype where that has 16 bits, and a residual."""
        bias_dtype = y_dtype if self.is_scaled else self.x.dtype
        bias = self.bias.to(bias_dtype) if adds else None
        residual = self.residual.to(y_dtype) if adds else None
        y = self.run(activation, y_dtype, bias=bias, residual=residual)
        assert y.dtype is y_dtype
        exact = self.sums + (self.bias.double() + self.residual.double() if adds else 0)
        error = (y.double() - activated(exact, activation)).abs()
        bound = bound_of(exact, activation, y_dtype)
        assert (error <= bound).all(), (name, activation, y_dtype, (error / bound).max().item())


def activated(s: Tensor, activation: int) -> Tensor:
    """act(s) in float64, without cancellation where the result is small."""
    match activation:
        case Activation.GELU:
            return 0.5 * s * torch.special.erfc(-s * 0.5**0.5)
        case Activation.GELU_TANH:
            return s * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (s + 0.044715 * s**3))
        case Activation.SILU:
            return s * torch.sigmoid(s)
    return apply_activation(s, activation)


def bound_of(s: Tensor, activation: int, y_dtype: torch.dtype) -> Tensor:
    """How far a result may be from act(s), by the derivation in activations.cuh."""
    exact = activated(s, activation)
    relative = {
        Activation.NONE: 0.0,
        Activation.RELU: 0.0,
        Activation.RELU2: U,
        Activation.GELU: 32 * U if y_dtype is torch.float32 else 2.0**-15,
        Activation.GELU_TANH: 8 * U,
        Activation.SILU: 8 * U,
    }[Activation(activation)]
    error = relative * exact.abs()
    if activation in (Activation.GELU, Activation.GELU_TANH, Activation.SILU):
        # The exponent's argument: as if s were changed by 3u of itself.
        moved = [activated(s * (1 + sign * 3 * U), activation) - exact for sign in (-1, 1)]
        error = error + torch.maximum(moved[0].abs(), moved[1].abs())
        error = error + 2 * s.abs() * torch.finfo(torch.float32).tiny
    kind = torch.finfo(y_dtype)
    return error + kind.eps / 2 * (exact.abs() + error) + kind.smallest_normal * kind.eps / 2


@pytest.mark.parametrize("dtype", X_DTYPES)
@pytest.mark.parametrize(("out", "inputs"), [(65, 70), (200, 136), (129, 1000)])
def test_every_kernel_applies_every_activation(
    out: int, inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens in (1, 17, 65, 300):
        case = Case(out, inputs, tokens, dtype)
        for name in kernels(case.x, out):
            monkeypatch.setenv("GOSSAMER_KERNEL", name)
            for activation in Activation:
                for y_dtype in Y_DTYPES:
                    case.check(name, activation, y_dtype, adds=True)
                    case.check(name, activation, y_dtype, adds=False)
        monkeypatch.delenv("GOSSAMER_KERNEL", raising=False)


@pytest.mark.parametrize("dtype", X_DTYPES)
@pytest.mark.parametrize("y_dtype", Y_DTYPES)
def test_every_kernel_at_every_edge(
    y_dtype: torch.dtype, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tokens in (*range(1, 18), 63, 64, 65, 127, 128, 129):
        case = Case(191, 203, tokens, dtype)
        for name in kernels(case.x, 191):
            monkeypatch.setenv("GOSSAMER_KERNEL", name)
            case.check(name, Activation.SILU, y_dtype, adds=True)
            case.check(name, Activation.RELU, y_dtype, adds=True)
        monkeypatch.delenv("GOSSAMER_KERNEL", raising=False)


@pytest.mark.parametrize("y_dtype", Y_DTYPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_divided_inputs(
    dtype: torch.dtype, y_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few tiles and many inputs: the sums of several blocks meet before the epilogue."""
    for tokens in (8, 129, 256):
        case = Case(264, 8192, tokens, dtype)
        for name in kernels(case.x, 264):
            monkeypatch.setenv("GOSSAMER_KERNEL", name)
            for activation in (Activation.NONE, Activation.GELU):
                case.check(name, activation, y_dtype, adds=True)
        monkeypatch.delenv("GOSSAMER_KERNEL", raising=False)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_smooth_activations_over_their_range(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One weight of 1 a row: the result is the activation of an input."""
    w = torch.zeros(64, 64, device="cuda", dtype=dtype)
    w[:, 0] = 1
    packed = ops.pack(w, None, "2:4", "nm24_tiles", False, "w")
    inputs = torch.cat([torch.linspace(-14, 14, 4001), torch.logspace(-6, 4.5, 400)])
    inputs = torch.cat([inputs, -inputs[4001:]]).cuda().to(dtype)
    x = torch.zeros(len(inputs), 64, device="cuda", dtype=dtype)
    x[:, 0] = inputs
    exact = inputs.double()[:, None].expand(-1, 64)
    for name in kernels(x, 64):
        monkeypatch.setenv("GOSSAMER_KERNEL", name)
        for activation in (Activation.GELU, Activation.GELU_TANH, Activation.SILU):
            for y_dtype in Y_DTYPES:
                layout = 33 | (1 + Y_DTYPES.index(y_dtype)) << RESULT_SHIFT
                y = ops.linear(x, packed, layout, 64, None, None, activation)
                error = (y.double() - activated(exact, activation)).abs()
                assert (error <= bound_of(exact, activation, y_dtype)).all(), (name, activation)


@pytest.mark.parametrize("y_dtype", Y_DTYPES)
@pytest.mark.parametrize("tokens", [9, 150])
def test_not_a_number_and_infinity(
    tokens: int, y_dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(130, 136, tokens, torch.bfloat16)
    case.x[3] = torch.nan  # all of it: what meets no kept weight is not read
    bias = torch.zeros(130, device="cuda", dtype=y_dtype)
    bias[5], bias[70] = torch.inf, -torch.inf
    for name in kernels(case.x, 130):
        monkeypatch.setenv("GOSSAMER_KERNEL", name)
        for activation in Activation:
            y = case.run(activation, y_dtype, bias=bias, residual=None)
            assert y[3].isnan().all(), (name, activation)
            rest = torch.cat([y[:3], y[4:]])
            infinities = apply_activation(bias[[5, 70]].float(), activation).to(y_dtype)
            torch.testing.assert_close(
                rest[:, [5, 70]], infinities.expand(tokens - 1, 2), equal_nan=True, rtol=0, atol=0
            )
            finite = [i for i in range(130) if i not in (5, 70)]
            assert rest[:, finite].isfinite().all(), (name, activation)


def packed_weight() -> tuple[SparseWeight, Tensor]:
    keep = torch.rand(96, 32, 4, device="cuda").argsort(-1) < 2
    w = torch.randn(96, 128, device="cuda", dtype=torch.bfloat16) * keep.flatten(1)
    return SparseWeight.from_dense(w, layout="nm24_tiles"), w


@pytest.mark.parametrize("activation", [None, "relu", "relu2", "gelu"])
def test_a_float32_result_has_gradients(activation: str | None) -> None:
    weight, w = packed_weight()
    bias = torch.randn(96, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    x = torch.randn(7, 128, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    residual = torch.randn(7, 96, device="cuda", requires_grad=True)
    operands = (x, bias, residual)
    y = gs.linear(
        x, weight, bias, activation=activation, residual=residual, output_dtype=torch.float32
    )
    assert y.dtype is torch.float32
    seed = torch.randn_like(y)
    ours = torch.autograd.grad(y, operands, seed)
    code = Activation[activation.upper()] if activation else Activation.NONE
    wide = [one.detach().double().requires_grad_() for one in operands]
    sums = F.linear(wide[0], w.double(), wide[1]) + wide[2]
    exact = apply_activation(sums, code)
    theirs = torch.autograd.grad(exact, wide, seed.double())
    # The sums lose two units in the last place of float32 an addition; no activation's slope
    # passes twice the sum plus 1.13, and no slope's slope 2. Rounding and formulas of float32: 16u
    # of what they are applied to.
    magnitude = x.double().abs() @ w.double().abs().T + bias.abs() + residual.abs()
    lost = 2 * 130 * 2 * U * magnitude
    slope = 2 * sums.abs() + 1.13
    assert ((y - exact).abs() <= slope * lost + 16 * U * (sums.abs() + exact.abs())).all()
    half = torch.finfo(torch.bfloat16).eps / 2
    of_sums = seed.abs() * (2 * lost + 16 * U * slope)
    bounds = (
        (of_sums + 2 * half * (theirs[2].abs() + of_sums)) @ w.double().abs(),
        of_sums.sum(0) + (half + 16 * U) * (theirs[2].abs() + of_sums).sum(0),
        of_sums,
    )
    for operand, one, other, bound in zip(operands, ours, theirs, bounds, strict=True):
        assert one.dtype is operand.dtype
        assert ((one - other).abs() <= bound).all(), (one - other).abs().max().item()


def test_output_dtype_is_checked_and_traced() -> None:
    weight, _ = packed_weight()
    x = torch.randn(7, 128, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"output_dtype torch\.int8"):
        gs.linear(x, weight, output_dtype=torch.int8)
    residual = torch.zeros(7, 96, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="residual is bfloat16"):
        gs.linear(x, weight, residual=residual, output_dtype=torch.float32)
    with pytest.raises(ValueError, match="bias is float32"):
        gs.linear(x, weight, torch.zeros(96, device="cuda"))
    layout = weight._layout_argument | 3 << RESULT_SHIFT
    torch.library.opcheck(ops.linear.default, (x, weight.packed, layout, 96))

    def call(x: Tensor) -> Tensor:
        return gs.linear(x, weight, activation="silu", output_dtype=torch.float16)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), call(x))
    assert call(x).dtype is torch.float16
