# SPDX-License-Identifier: BSD-3-Clause
"""One layer made for measuring: pruned, packed, with its peers, checked before it is timed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.race import kernel_at

__all__ = ["Subject", "check", "csr_calls", "make_subject"]

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
) -> Subject:
    """A random normal weight pruned by magnitude, sparsified for this machine.

    Args:
        out: outputs.
        inputs: inputs.
        pattern: in the grammar of docs/patterns.md.
        dtype: float32 or bfloat16.
        mask: bool [out, in] of what is kept; None keeps what is largest.
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
    gs.sparsify_(module, pattern)
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
    y = call(x)
    rows = torch.linspace(0, len(x) - 1, min(len(x), _CHECKED_TOKENS)).round().long().unique()
    some = x[rows].double()
    terms = weight.shape[1]
    gamma = terms * _UNIT / (1 - terms * _UNIT)
    wide = weight.double()
    exact = some @ wide.T
    error = (y[rows].double() - exact).abs()
    bound = gamma * (some.abs() @ wide.abs().T)
    if y.dtype != torch.float32:
        bound = bound + torch.finfo(y.dtype).eps / 2 * (exact.abs() + bound)
    wrong = int((~(error <= bound)).sum())
    if wrong:
        raise RuntimeError(
            f"{name} on {list(x.shape)} x {list(weight.shape)}: {wrong} of {error.numel()} results "
            f"are off by more than {str(y.dtype)[6:]} allows (largest error {error.max():.3g})"
        )
