# SPDX-License-Identifier: BSD-3-Clause
"""What the GPU's epilogues are made of, checked where there is no GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from gossamer._layout_argument import (
    INPUTS_SHIFT,
    RESULT_SHIFT,
    TOLD_SHIFT,
    with_result_dtype,
)
from gossamer._ops_shapes import linear_fake

SOURCE = Path(__file__).parents[2] / "src/cuda/common/activations.cuh"
NUMBER = r"(-?[0-9.]+)f"


def gelu_fits() -> list[tuple[float, list[float]]]:
    """p of t = 1/(1 + p·|x|) and the coefficients of P, the highest first: the long, the short."""
    body = SOURCE.read_text().split("float gelu(float x)")[1].split("const float tail")[0]
    fits = []
    for part in body.split("} else {"):
        p = re.search(rf"__fmaf_rn\(fabsf\(x\), {NUMBER}", part)
        assert p is not None
        first = re.findall(rf"polynomial = {NUMBER}", part)
        rest = re.findall(rf"__fmaf_rn\(polynomial, t, {NUMBER}\)", part)
        fits.append((float(p[1]), [float(c) for c in (*first, *rest)]))
    return fits


@pytest.mark.parametrize(
    ("which", "terms", "end", "error"),
    [(0, 9, 11.3, 4e-8), (0, 9, 13.5, 4e-7), (1, 5, 13.5, 2.9e-5)],
)
def test_the_tail_of_the_normal_distribution(
    which: int, terms: int, end: float, error: float
) -> None:
    """t·P(t) = e^(x²/2)·Φ(−|x|) within the errors from which activations.cuh derives its bounds."""
    p, coefficients = gelu_fits()[which]
    assert len(coefficients) == terms
    x = torch.linspace(0, end, 200_001, dtype=torch.float64)
    t = 1 / (1 + p * x)
    value = torch.zeros_like(t)
    for c in coefficients:
        value = value * t + c
    exact = 0.5 * torch.special.erfcx(x / 2**0.5)
    assert ((value * t / exact - 1).abs() < error).all()


def test_the_exponents() -> None:
    """The factors of x in the arguments of 2^: −log2(e) times what the activations say."""
    text = SOURCE.read_text()
    log2e = 1 / torch.log(torch.tensor(2.0, dtype=torch.float64))
    slope = 2 * (2 / torch.pi) ** 0.5
    for pattern, factor in (
        (rf"times_logistic\(x, x \* {NUMBER}\)", -1.0),
        (rf"__fmaf_rn\(x \* x, {NUMBER}, -", -slope * 0.044715),
        (rf"__fmaf_rn\(x \* x, -[0-9.]+f, {NUMBER}\)", -slope),
        (rf"exp2_approximate\(x \* \(x \* {NUMBER}\)\)", -0.5),
    ):
        found = re.search(pattern, text)
        assert found is not None, pattern
        assert abs(float(found[1]) / (factor * log2e) - 1) < 2**-25


def test_the_dtype_of_a_result_travels_in_the_layout() -> None:
    x = torch.zeros(3, 64, dtype=torch.bfloat16)
    packed = torch.zeros(1, dtype=torch.uint8)
    layout = 33 | 1 << TOLD_SHIFT | 64 << INPUTS_SHIFT
    assert linear_fake(x, packed, layout, 7).dtype is torch.bfloat16
    for number, dtype in enumerate((torch.bfloat16, torch.float16, torch.float32), 1):
        y = linear_fake(x, packed, layout | number << RESULT_SHIFT, 7)
        assert (y.dtype, tuple(y.shape)) == (dtype, (3, 7))
    with pytest.raises(ValueError, match="kernels outside of a GPU write x's dtype"):
        with_result_dtype(layout, x, torch.float32)
    assert with_result_dtype(layout, x, torch.bfloat16) == layout
