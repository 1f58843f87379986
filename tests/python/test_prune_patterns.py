# SPDX-License-Identifier: BSD-3-Clause
"""Schedules by hand, and patterns on weights of every rank."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gossamer.prune import GradualMagnitude, Magnitude, Random, cubic_sparsity
from gossamer.prune.matrix import MatrixForm
from gossamer.prune.pattern import parse_pattern, pattern_at

# --- Schedules ------------------------------------------------------------------------------------


def test_the_cubic_schedule_by_hand() -> None:
    # s(t) = 0.8 + (0 - 0.8)(1 - t/4)^3: 1 - t/4 is 1, 3/4, 1/2, 1/4, 0.
    values = [cubic_sparsity(0.0, 0.8, 0, 4, step) for step in range(5)]
    want = [0.0, 0.8 * 37 / 64, 0.8 * 7 / 8, 0.8 * 63 / 64, 0.8]
    assert values == pytest.approx(want, rel=4 * 2.0**-52, abs=0)
    assert cubic_sparsity(0.5, 0.9, 10, 20, 15) == pytest.approx(0.85, rel=4 * 2.0**-52)
    assert cubic_sparsity(0.5, 0.9, 10, 20, 3) == 0.5
    assert cubic_sparsity(0.5, 0.9, 10, 20, 10) == 0.5
    assert cubic_sparsity(0.5, 0.9, 10, 20, 20) == 0.9
    assert cubic_sparsity(0.5, 0.9, 10, 20, 10**9) == 0.9


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((0.0, 0.9, 4, 4, 0), "ends at step 4, which is not after its begin, 4"),
        ((-0.1, 0.9, 0, 4, 0), "initial sparsity -0.1: a fraction from 0 to 1"),
        ((0.0, 1.5, 0, 4, 0), "final sparsity 1.5"),
        ((0.0, float("nan"), 0, 4, 0), "final sparsity nan"),
    ],
)
def test_schedules_that_cannot_be(arguments: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        cubic_sparsity(*arguments)


@given(
    st.floats(0, 1), st.floats(0, 1), st.integers(0, 50), st.integers(1, 50), st.integers(0, 120)
)
def test_the_cubic_schedule_grows_and_stays_between_its_ends(
    a: float, b: float, begin: int, length: int, step: int
) -> None:
    initial, final = min(a, b), max(a, b)
    now = cubic_sparsity(initial, final, begin, begin + length, step)
    after = cubic_sparsity(initial, final, begin, begin + length, step + 1)
    rounding = 4 * 2.0**-53
    assert initial - rounding <= now <= after + rounding
    assert after <= final + rounding


@pytest.mark.parametrize(
    ("pattern", "sparsity", "want"),
    [
        ("unstructured:0.9", 0.3, "unstructured:0.3"),
        ("fanin:0.9", 0.25, "fanin:0.25"),
        ("block:4x8:0.5", 0.25, "block:4x8:0.25"),
        ("2:4", 0.0, "4:4"),
        ("2:4", 0.24, "4:4"),
        ("2:4", 0.25, "3:4"),
        ("2:4", 0.49, "3:4"),
        ("2:4", 0.5, "2:4"),
        ("1:8", 0.8, "2:8"),
        ("vnm:16:2:8", 0.4, "unstructured:0.4"),
        ("vnm:16:2:8", 0.5, "vnm:16:4:8"),
        ("vnm:16:2:8", 0.7, "vnm:16:3:8"),
        ("vnm:16:2:8", 0.75, "vnm:16:2:8"),
    ],
)
def test_patterns_on_their_way(pattern: str, sparsity: float, want: str) -> None:
    assert parse_pattern(pattern_at(pattern, sparsity)) == parse_pattern(want)


def zeros_per_step(pruner: GradualMagnitude, steps: int) -> list[int]:
    model = nn.Linear(32, 16)
    pruner.prepare(model)
    counts = []
    for _ in range(steps):
        pruner.step()
        counts.append(int((~pruner.mask(pruner.groups[0])).sum()))
    return counts


def test_gradual_magnitude_follows_the_schedule() -> None:
    counts = zeros_per_step(GradualMagnitude("unstructured:0.75", 2, 6), 8)
    # Calls 1 … 8; 384·(1 − (1 − (t − 2)/4)³) zeros of 512 from call 2 to 6.
    assert counts == [0, 0, 222, 336, 378, 384, 384, 384]


def test_gradual_magnitude_every_other_step_and_the_last() -> None:
    counts = zeros_per_step(
        GradualMagnitude("unstructured:0.75", 1, 6, every=2, initial_sparsity=0.5), 7
    )
    # Calls 1, 3, 5 and 6: 512·(0.75 − 0.25·(1 − (t − 1)/5)³), rounded.
    assert counts == [256, 256, 356, 356, 383, 384, 384]


def test_gradual_magnitude_of_groups_and_blocks() -> None:
    # 0.5·(1 − (1 − t/8)³) is 0.165, 0.289, 0.378, 0.4375, 0.474, 0.492, 0.499, 0.5.
    assert zeros_per_step(GradualMagnitude("2:4", 0, 8), 9) == [0] + [128] * 6 + [256] * 2
    counts = zeros_per_step(GradualMagnitude("block:4x4:0.5", 0, 4), 5)
    assert counts == [16 * blocks for blocks in (9, 14, 16, 16, 16)]
    counts = zeros_per_step(GradualMagnitude("fanin:0.5", 0, 4), 5)
    assert counts == [16 * inputs for inputs in (9, 14, 16, 16, 16)]


def test_the_mask_is_frozen_after_the_end() -> None:
    model = nn.Linear(16, 16)
    pruner = GradualMagnitude("2:4", 0, 2)
    pruner.prepare(model)
    pruner.step()
    pruner.step()
    (group,) = pruner.groups
    before = pruner.mask(group).clone()
    with torch.no_grad():
        pruner.dense_weight(group)[~before] = 100.0
    pruner.step()
    assert torch.equal(pruner.mask(group), before)


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_a_missed_end_is_made_up_for_and_then_frozen(scope: str) -> None:
    model = nn.Linear(32, 16)
    pruner = GradualMagnitude("unstructured:0.75", 0, 4, scope=scope)
    pruner.prepare(model)
    for _ in range(3):
        pruner.step()
    pruner.enable_mask_update = False
    pruner.step()
    pruner.step()
    (group,) = pruner.groups
    assert int((~pruner.mask(group)).sum()) == 378  # of step 3: 384·(1 − (1/4)³)
    # The debt is in the model's own checkpoint: a new sparsifier pays it.
    resumed = nn.Linear(32, 16)
    other = GradualMagnitude("unstructured:0.75", 0, 4, scope=scope)
    other.prepare(resumed)
    resumed.load_state_dict(model.state_dict())
    for owner in (other, pruner):
        owner.enable_mask_update = True
        owner.step()
        mask = owner.mask(owner.groups[0])
        assert int((~mask).sum()) == 384
        before = mask.clone()
        with torch.no_grad():
            owner.dense_weight(owner.groups[0])[~before] = 100.0
        owner.step()
        assert torch.equal(owner.mask(owner.groups[0]), before)


# --- Weights of every rank ------------------------------------------------------------------------


def masked(module: nn.Module, pattern: str, name: str = "weight") -> tuple[Tensor, Tensor]:
    """The dense values and the mask of one step of Magnitude."""
    pruner = Magnitude(pattern)
    pruner.prepare(module, [{"tensor_fqn": name}])
    pruner.step()
    (group,) = pruner.groups
    return pruner.dense_weight(group).detach(), pruner.mask(group)


def largest(values: Tensor, count: int) -> set[int]:
    """Indices of the largest absolute values, the lower index among equals."""
    order = sorted(range(values.numel()), key=lambda i: (-abs(float(values.flatten()[i])), i))
    return set(order[:count])


@pytest.mark.parametrize("channels", [3, 4, 6, 8])
def test_groups_of_a_convolution_run_along_input_channels_of_one_tap(channels: int) -> None:
    weight, mask = masked(nn.Conv2d(channels, 5, (3, 2)), "2:4")
    for out in range(5):
        for row in range(3):
            for col in range(2):
                for begin in range(0, channels, 4):
                    values = weight[out, begin : begin + 4, row, col]
                    kept = mask[out, begin : begin + 4, row, col].nonzero().flatten().tolist()
                    assert set(kept) == largest(values, min(2, len(values)))


def test_blocks_and_fan_in_of_a_convolution_see_channels_last() -> None:
    weight, mask = masked(nn.Conv2d(4, 8, 3), "block:4x4:0.5")
    # Blocks of 4 outputs × the 4 channels of one tap: 2·9 blocks, 9 kept.
    blocks = mask.view(2, 4, 4, 9).permute(0, 3, 1, 2).reshape(18, 16)
    assert sorted(blocks.sum(1).tolist()) == [0] * 9 + [16] * 9
    means = weight.abs().view(2, 4, 4, 9).permute(0, 3, 1, 2).reshape(18, 16).double().mean(1)
    assert set(blocks.all(1).nonzero().flatten().tolist()) == largest(means, 9)
    _, mask = masked(nn.Conv2d(4, 8, 3), "fanin:0.75")
    assert mask.flatten(1).sum(1).eq(9).all()


def test_panels_of_a_convolution_are_output_channels_of_one_tap() -> None:
    _, mask = masked(nn.Conv2d(16, 8, 3), "vnm:4:2:8")
    for tap in mask.flatten(2).unbind(2):
        assert torch.ops.gossamer.find_violation(tap.float(), "vnm:4:2:8") == ""
        assert tap.view(8, 2, 8).sum(-1).eq(2).all()


def test_convolutions_of_one_and_three_dimensions_and_grouped_ones() -> None:
    for module in (nn.Conv1d(8, 4, 5), nn.Conv3d(8, 4, 2), nn.Conv2d(8, 4, 3, groups=2)):
        _, mask = masked(module, "1:4")
        groups = mask.flatten(2).movedim(1, -1).unflatten(-1, (-1, 4))
        assert groups.sum(-1).eq(1).all()


def test_a_transposed_convolution_has_its_inputs_first() -> None:
    _, mask = masked(nn.ConvTranspose2d(8, 3, 2), "2:4")
    assert mask.view(2, 4, 3, 2, 2).sum(1).eq(2).all()


def test_stacked_weights_are_matrices_of_their_own() -> None:
    module = nn.Module()
    module.experts = nn.Parameter(torch.randn(3, 6, 10))
    weight, mask = masked(module, "2:4", "experts")
    for values, kept in zip(weight, mask, strict=True):
        assert torch.equal(kept, torch.ops.gossamer.magnitude_mask(values, "2:4", "tensor"))


def test_conv1d_of_gpt2_stores_inputs_first() -> None:
    class Conv1D(nn.Module):
        def __init__(self, nf: int, nx: int) -> None:
            super().__init__()
            self.nf = nf
            self.weight = nn.Parameter(torch.randn(nx, nf))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    module = Conv1D(6, 8)
    pruner = Magnitude("2:4")
    pruner.prepare(module)
    pruner.step()
    assert pruner.mask(pruner.groups[0]).view(2, 4, 6).sum(1).eq(2).all()
    adopted = Random("1:4")
    adopted.prepare(module)
    adopted.step()
    assert adopted.mask(adopted.groups[0]).view(2, 4, 6).sum(1).eq(1).all()


MODULES = st.sampled_from(
    [
        lambda o, i, k: nn.Linear(i, o),
        lambda o, i, k: nn.Conv2d(i, o, k),
        lambda o, i, k: nn.Conv1d(i, o, k[0]),
        lambda o, i, k: nn.ConvTranspose2d(i, o, k),
    ]
)
SIZES = st.integers(1, 13)
TAPS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(MODULES, SIZES, SIZES, TAPS, st.booleans())
@settings(deadline=None)
def test_matrices_turn_back_into_weights(
    make: Any, out: int, inputs: int, taps: tuple[int, int], grouped: bool
) -> None:
    module = make(out, inputs, taps)
    values = torch.arange(float(module.weight.numel())).view(module.weight.shape)
    form = MatrixForm.of(module, values)
    matrix = form.to_matrix(values, grouped=grouped)
    assert matrix.shape[-1] == (inputs if grouped else values.numel() // out)
    assert matrix.shape[-2] == out
    assert torch.equal(form.from_matrix(matrix, values.shape, grouped=grouped), values)


FRACTIONS = st.sampled_from([0.0, 0.1, 0.5, 0.75, 0.9, 1.0])
PATTERNS = st.one_of(
    st.builds("unstructured:{}".format, FRACTIONS),
    st.builds("fanin:{}".format, FRACTIONS),
    st.builds("block:{}x{}:{}".format, st.integers(1, 5), st.integers(1, 5), FRACTIONS),
    st.sampled_from(["1:2", "2:4", "3:4", "4:4", "1:8", "4:8", "8:16", "vnm:2:1:8", "vnm:4:2:8"]),
)


@given(MODULES, SIZES, SIZES, TAPS, PATTERNS, st.sampled_from(["row", "tensor", "global"]))
@settings(deadline=None, max_examples=200)
def test_masks_satisfy_their_pattern_in_any_shape(
    make: Any, out: int, inputs: int, taps: tuple[int, int], pattern: str, scope: str
) -> None:
    module = make(out, inputs, taps)
    pruner = Random(pattern, scope=scope)
    fields = parse_pattern(pattern)
    try:
        pruner.prepare(module, [{"tensor_fqn": "weight"}])
    except ValueError as error:
        refused = str(error)
    else:
        refused = ""
    if refused:
        assert "keeps nothing" in refused
        assert fields.sparsity < 1
        assert scope != "global"
        form = MatrixForm.of(module, module.weight)
        zeros = form.to_matrix(torch.zeros_like(module.weight), grouped=False)
        assert not torch.ops.gossamer.select_masks([zeros], pattern, scope)[0].any()
        return
    pruner.step()
    mask = pruner.mask(pruner.groups[0])
    asks_for_some = fields.sparsity < 1 and scope != "global" and mask.numel() > 0
    assert bool(mask.any()) or not asks_for_some
    matrix = MatrixForm.of(module, mask).to_matrix(mask, grouped=fields.grouped)
    assert torch.ops.gossamer.find_violation(matrix.float(), pattern) == ""
    kept = int(mask.sum())
    if fields.kind == "nm":
        whole, rest = divmod(inputs, fields.m)
        rows = mask.numel() // inputs
        assert kept == rows * (whole * fields.n + min(rest, fields.n))
    elif fields.kind == "unstructured" and scope != "row":
        assert mask.numel() - kept == int(fields.sparsity * mask.numel() + 0.5)
    elif fields.kind == "fanin":
        columns = mask.numel() // out
        assert (columns * out - kept) == out * int(fields.sparsity * columns + 0.5)
