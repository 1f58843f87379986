# SPDX-License-Identifier: BSD-3-Clause
"""Every way in which blocks of the GPU's kernels can divide a product gives the same sums.

The cost model takes one cut a product, so that most are rare; here each is forced, with token
counts that end inside a tile. Products are repeated: blocks that wait for each other may go wrong
once in a thousand times.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from test_cuda_epilogue import X_DTYPES, Case, kernels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CUTS = [*itertools.product((1, 2, 4), (1, 2, 4)), (1, 8)]
SHAPES = [
    (520, 4096, 65),
    (1000, 200, 300),
    (14336, 1024, 16),
    (14336, 1024, 33),
    (8192, 640, 129),
    (8192, 640, 1025),
]
"""[out, in, tokens]; the last gives a block several tiles."""
TIMES = 20


@pytest.mark.parametrize("dtype", X_DTYPES)
def test_every_cut_gives_the_same_sums(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    ran: dict[str, set[tuple[int, int]]] = {}
    for out, inputs, tokens in SHAPES:
        case = Case(out, inputs, tokens, dtype)
        for name, cut in itertools.product(kernels(case.x, out), CUTS):
            monkeypatch.setenv("GOSSAMER_KERNEL", name)
            monkeypatch.setenv("GOSSAMER_CUT", "x".join(map(str, cut)))
            try:
                y = case.run(0, torch.float32, bias=None, residual=None)
            except RuntimeError as error:
                assert "no cut that was asked for fits" in str(error)  # noqa: PT017
                continue
            ran.setdefault(name, set()).add(cut)
            for _ in range(TIMES):
                again = case.run(0, torch.float32, bias=None, residual=None)
                assert torch.equal(again, y), (name, cut, out, inputs, tokens)
            assert torch.equal(y.double(), case.sums), (name, cut, out, inputs, tokens)
            # Results of 16 bits leave another way.
            rounded = case.run(0, torch.bfloat16, bias=None, residual=None)
            assert torch.equal(rounded, y.bfloat16()), (name, cut, out, inputs, tokens)
        monkeypatch.delenv("GOSSAMER_KERNEL")
        monkeypatch.delenv("GOSSAMER_CUT")
    tiles = [cuts for name, cuts in ran.items() if name.startswith("sm90_gemm")]
    assert {(1, 1), (2, 1), (4, 1), (1, 2), (1, 4), (2, 2)} <= set.union(*tiles)
    few = [cuts for name, cuts in ran.items() if name.startswith("sm90_decode")]
    assert {(1, 1), (1, 2), (1, 4), (1, 8)} <= set.union(*few)


def test_a_cut_that_is_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(128, 128, 16, torch.bfloat16)
    monkeypatch.setenv("GOSSAMER_KERNEL", "sm90_gemm_sp24_bf16_128x32")
    monkeypatch.setenv("GOSSAMER_CUT", "twice")
    with pytest.raises(
        (ValueError, RuntimeError), match="GOSSAMER_CUT=twice: expected two numbers"
    ):
        case.run(0, torch.float32, bias=None, residual=None)


def test_a_cut_needs_a_named_row(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(128, 128, 16, torch.bfloat16)
    monkeypatch.setenv("GOSSAMER_CUT", "1x2")
    errors = (ValueError, RuntimeError)
    with pytest.raises(errors, match=r"GOSSAMER_CUT=1x2: .* GOSSAMER_KERNEL names, .* is unset"):
        case.run(0, torch.float32, bias=None, residual=None)
    monkeypatch.setenv("GOSSAMER_KERNEL", "generic_spmm_kcsr128_f32")
    with pytest.raises(errors, match="'generic_spmm_kcsr128_f32' is none of a GPU's"):
        case.run(0, torch.float32, bias=None, residual=None)
    monkeypatch.setenv("GOSSAMER_CUT", "")
    y = case.run(0, torch.float32, bias=None, residual=None)
    assert torch.equal(y.double(), case.sums)
