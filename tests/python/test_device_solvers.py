# SPDX-License-Identifier: BSD-3-Clause
"""The solvers for other devices against those of the core, on the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

import gossamer as gs
from gossamer.prune import device_solvers as ours
from gossamer.prune import device_swaps, selection
from gossamer.prune.selection import Candidate, select

core = torch.ops.gossamer


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that runs on a CUDA device alone."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.mark.gpu(skip(test))


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
    ["unstructured:0.37", "unstructured:1", "2:4", "1:8", "5:32", "fanin:0.6", "block:4x3:0.4"],
)
def test_selection(pattern: str, scope: str) -> None:
    for shape in ((7, 18), (1, 5), (8, 24)):
        scores = tied(*shape)
        want = core.select_masks([scores], pattern, scope)[0]
        assert torch.equal(ours.select(scores, pattern, scope), want)


@pytest.mark.parametrize("scope", ["row", "tensor"])
@pytest.mark.parametrize("pattern", ["unstructured:0.37", "2:4", "fanin:0.6", "block:4x3:0.4"])
def test_selection_in_stacked_matrices(pattern: str, scope: str) -> None:
    for shape in ((3, 7, 18), (2, 1, 5)):  # Blocks and groups end with a matrix.
        scores = torch.randint(-3, 4, shape).float()
        want = core.select_masks([scores], pattern, scope)[0]
        assert torch.equal(ours.select(scores, pattern, scope), want)


PATTERNS = ["unstructured:0.37", "2:4", "3:16", "fanin:0.6", "block:4x3:0.4"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_sparsifiers_selection_where_the_weight_is(pattern: str, dtype: torch.dtype) -> None:
    for module in (nn.Linear(18, 7), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 6, (1, 2))):
        scores = torch.randint(-3, 4, module.weight.shape).to(dtype)
        candidate = Candidate.of("w", module, module.weight, scores, pattern)
        (want,) = select([candidate], pattern, "tensor")
        got = candidate.unfold(selection._select_there(candidate, pattern, "tensor"))
        assert torch.equal(got, want)


def test_weights_of_one_device_compete_there() -> None:
    modules = [nn.Linear(18, 7), nn.Conv2d(6, 5, 3), nn.Linear(4, 4).double()]
    candidates = [
        Candidate.of(str(at), own, own.weight, own.weight.detach().mul(4).round(), "unstructured")
        for at, own in enumerate(modules)
    ]
    want = select(candidates, "unstructured:0.6", "global")
    got = selection._select_there_together(candidates, "unstructured:0.6")
    for candidate, one, other in zip(candidates, got, want, strict=True):
        assert torch.equal(candidate.unfold(one), other)
    broken = replace(candidates[1], scores=candidates[1].scores * torch.nan)
    with pytest.raises(ValueError, match="'1': a score is NaN"):
        selection._select_there_together([candidates[0], broken], "unstructured:0.6")
    with pytest.raises(ValueError, match="'1': a score is NaN"):
        selection._select_there(broken, "unstructured:0.6", "tensor")


@needs_gpu
@pytest.mark.parametrize("scope", ["row", "tensor", "global", "columns:5"])
@pytest.mark.parametrize("pattern", [*PATTERNS, "vnm:4:2:8", "transposable:2:4"])
def test_masks_of_a_sparsifier_on_a_gpu_are_those_of_the_cpu(pattern: str, scope: str) -> None:
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Linear(24, 20)).to(device)
        magnitude = gs.Magnitude(pattern, scope)
        magnitude.prepare(model)
        magnitude.step()
        found.append([magnitude.mask(group).cpu() for group in magnitude.groups])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


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


@pytest.mark.parametrize("most", [0, 3])
@pytest.mark.parametrize(
    ("pattern", "group", "segment"),
    [
        ("unstructured:0.6", 0, 0),
        ("unstructured:0.1", 0, 0),
        ("2:4", 4, 0),
        ("2:4", 4, 10),
        ("5:16", 16, 0),
        ("8:32", 32, 30),
    ],
)
def test_swaps(pattern: str, group: int, segment: int, most: int) -> None:
    weight, gram = problem(9, 90)  # Rows longer than the short lists of a swap.
    mask = ours.select(weight.abs(), pattern, "row", segment)
    before = mask.clone()
    want, count = core.swap_refine(weight, gram, mask, group, segment, most)
    got, made = ours.swap_refine(weight, gram, mask, group, segment, most)
    assert torch.equal(mask, before)
    assert torch.equal(got, want)
    assert made == count > 0
    assert most == 0 or made <= most * len(weight)


def test_swaps_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = problem(9, 90)
    for group in (0, 4):
        mask = core.magnitude_mask(weight, "2:4", "row")
        want = core.swap_refine(weight, gram, mask, group, 0, 0)
        for pairs in (1, 2000):  # A row or a column at a time; some at a time.
            monkeypatch.setattr(device_swaps, "_PAIRS", pairs)
            got = ours.swap_refine(weight, gram, mask, group, 0, 0)
            assert torch.equal(got[0], want[0])
            assert got[1] == want[1]


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (2, 3)])
def test_swaps_of_next_to_nothing(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape)
    gram = torch.eye(shape[1])
    for mask in (torch.ones(shape).bool(), torch.zeros(shape).bool()):
        got, made = ours.swap_refine(weight, gram, mask, 0, 0, 0)
        assert torch.equal(got, mask)
        assert made == 0


def test_sweeps_that_cannot_select() -> None:
    weight, gram = problem(4, 8)
    with pytest.raises(ValueError, match="cannot select pattern"):
        ours.obs_sweep(weight, factor_of(gram), None, "block:2x2:0.5", 8, 0)


@pytest.mark.parametrize("sweep", [core.obs_sweep, ours.obs_sweep])
def test_sweeps_refuse_numbers_that_would_spread(sweep: Callable[..., object]) -> None:
    weight, gram = problem(4, 8)
    factor = factor_of(gram)
    broken = weight.clone()
    broken[2, 3] = torch.inf
    with pytest.raises(ValueError, match="weight: row 2, column 3 is inf"):
        sweep(broken, factor, None, "2:4", 8, 0)
    factor[5, 5] = 0
    with pytest.raises(ValueError, match="factor: element 5 of the diagonal is 0"):
        sweep(weight, factor, None, "2:4", 8, 0)


@pytest.mark.parametrize("segment", [0, 50])
def test_groups_that_cross_blocks(segment: int) -> None:
    weight, gram = problem(5, 300)
    args = (weight, factor_of(gram), None, "3:8", 7, segment)
    want, want_mask = core.obs_sweep(*args)
    got, mask = ours.obs_sweep(*args)
    assert torch.equal(mask, want_mask)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "5:16", "9:32", "30:64", "1:2"])
def test_groups_on_a_gpu(pattern: str, dtype: torch.dtype) -> None:
    for shape, segment in (((64, 192), 0), ((7, 18), 0), ((5, 1), 0), ((3, 100), 50), ((4, 6), 1)):
        for scores in (tied(*shape), torch.randn(shape), torch.full(shape, -torch.inf)):
            scores = scores.to(dtype)
            scores[0, 0] = -0.0
            step = segment or shape[1]
            parts = [part.contiguous() for part in scores.split(step, dim=1)]
            want = torch.cat([core.select_masks([part], pattern, "row")[0] for part in parts], 1)
            got = ours.select(scores.cuda(), pattern, "row", segment)
            assert torch.equal(got.cpu(), want), (shape, segment)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(64, 128), (2, 12, 20), (1, 1), (7, 18), (3, 5, 9), (0, 4)])
def test_transposable_masks_on_a_gpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for scores in (torch.randn(shape), torch.randint(-2, 3, shape), torch.rand(shape) ** 30):
        want = core.transposable_mask(scores.to(dtype))
        assert torch.equal(core.transposable_mask(scores.to(dtype).cuda()).cpu(), want)
        # Rows that begin at no multiple of 16 bytes.
        odd = torch.randn(scores.numel() + 1, dtype=dtype)[1:].view(shape)
        assert torch.equal(core.transposable_mask(odd.cuda()).cpu(), core.transposable_mask(odd))
    larger = torch.randn(16, 24)
    want = core.transposable_mask(larger, 4, 8)
    assert torch.equal(core.transposable_mask(larger.cuda(), 4, 8).cpu(), want)


@needs_gpu
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_transposable_masks_on_a_gpu_refuse(value: float) -> None:
    scores = torch.rand(3, 8, 8)
    scores[1, 2, 7] = scores[2, 0, 0] = value
    with pytest.raises(ValueError, match="transposable 2:4: row 10 has a score that is NaN"):
        core.transposable_mask(scores.cuda())


@needs_gpu
@pytest.mark.parametrize("shape", [(6, 36), (50, 128), (33, 96), (1, 4), (700, 64)])
@pytest.mark.parametrize("pattern", ["2:4", "3:8", "1:4", "20:32", "unstructured:0.6", "fanin:0.5"])
def test_a_block_on_a_gpu_is_swept_bit_for_bit(pattern: str, shape: tuple[int, int]) -> None:
    weight, gram = problem(*shape)
    factor = factor_of(gram)
    for segment in (0, shape[1] // 2):
        want, want_mask = core.obs_sweep(weight, factor, None, pattern, 128, segment)
        args = (factor.cuda(), None, pattern, 128, segment)
        got, mask = core.obs_sweep(weight.cuda(), *args)
        assert torch.equal(mask.cpu(), want_mask)
        assert torch.equal(got.cpu(), want)
        got, _ = core.obs_sweep(weight.cuda(), factor.cuda(), want_mask.cuda(), "", 128, 0)
        assert torch.equal(got.cpu(), want)


@needs_gpu
@pytest.mark.parametrize("block", [16, 128, 300])
@pytest.mark.parametrize("cols", [130, 512])
def test_blocks_on_a_gpu_are_as_exact_as_on_the_cpu(cols: int, block: int) -> None:
    weight, gram = problem(40, cols)
    factor, mask = factor_of(gram), torch.rand(40, cols) > 0.5
    exact, _ = ours.obs_sweep(weight.double(), factor.double(), mask, "", block, 0)
    on_cpu, _ = core.obs_sweep(weight, factor, mask, "", block, 0)
    got, kept = core.obs_sweep(weight.cuda(), factor.cuda(), mask.cuda(), "", block, 0)
    assert torch.equal(kept.cpu(), mask)
    assert torch.equal(got.cpu() == 0, on_cpu == 0)
    # The same sums in another order: neither can be much further from the exact ones.
    assert (got.cpu() - exact).norm() <= 2 * (on_cpu - exact).norm()


@needs_gpu
def test_sweeps_on_a_gpu_refuse_what_they_cannot_read() -> None:
    weight, factor = torch.randn(4, 8, device="cuda"), torch.eye(8, device="cuda")
    mask = torch.ones(4, 8, dtype=torch.bool, device="cuda")
    sweep = torch.ops.gossamer.obs_sweep_block_
    for arguments, message in (
        ((weight, factor[:7], mask, 0, 8, 0, 0, 0), "factor is"),
        ((weight, factor, mask, 4, 4, 0, 0, 0), "columns 4 to 4"),
        ((weight, factor, mask, 0, 8, 3, 2, 0), "1 <= N <= M"),
        ((weight, factor, mask, 0, 8, 2, 4, 3), "segment 3"),
        ((weight, factor.cpu(), mask, 0, 8, 2, 4, 0), "factor is not on the device"),
        ((weight.double(), factor, mask, 0, 8, 2, 4, 0), "weight has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            sweep(*arguments)


@needs_gpu
def test_opcheck_of_kernels_without_a_shape() -> None:
    scores, mask = torch.randn(4, 8, device="cuda"), torch.ones(4, 8, device="cuda").bool()
    factor = torch.eye(8, device="cuda")
    opcheck(core.select_groups.default, (scores, 2, 4), test_utils="test_schema")
    block = (scores, factor, mask, 0, 8, 2, 4, 0)
    opcheck(core.obs_sweep_block_.default, block, test_utils="test_schema")


@needs_gpu
@pytest.mark.parametrize("method", [gs.Wanda, gs.SparseGPT, gs.ALPS, gs.Best])
def test_calibration_on_a_gpu_gives_what_the_cpu_gives(
    method: type[gs.OneShot],
) -> None:
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
