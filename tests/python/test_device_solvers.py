# SPDX-License-Identifier: BSD-3-Clause
"""The solvers for other devices against those of the core, on the same inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.prune import device_solvers as ours

core = torch.ops.gossamer


def problem(rows: int, cols: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(4 * cols, cols) @ torch.randn(cols, cols)
    gram = (x.T @ x / x.shape[0]).double()
    gram += 0.05 * gram.diagonal().mean() * torch.eye(cols)
    return torch.randn(rows, cols), gram.float()


def factor_of(gram: Tensor) -> Tensor:
    return torch.linalg.cholesky(torch.linalg.inv(gram.double()), upper=True).float()


def tied(rows: int, cols: int) -> Tensor:
    return torch.randint(-3, 4, (rows, cols)).float()


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize(
    "pattern",
    ["unstructured:0.37", "unstructured:1", "2:4", "1:8", "fanin:0.6", "block:4x3:0.4"],
)
def test_selection(pattern: str, scope: str) -> None:
    for shape in ((7, 18), (1, 5), (8, 24)):
        scores = tied(*shape)
        want = core.select_masks([scores], pattern, scope)[0]
        assert torch.equal(ours.select(scores, pattern, scope), want)


def test_selection_in_segments() -> None:
    scores = tied(5, 18)
    got = ours.select(scores, "2:4", "row", 6)
    for begin in range(0, 18, 6):
        part = scores[:, begin : begin + 6].contiguous()
        assert torch.equal(got[:, begin : begin + 6], core.select_masks([part], "2:4", "row")[0])


@pytest.mark.parametrize("pattern", ["unstructured:0.6", "2:4", "fanin:0.5", ""])
@pytest.mark.parametrize("segment", [0, 6])
def test_the_sweep(pattern: str, segment: int) -> None:
    weight, gram = problem(6, 36)
    mask = None if pattern else torch.rand(6, 36) > 0.5
    args = (weight, factor_of(gram), mask, pattern, 16, segment)
    want, want_mask = core.obs_sweep(*args)
    got, mask_got = ours.obs_sweep(*args)
    assert torch.equal(mask_got, want_mask)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    assert torch.equal(got == 0, want == 0)


def test_least_squares() -> None:
    weight, gram = problem(9, 40)
    mask = torch.rand(9, 40) > 0.5
    mask[2] = False
    args = (weight * mask, gram, weight @ gram, mask, 300, 1e-5)
    want, iterations, residual = core.refit(*args)
    got, made, left = ours.refit(*args)
    assert abs(made - iterations) <= 3
    assert max(left, residual) <= 1e-5
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pattern", ["unstructured:0.5", "2:4", "block:2x2:0.5"])
def test_admm(pattern: str) -> None:
    weight, gram = problem(12, 24)
    scale = gram.diagonal().rsqrt()
    values, vectors = torch.linalg.eigh((gram * scale * scale[:, None]).double())
    args = (weight, vectors.float(), values.float()[None], pattern, "tensor", 30, 0.1, 0)
    want, want_mask, iterations, penalty, _ = core.admm(*args)
    got, mask, made, rho, _ = ours.admm(*args)
    assert made == iterations
    assert rho == pytest.approx(penalty, rel=1e-6)
    assert torch.equal(mask, want_mask)
    torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-3)


def test_gram_and_swaps() -> None:
    x, y = torch.randn(9000, 6), torch.randn(9000, 5)
    grams = [torch.ones(6, 5, dtype=torch.float64) for _ in range(2)]
    core.gram_(grams[0], x, y)
    ours.accumulate_gram(grams[1], x, y)
    torch.testing.assert_close(grams[1], grams[0], rtol=1e-4, atol=1e-2)
    weight, gram = problem(4, 16)
    mask = core.magnitude_mask(weight, "2:4", "row")
    want, count = core.swap_refine(weight, gram, mask, 4, 0, 0)
    got, made = ours.swap_refine(weight, gram, mask, 4, 0, 0)
    assert torch.equal(got, want)
    assert made == count


def test_sweeps_that_cannot_select() -> None:
    weight, gram = problem(4, 8)
    with pytest.raises(ValueError, match="cannot select pattern"):
        ours.obs_sweep(weight, factor_of(gram), None, "block:2x2:0.5", 8, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", [gs.Wanda, gs.SparseGPT, gs.ALPS, gs.Best])
def test_calibration_on_a_gpu_gives_what_the_cpu_gives(method: type[gs.OneShot]) -> None:
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16, 10))
    batches = [torch.randn(32, 8, 6, 6) for _ in range(2)]
    errors = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        sparsifier = method("2:4")
        moved = model.to(device)
        saved = {name: value.clone() for name, value in moved.state_dict().items()}
        sparsifier.prepare(moved)
        errors.append(sparsifier.calibrate([x.to(device) for x in batches]).mean_error)
        sparsifier.squash_mask()
        assert all(parameter.device.type == device for parameter in moved.parameters())
        moved.load_state_dict(saved)
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
