# SPDX-License-Identifier: BSD-3-Clause
"""One layer made for measuring: pruned, packed, with its peers, checked before it is timed."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.race import kernel_at

__all__ = ["Subject", "check", "check_int8", "csr_calls", "int8_calls", "make_subject"]

_UNIT = 2.0**-24
"""Unit roundoff of float32."""
_CHECKED_TOKENS = 16


@dataclass(frozen=True)
class Subject:
    """A layer in both forms.

    Attributes:
        pattern: as asked for.
        dense: [out, in], with zeros.
        module: an `nn.Linear` without bias, packed where the plan says so.
        report: what `explain` says of it.
    """

    pattern: str
    dense: Tensor
    module: nn.Linear
    report: gs.LayerReport

    @property
    def held(self) -> Tensor:
        """The weight as it is held, a `SparseWeight` or plain."""
        return self.module.weight

    @property
    def is_quantized(self) -> bool:
        """Whether it is held in eight bits."""
        return isinstance(self.held, gs.SparseWeight) and self.held.scale is not None

    def check(self, x: Tensor) -> None:
        """Compares what it computes with float64; RuntimeError where it is wrong."""
        compare = check_int8 if self.is_quantized else check
        compare("gossamer", self.module, x, self.dense)

    @property
    def held_bytes(self) -> int:
        """Bytes of the weight as it is held."""
        return self.report.packed_bytes or self.report.dense_bytes

    @property
    def density(self) -> float:
        """Fraction of non-zeros."""
        return int(torch.count_nonzero(self.dense)) / self.dense.numel()

    def kernel(self, tokens: int) -> str:
        """The row of the kernel table that runs at this token count."""
        return kernel_at(self.report, tokens)


def make_subject(
    out: int,
    inputs: int,
    pattern: str,
    dtype: torch.dtype = torch.float32,
    mask: Tensor | None = None,
    *,
    quantize: bool = False,
) -> Subject:
    """A random normal weight pruned by magnitude, sparsified for this machine.

    Args:
        out: outputs.
        inputs: inputs.
        pattern: in the grammar of docs/patterns.md.
        dtype: float32 or bfloat16.
        mask: bool [out, in] of what is kept; None keeps what is largest.
        quantize: to int8, with inputs that are quantized in every call.
    """
    module = nn.Linear(inputs, out, bias=False, dtype=dtype)
    with torch.no_grad():
        values = torch.randn(out, inputs)
        # A kept value is not zero, whatever it is rounded to.
        values = torch.where(values.abs() < 2.0**-20, 2.0**-20, values)
        if mask is None:
            mask = torch.ops.gossamer.magnitude_mask(values, pattern, "tensor")
        dense = torch.where(mask, values, 0.0).to(dtype)
        module.weight.copy_(dense)
    config = gs.Int8DynamicActivationSparseWeightConfig(pattern) if quantize else pattern
    gs.sparsify_(module, config)
    return Subject(pattern, dense, module, gs.explain(module)[""])


def csr_calls(weight: Tensor, x: Tensor) -> list[Callable[[], Tensor]]:
    """The same weight as `torch.sparse_csr`, in both ways in which PyTorch multiplies by it.

    They are `F.linear(x, csr)` and `torch.mm(csr, x.T).T`, whose result is a transposed view, left
    as it is. Both are checked.

    Args:
        weight: float32 [out, in].
        x: [tokens, in].
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta state"
        csr = weight.to_sparse_csr()
    ways: list[Callable[[Tensor], Tensor]] = [
        lambda x: F.linear(x, csr),
        lambda x: torch.mm(csr, x.T).T,
    ]
    for way in ways:
        check("torch_csr", way, x, weight)
    return [partial(way, x) for way in ways]


