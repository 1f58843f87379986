# SPDX-License-Identifier: BSD-3-Clause
"""Which rows of the GPU's kernel table are tried, checked, timed and chosen; no GPU is needed.

The operator `linear` is answered by torch out of the packed tiles, and times by the test.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from gossamer import _layout_argument, _tune_cuda
from gossamer._plan_cuda import BUCKETS, decide
from gossamer._plan_cuda_rule import PART_OF, runs_packed
from gossamer._quantization import pack_quantized, quantize_rows
from gossamer._tune_cuda import Reference, candidates, choose, discrepancy
from gossamer._weight_facts import Facts
from gossamer.weight import SparseWeight

CUDA = torch.device("cuda", 0)


def table(**seconds: float) -> list[dict[str, Any]]:
    """A kernel table: row i has number i."""
    return [
        {"name": name, "seconds": value, "row": place, "table": 2}
        for place, (name, value) in enumerate(seconds.items(), start=1)
    ]


# --- What is tried, what is chosen ----------------------------------------------------------------


def test_rows_that_the_model_thinks_near_the_best_everywhere_are_tried() -> None:
    first = table(a=1.0, b=1.3, c=1.41, d=1.2, e=1.0)
    second = table(a=2.0, b=2.0, c=2.0, d=2.9)
    assert candidates([first]) == ["a", "e", "d", "b"]
    assert candidates([first, second]) == ["a", "b"]
    many = table(**{f"r{i}": 1.0 + i / 100 for i in range(9)})
    assert candidates([many]) == ["r0", "r1", "r2", "r3"]
    assert len(candidates([many])) == _tune_cuda.MOST


def test_a_row_without_a_number_cannot_be_named() -> None:
    rows = table(a=1.0, b=1.0)
    rows[0]["row"] = 0
    assert candidates([rows]) == ["b"]


@pytest.mark.parametrize(
    ("times", "picks", "expected"),
    [
        ([{"a": 1.0, "b": 0.9}], ["a"], ("b", [0.9])),
        # Within what timing tells apart the cost model keeps its choice.
        ([{"a": 1.0, "b": 0.99}], ["a"], ("", [1.0])),
        # The model's rows differ at both ends, and no row is as good at both.
        ([{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}], ["a", "b"], ("", [1.0, 2.0])),
        # One row is better at both.
        ([{"a": 1.0, "c": 0.8}, {"b": 2.0, "c": 1.5}], ["a", "b"], ("c", [0.8, 1.5])),
        # The model's row was wrong at one end.
        ([{"a": 1.0, "c": 1.3}, {"c": 1.5}], ["a", "a"], ("c", [1.3, 1.5])),
        ([{}, {"c": 1.0}], ["a", "a"], ("", [math.inf, math.inf])),
        ([{}], ["a"], ("", [math.inf])),
    ],
)
def test_the_row_that_is_least_behind_the_best_is_chosen(
    times: Sequence[Mapping[str, float]], picks: list[str], expected: tuple[str, list[float]]
) -> None:
    assert choose(times, picks, list) == expected


def test_a_row_is_ranked_by_what_runs_in_the_end() -> None:
    dense = [1.0, 1.0]

    def in_the_end(found: Sequence[float]) -> list[float]:
        return [min(ms, other) for ms, other in zip(found, dense, strict=True)]

    # Where both lose dense runs: how far behind b is there does not count.
    times = [{"a": 2.0, "b": 3.0}, {"a": 0.9, "b": 0.7}]
    assert choose(times, ["a", "a"], list) == ("", [2.0, 0.9])
    assert choose(times, ["a", "a"], in_the_end) == ("b", [3.0, 0.7])
    # Where only b loses it is behind by what dense takes.
    times = [{"a": 0.5, "b": 3.0}, {"a": 0.9, "b": 0.7}]
    assert choose(times, ["b", "b"], in_the_end) == ("a", [0.5, 0.9])
    # The cost model's choices are ranked likewise.
    times = [{"a": 2.0, "b": 3.0}, {"a": 0.71, "b": 0.7}]
    assert choose(times, ["a", "a"], in_the_end) == ("", [2.0, 0.71])


def test_a_bucket_in_which_every_row_was_wrong_runs_dense() -> None:
    times = [[1.0, 2.0] for counts in BUCKETS for _ in counts]
    times[0] = [math.inf, 2.0]
    kernels = ["k"] * len(BUCKETS)
    assert decide(times, kernels, "speed", 10).dense_buckets == ["dense"] * 3 + [None] * 5
    assert not decide(times, kernels, "low", 10).sparse


def test_rows_travel_in_bits_of_their_own() -> None:
    times = [[1.0, 2.0] for counts in BUCKETS for _ in counts]
    plan = decide(times, ["k"] * len(BUCKETS), "speed", 10)
    parts = ["c", "", "a", "gone", "b", "", "c", "c", "b", "a"]
    bits = plan.bits([parts[part] for part in PART_OF], {"a": 1, "b": 2, "c": 3}, 2)
    ends = (*_layout_argument.PART_ENDS, 4096)
    assert [_layout_argument.code_at(bits, n) for n in ends] == [3, 0, 1, 0, 2, 0, 3, 3, 2, 1]
    assert bits >> _layout_argument.TABLE_SHIFT == 2
    facts = Facts(2, 8, 132, torch.float8_e4m3fn, 33, False, None, 0, torch.bfloat16, True)
    plain = facts.layout_argument(CUDA)
    assert plain & bits == 0
    everything = _layout_argument.plan_bits([15] * 10, [True, True], 3)
    assert plain & everything == 0
    assert plain & 3 << _layout_argument.RESULT_SHIFT == 0
    assert everything & 3 << _layout_argument.RESULT_SHIFT == 0
    assert (plain | everything) < 1 << 63
    assert facts._replace(plan=everything).layout_argument(CUDA) == plain | everything
    assert facts._replace(plan=everything).layout_argument(torch.device("cpu")) == 33


def test_a_plan_stays_with_a_weight_of_the_same_shape() -> None:
    w = pruned(64, 128)
    weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    plan = _layout_argument.plan_bits([5])
    planned = weight._replace(weight.packed, None, plan)
    assert planned._facts.plan == plan
    assert copy.deepcopy(planned)._facts.plan == plan
    assert planned._replace(planned.packed.clone())._facts.plan == plan
    assert planned.detach()._facts.plan == plan  # type: ignore[attr-defined]
    assert planned.half()._facts.plan == 0  # type: ignore[attr-defined]
    assert planned.canonical()._facts.plan == 0


# --- Products -------------------------------------------------------------------------------------


def pruned(out: int, inputs: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    w = torch.randn(out, inputs).to(dtype)
    w.view(out, inputs // 4, 4)[..., ::2] = 0
    return w


def quantized_weight(w: Tensor, kind: torch.dtype) -> SparseWeight:
    packed, scale = pack_quantized(w, "2:4", dtype=kind, layout="nm24_tiles")
    return SparseWeight.from_quantized(packed, scale, w.dtype)


def product_of(weight: SparseWeight, x: Tensor) -> Tensor:
    """What a right kernel gives: exact sums, rounded once."""
    facts = weight._facts
    w = torch.ops.gossamer.unpack(weight.packed, facts.logical_shape, facts.dtype).double()
    if weight.scale is None:
        return (x.double() @ w.T).to(x.dtype)
    q, x_scale = quantize_rows(x, facts.dtype)
    return ((q.double() @ w.T) * x_scale[:, None] * weight.scale).to(x.dtype)


@pytest.fixture
def rows_are_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.gossamer, "quantize_rows", quantize_rows, raising=False)


@pytest.mark.usefixtures("rows_are_quantized")
@pytest.mark.parametrize("values", [None, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_reference_tells_right_products_from_wrong_ones(
    dtype: torch.dtype, values: torch.dtype | None
) -> None:
    w = pruned(96, 512, dtype)
    if values is None:
        weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    else:
        weight = quantized_weight(w, values)
    reference = Reference(weight, w)
    x = torch.randn(40, 512).to(dtype)
    expected, allowed = reference.of(x)
    y = product_of(weight, x)
    assert discrepancy(y, expected, allowed) is None
    # A column of inputs forgotten, an output of the neighbouring row, a token of the next.
    forgotten = x.clone()
    forgotten[:, 256:320] = 0
    assert discrepancy(product_of(weight, forgotten), expected, allowed) is not None
    assert discrepancy(y.roll(1, 1), expected, allowed) is not None
    assert discrepancy(y.roll(1, 0), expected, allowed) is not None
    y[7, 9] = math.nan
    assert "is off by nan" in str(discrepancy(y, expected, allowed))


# --- Measuring ------------------------------------------------------------------------------------


class FakeGpu:
    """`linear` by torch, times by name of the row; the rows in `wrong` compute nonsense."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, weight: SparseWeight) -> None:
        self.weight = weight
        self.seconds: dict[str, float] = {"a": 1.0, "b": 1.1, "c": 1.2, "far": 9.0}
        self.ms: dict[str, float] = {"a": 3.0, "b": 2.0, "c": 2.5, "far": 1.0, "dense": 5.0}
        self.ms_at: dict[tuple[str, int], float] = {}
        self.wrong: set[tuple[str, int]] = set()
        self.contests: list[tuple[int, list[str]]] = []
        monkeypatch.setattr(torch.ops.gossamer, "linear", self.linear)
        monkeypatch.setattr(_tune_cuda, "contest", self.contest)
        on_gpu = Facts.layout_argument
        monkeypatch.setattr(Facts, "layout_argument", lambda facts, _: on_gpu(facts, CUDA))

    def table(self, tokens: int) -> list[dict[str, Any]]:
        return table(**self.seconds)

    def linear(
        self,
        x: Tensor,
        packed: Tensor,
        layout: int,
        out: int,
        scale: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        number = _layout_argument.code_at(layout, len(x))
        assert layout >> _layout_argument.TABLE_SHIFT == 2
        name = list(self.seconds)[number - 1]
        y = product_of(self.weight, x)
        y = y.roll(1, 1) if (name, len(x)) in self.wrong else y
        return y if bias is None else y + bias

    def contest(
        self, rivals: Mapping[str, Sequence[Any]], rounds: int, seconds: float
    ) -> dict[str, float]:
        tokens = rivals["dense"][0]().shape[0]
        assert {len(calls) for calls in rivals.values()} == {3}
        self.contests.append((tokens, list(rivals)))
        return {name: self.ms_at.get((name, tokens), self.ms[name]) for name in rivals}

    def measure(self) -> _tune_cuda.Measured:
        dense = self.weight.to_dense()
        return _tune_cuda._measure_here(
            self.weight, dense, True, BUCKETS, self.table, runs_packed, 3
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    weight = SparseWeight.from_dense(pruned(64, 128), "2:4", layout="nm24_tiles")
    return FakeGpu(monkeypatch, weight)


def test_the_fastest_right_row_wins_every_bucket(gpu: FakeGpu) -> None:
    found = gpu.measure()
    assert found.rows == ["b"] * len(BUCKETS)
    assert found.times == [[2.0, 5.0]] * sum(map(len, BUCKETS))
    assert found.left_out == []
    assert [tokens for tokens, _ in gpu.contests] == [n for counts in BUCKETS for n in counts]
    assert {tuple(names) for _, names in gpu.contests} == {("dense", "a", "b", "c")}


def test_buckets_that_share_a_row_try_few(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_tune_cuda, "MOST_SHARED", 1)
    gpu.measure()
    # The dense layer, what the cost model takes, and one more.
    assert {len(names) for _, names in gpu.contests} <= {2, 3}


def test_a_row_with_a_wrong_product_is_not_timed_and_named(gpu: FakeGpu) -> None:
    gpu.wrong = {("b", 8), ("b", 512)}
    found = gpu.measure()
    assert found.rows == ["c", *["b"] * 6, "c", "c", *["b"] * 5]
    assert found.times[:3] == [[2.5, 5.0]] * 2 + [[2.0, 5.0]]
    assert len(found.left_out) == 2
    assert found.left_out[0].startswith("b is left out: its product of 8 tokens is off by ")
    assert dict(gpu.contests)[8] == ["dense", "a", "c"]


def test_where_no_row_is_right_packed_never_wins(gpu: FakeGpu) -> None:
    gpu.wrong = {(name, 1) for name in "abc"}
    found = gpu.measure()
    assert found.rows[:2] == ["", "b"]
    assert found.times[:2] == [[math.inf, 5.0]] * 2
    decided = decide(found.times, ["k"] * len(BUCKETS), "speed", 1).dense_buckets
    assert decided == ["dense", "dense", "dense", None, None, None, None, None]


def test_buckets_of_a_part_get_one_row_and_its_times(gpu: FakeGpu) -> None:
    gpu.ms_at = {("b", tokens): 1.9 for tokens in (1, 161, 256)}
    gpu.ms_at |= {("b", tokens): 4.0 for tokens in (8, 129, 160)}
    found = gpu.measure()
    assert found.rows == ["c", "b", "b", "b", "b", "c", "c", *["b"] * 7]
    assert found.times[:2] == [[2.5, 5.0]] * 2
    assert found.times[10:14] == [[2.5, 5.0]] * 4


def test_what_a_row_loses_where_dense_runs_does_not_count(gpu: FakeGpu) -> None:
    # In the first quarter of 129 to 256 tokens every row loses to dense, b by more than c.
    losses = {"a": 8.0, "b": 9.0, "c": 6.0}
    gpu.ms_at = {(name, n): ms for name, ms in losses.items() for n in (129, 160)}
    found = gpu.measure()
    assert found.rows[5:7] == ["b", "b"]
    assert found.times[10:14] == [[9.0, 5.0]] * 2 + [[2.0, 5.0]] * 2
    # Where the rest of the part loses too, all of it runs dense with that row.
    gpu.ms_at |= {("b", 256): 9.0}
    assert gpu.measure().rows[5:7] == ["c", "c"]


def test_where_the_model_is_right_about_the_best_row_nothing_is_fixed(gpu: FakeGpu) -> None:
    gpu.ms["a"] = 2.0
    found = gpu.measure()
    assert found.rows == [""] * len(BUCKETS)
    assert found.times == [[2.0, 5.0]] * len(found.times)


def test_the_bits_of_a_weight_that_runs_dense_somewhere_do_not_reach_the_contest(
    gpu: FakeGpu,
) -> None:
    rows = table(**gpu.seconds)
    planned = gpu.weight._facts._replace(
        plan=_layout_argument.plan_bits([15, 4]), dense_buckets=255
    )
    weight = SparseWeight(gpu.weight.packed, planned)
    argument = _tune_cuda._forced(weight, rows, 20, "c")
    ends = (*_layout_argument.PART_ENDS, 4096)
    assert [_layout_argument.code_at(argument, n) for n in ends] == [0, 0, 3, *[0] * 7]


def test_settings_of_torch_are_as_they_were() -> None:
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction

    def fail() -> None:
        with _tune_cuda._full_precision_sums():
            assert not settings.allow_bf16_reduced_precision_reduction
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert settings.allow_bf16_reduced_precision_reduction == before
