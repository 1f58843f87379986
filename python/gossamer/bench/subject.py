# SPDX-License-Identifier: BSD-3-Clause
"""One layer made for measuring: pruned, packed, with its peers, checked before it is timed."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs

__all__ = ["Subject", "check", "make_subject", "peers"]

_UNIT = 2.0**-24
"""Unit roundoff of float32."""
_CHECKED_TOKENS = 16


@dataclass(frozen=True)
class Subject:
    """A layer in both forms.

    Attributes:
        pattern: as asked for.
        dense: float32 [out, in], with zeros.
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
        if not self.report.packed:
            return "dense"
        for bucket in self.report.plan:
            last = bucket.tokens.split("–")[-1]
            if not last.isdigit() or tokens <= int(last):
                return bucket.kernel
        return self.report.kernel


def make_subject(out: int, inputs: int, pattern: str) -> Subject:
    """A random normal weight pruned by magnitude, sparsified for this machine.

    Args:
        out: outputs.
        inputs: inputs.
        pattern: in the grammar of docs/patterns.md.
    """
    module = nn.Linear(inputs, out, bias=False)
    with torch.no_grad():
        values = torch.randn(out, inputs)
        mask = torch.ops.gossamer.magnitude_mask(values, pattern, "tensor")
        dense = torch.where(mask, values, 0.0)
        module.weight.copy_(dense)
    gs.sparsify_(module, pattern)
    return Subject(pattern, dense, module, gs.explain(module)[""])


def peers(weight: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """What the packed layer is compared with: name to a function of x.

    `torch_dense` is `F.linear`. The same weight as `torch.sparse_csr` takes part in both ways in
    which PyTorch multiplies by it: `F.linear(x, csr)` (`torch_csr`) and `torch.mm(csr, x.T).T`
    (`torch_csr_mm`), whose result is a transposed view, left as it is.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta state"
        csr = weight.to_sparse_csr()
    return {
        "torch_dense": lambda x: F.linear(x, weight),
        "torch_csr": lambda x: F.linear(x, csr),
        "torch_csr_mm": lambda x: torch.mm(csr, x.T).T,
    }


def check(name: str, call: Callable[[Tensor], Tensor], x: Tensor, weight: Tensor) -> None:
    """Compares a result with float64.

    A float32 inner product of K terms is off by at most K*u/(1 - K*u) * |x|.|w|, in whatever order
    it is summed (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1).
    The first rows, the last one and some between are compared.

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
    error = (y[rows].double() - some @ wide.T).abs()
    bound = gamma * (some.abs() @ wide.abs().T)
    wrong = int((~(error <= bound)).sum())
    if wrong:
        raise RuntimeError(
            f"{name} on {list(x.shape)} x {list(weight.shape)}: {wrong} of {error.numel()} results "
            f"are off by more than float32 allows (largest error {error.max():.3g})"
        )