def int8_calls(weight: Tensor, x: Tensor, copies: int = 1) -> dict[str, Callable[[], Tensor]]:
    """The dense layer of eight bits of torch itself, `quantize_dynamic`, checked.

    Args:
        weight: float32 [out, in].
        x: float32 [tokens, in].
        copies: of the layer; every call takes the next.
    """
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "torch.ao.quantization is deprecated"
        eager: Any = torch.ao.quantization.quantize_dynamic
        quantized = eager(nn.Sequential(module), {nn.Linear}, dtype=torch.qint8)
    check_int8("torch_int8", quantized, x, weight, coarse=True)
    endless = itertools.cycle([quantized, *(copy.deepcopy(quantized) for _ in range(copies - 1))])
    return {"torch_int8": lambda: next(endless)(x)}


def check(name: str, call: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> None:
    """Compares a result with float64.

    A float32 inner product of K terms is off by at most K*u/(1 - K*u) * |x|.|w|, in whatever order
    it is summed (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
    A bfloat16 product is summed in float32 and rounded once at the end. The first rows, the last
    one and some between are compared.

    Args:
        name: in the message.
        call: the contestant.
        x: [tokens, in].
        weight: dense [out, in].

    Raises:
        RuntimeError: the result is wrong.
    """
    y, some, rows = _some_rows(call, x)
    terms = weight.shape[1]
    gamma = terms * _UNIT / (1 - terms * _UNIT)
    wide = weight.double()
    bound = gamma * (some.abs() @ wide.abs().T)
    exact = some @ wide.T
    if y.dtype != torch.float32:
        bound = bound + torch.finfo(y.dtype).eps / 2 * (exact.abs() + bound)
    _refuse_wrong(name, x, weight, (y[rows].double() - exact).abs(), bound, str(y.dtype)[6:])


def check_int8(
    name: str, call: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor, *, coarse: bool = False
) -> None:
    """Compares a product of eight bits with float64.

    Steps s_w of the weight and s_x of the input leave at most |x| s_w / 2 + |w| s_x / 2 + s_w s_x /
    4 of each product. Gossamer's are max / 127 of a row and of a token.

    Args:
        name: in the message.
        call: the contestant.
        x: float32 [tokens, in].
        weight: dense [out, in].
        coarse: the steps of torch's dynamic quantization: one of the whole weight, and one of the
            whole input with seven bits, whose zero is rounded too, so that it is off by a step.

    Raises:
        RuntimeError: the result is wrong.
    """
    y, some, rows = _some_rows(call, x)
    wide = weight.double()
    kept = (wide != 0).double()
    if coarse:
        x_step = (2 * (x.max().clamp(min=0) - x.min().clamp(max=0)).double() / 127).reshape(1, 1)
        w_step = (2 * wide.abs().max() / 255).reshape(1, 1)
    else:
        x_step = some.abs().amax(1, keepdim=True) / 127
        w_step = wide.abs().amax(1, keepdim=True).T / 127
    bound = (
        some.abs() @ kept.T * w_step / 2
        + x_step / 2 * wide.abs().sum(1)
        + x_step * w_step / 4 * kept.sum(1)
    )
    # The steps and the few operations behind the exact integer sum are rounded to float32.
    bound = bound + 8 * _UNIT * (some.abs() @ wide.abs().T + bound)
    _refuse_wrong(name, x, weight, (y[rows].double() - some @ wide.T).abs(), bound, "int8")


def _some_rows(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result, and the rows of x that are compared, in float64 and by number."""
    rows = torch.linspace(0, len(x) - 1, min(len(x), _CHECKED_TOKENS)).round().long().unique()
    return call(x), x[rows].double(), rows


def _refuse_wrong(
    name: str, x: Tensor, weight: Tensor, error: Tensor, bound: Tensor, what: str
) -> None:
    wrong = int((~(error <= bound)).sum())
    if wrong:
        raise RuntimeError(
            f"{name} on {list(x.shape)} x {list(weight.shape)}: {wrong} of {error.numel()} results "
            f"are off by more than {what} allows (largest error {error.max():.3g})"
        )
