# SPDX-License-Identifier: BSD-3-Clause
"""torch.func and forward-mode differentiation over a packed weight: what a dense one gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gossamer.weight import SparseWeight, linear

Function = Callable[[Tensor], Tensor]
OUT, IN, TOKENS = 8, 12, 5

# A function of x [tokens, in] or [in] becomes another function of x [tokens, in].
TRANSFORMS: dict[str, Callable[[Function], Function]] = {
    "vmap": lambda f: vmap(f),
    "vmap over columns": lambda f: lambda x: vmap(f, in_dims=1, out_dims=1)(x[None]),
    "vmap of vmap": lambda f: lambda x: vmap(vmap(f))(x[None]),
    "grad": lambda f: grad(lambda x: f(x).square().sum()),
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x).square().sum())),
    "grad of vmap": lambda f: grad(lambda x: vmap(f)(x).square().sum()),
    "grad of grad": lambda f: grad(lambda x: grad(lambda y: f(y).pow(3).sum())(x).sum()),
    "vjp": lambda f: lambda x: vjp(f, x)[1](torch.ones(TOKENS, OUT, dtype=x.dtype))[0],
    "jvp": lambda f: lambda x: jvp(lambda y: f(y).square(), (x,), (x.cos(),))[1],
    "jacrev": lambda f: jacrev(lambda x: f(x).square()),
    "jacfwd": lambda f: jacfwd(lambda x: f(x).square()),
    "hessian": lambda f: lambda x: hessian(lambda y: f(y).square().sum())(x[0]),
}

FORMS = {
    "kcsr128": lambda w: SparseWeight.from_dense(w, layout="kcsr128"),
    "format": lambda w: SparseWeight.from_dense(w),
    "with a dense copy": lambda w: SparseWeight.from_packed(
        SparseWeight.from_dense(w).packed, dense=w
    ),
    "transposed": lambda w: SparseWeight.from_dense(w.T, transposed=True).t(),
}


def sparse_matrix(*shape: int) -> Tensor:
    return torch.randn(*shape) * (torch.rand(*shape) < 0.3)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal to a few roundings: both run dense products, in another order under vmap."""
    assert expected.abs().sum() > 0  # a lost tangent or gradient is zero and must not pass
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_of_the_input(name: str, form: str) -> None:
    w = sparse_matrix(OUT, IN)
    weight, x, bias = FORMS[form](w), torch.randn(TOKENS, IN), torch.randn(OUT)
    transform = TRANSFORMS[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop")
        actual = transform(lambda x: F.linear(x, weight, bias))(x)
    assert_same(actual, transform(lambda x: F.linear(x, w, bias))(x))


@pytest.mark.parametrize("name", ["vmap", "grad of vmap", "vmap of grad", "jvp"])
def test_transforms_of_other_products(name: str) -> None:
    w = sparse_matrix(OUT, IN)
    weight, transform = FORMS["kcsr128"](w), TRANSFORMS[name]
    x, bias = torch.randn(TOKENS, 1, IN), torch.randn(OUT)
    for packed, dense in (
        (lambda x: x @ weight.t(), lambda x: x @ w.T),
        (lambda x: (x @ weight.t()) @ weight, lambda x: (x @ w.T) @ w),
        (lambda x: weight @ x.mT, lambda x: w @ x.mT),
        (
            lambda x: torch.addmm(bias, x.view(-1, IN), weight.t()),
            lambda x: torch.addmm(bias, x.view(-1, IN), w.T),
        ),
        (
            lambda x: linear(x, weight, bias, activation="relu", residual=x[..., :OUT]),
            lambda x: torch.relu(F.linear(x, w, bias) + x[..., :OUT]),
        ),
    ):
        assert_same(transform(packed)(x), transform(dense)(x))


def test_a_stack_under_transforms() -> None:
    w = sparse_matrix(3, OUT, IN)
    weight = SparseWeight.from_dense(w)
    x, bias = torch.randn(2, 3, TOKENS, IN), torch.randn(3, OUT)
    for transform in (vmap, lambda f: vmap(grad(lambda x: f(x).square().sum()))):
        actual = transform(lambda x: linear(x, weight, bias))(x)
        assert_same(actual, transform(lambda x: x @ w.mT + bias[:, None])(x))


def test_gradients_of_each_sample_for_a_bias() -> None:
    w, x = sparse_matrix(OUT, IN), torch.randn(TOKENS, IN)
    layer = nn.Linear(IN, OUT)
    layer.weight = nn.Parameter(SparseWeight.from_dense(w, layout="kcsr128"), requires_grad=False)

    def loss(bias: Tensor, sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"bias": bias}, (sample,)).square().sum()

    actual = vmap(grad(loss), in_dims=(None, 0))(layer.bias.detach(), x)
    assert_same(actual, 2 * F.linear(x, w, layer.bias.detach()))


def test_gradients_reach_through_vmap() -> None:
    w = sparse_matrix(OUT, IN)
    weight, x = FORMS["kcsr128"](w), torch.randn(TOKENS, IN, requires_grad=True)
    vmap(lambda x: F.linear(x, weight))(x).sum().backward()
    assert x.grad is not None
    assert_same(x.grad, torch.ones(TOKENS, OUT) @ w)


def test_dual_numbers() -> None:
    w, x, tangent = sparse_matrix(OUT, IN), torch.randn(TOKENS, IN), torch.randn(TOKENS, IN)
    for form in FORMS.values():
        with forward_ad.dual_level():
            y = F.linear(forward_ad.make_dual(x, tangent), form(w))
            assert_same(forward_ad.unpack_dual(y).tangent, tangent @ w.T)


@pytest.mark.parametrize("name", ["vmap", "grad", "grad of vmap", "jvp"])
def test_compiled_transforms(name: str) -> None:
    torch._dynamo.reset()
    w = sparse_matrix(OUT, IN)
    layer = nn.Linear(IN, OUT, bias=False)
    layer.weight = nn.Parameter(SparseWeight.from_dense(w, layout="kcsr128"), requires_grad=False)
    x, transform = torch.randn(TOKENS, IN), TRANSFORMS[name]
    compiled = torch.compile(lambda x: transform(layer)(x), backend="aot_eager", fullgraph=True)
    assert_same(compiled(x), transform(lambda x: F.linear(x, w))(x))


def test_a_weight_that_is_mapped_itself_is_refused() -> None:
    weight = SparseWeight.from_dense(sparse_matrix(3, OUT, IN))
    with pytest.raises(NotImplementedError, match=r"packed weight.*to_dense\(\)"):
        vmap(F.linear)(torch.randn(3, TOKENS, IN), weight)
    with pytest.raises(NotImplementedError, match=r"packed weight.*to_dense\(\)"):
        vmap(torch.sum)(weight)


def test_the_gradient_by_the_weight_is_dense() -> None:
    w, x = sparse_matrix(OUT, IN), torch.randn(TOKENS, IN)
    actual = grad(lambda w: F.linear(x, w).square().sum())(FORMS["kcsr128"](w))
    assert_same(actual, grad(lambda w: F.linear(x, w).square().sum())(w))
