# SPDX-License-Identifier: BSD-3-Clause
"""The operators of torch.ops.gossamer: values, shapes, gradients, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from gossamer import _ops
from gossamer._activation import Activation

ops = torch.ops.gossamer
EPS = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}


def sparse_matrix(*shape: int, dtype: torch.dtype = torch.float32, keep: float = 0.2) -> Tensor:
    return torch.randn(*shape, dtype=dtype) * (torch.rand(*shape) < keep)


def packed_linear(x: Tensor, packed: Tensor, **kwargs: object) -> Tensor:
    info = _ops.info(packed)
    return ops.linear(x, packed, info["layout_code"], info["out"], **kwargs)


def assert_linear(y: Tensor, x: Tensor, w: Tensor, *added: Tensor) -> None:
    """Any summation order errs by (K + terms)·eps·(sum |x||w| + |added|) (Higham 2002, eq. 3.5)."""
    exact = x.double() @ w.double().mT
    bound = x.double().abs() @ w.double().abs().mT
    for term in added:
        exact = exact + term.double()
        bound = bound + term.double().abs()
    bound = (w.shape[-1] + 1 + len(added)) * EPS[y.dtype] * bound
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= bound).all())


LAYOUTS = ["bitmask", "kcsr64", "kcsr128", "kcsr256", "rowpairs64", "rowpairs128"]
SHAPES = [(1, 1), (7, 13), (16, 16), (33, 130), (64, 257), (128, 96)]
X_SHAPES = [(), (1,), (5,), (0,), (2, 3), (2, 0), (2, 1, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("out", "inputs"), SHAPES)
def test_linear_equals_dense(layout: str, out: int, inputs: int) -> None:
    w = sparse_matrix(out, inputs)
    packed = ops.pack(w, None, "unstructured:0", layout, False, "w")
    bias = torch.randn(out)
    for lead in X_SHAPES:
        x = torch.randn(*lead, inputs)
        y = packed_linear(x, packed)
        assert y.is_contiguous()
        assert_linear(y, x, w)
        assert_linear(packed_linear(x, packed, bias=bias), x, w, bias)
        residual = torch.randn(*lead, out)
        y = packed_linear(x, packed, bias=bias, residual=residual)
        assert_linear(y, x, w, bias, residual)
        relu = packed_linear(x, packed, bias=bias, residual=residual, activation=1)
        assert torch.equal(relu, y.relu())


@pytest.mark.parametrize("pattern", ["2:4", "block:4x4:0.5", "fanin:0.75", "unstructured:0.5"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_format_computes(pattern: str, dtype: torch.dtype) -> None:
    w = torch.randn(24, 40, dtype=dtype)
    w = w * ops.magnitude_mask(w, pattern, "tensor")
    packed = ops.pack(w, None, pattern, "format", False, "w")
    x = torch.randn(9, 40, dtype=dtype)
    assert_linear(packed_linear(x, packed), x, w)


def test_empty_weights() -> None:
    for out, inputs in ((0, 8), (8, 0)):
        packed = ops.pack(torch.zeros(out, inputs), None, "unstructured:0", "bitmask", False, "w")
        y = packed_linear(torch.randn(3, inputs), packed, bias=torch.ones(out))
        assert torch.equal(y, torch.ones(3, out))


def test_strided_inputs_equal_contiguous_ones() -> None:
    w = sparse_matrix(24, 40)
    packed = ops.pack(w, None, "unstructured:0", "kcsr64", False, "w")
    wide = torch.randn(6, 4, 100)
    views = [
        wide[:, :, 10:50],  # rows with a stride
        wide[::2, 1:3, 10:50],  # leading dimensions that are no single stride
        torch.randn(40, 6).T,  # columns with a stride
        torch.randn(1, 40).expand(5, 40),  # stride 0
        torch.randn(6, 1, 40)[::3],
    ]
    for x in views:
        assert torch.equal(packed_linear(x, packed), packed_linear(x.contiguous(), packed))
    x = torch.randn(5, 40)
    residual, bias = torch.randn(24, 5).T, torch.randn(48)[::2]
    assert torch.equal(
        packed_linear(x, packed, bias=bias, residual=residual),
        packed_linear(x, packed, bias=bias.contiguous(), residual=residual.contiguous()),
    )


def test_stacks() -> None:
    w = sparse_matrix(3, 16, 24)
    packed = ops.pack(w, None, "unstructured:0", "bitmask", False, "w")
    x, bias = torch.randn(3, 5, 24), torch.randn(3, 16)
    assert_linear(packed_linear(x, packed, bias=bias), x, w, bias[:, None])
    with pytest.raises(ValueError, match=r"stack of 3"):
        packed_linear(torch.randn(5, 24), packed)


def test_planned_dense_runs_the_dense_copy() -> None:
    w = sparse_matrix(16, 24)
    packed = ops.pack(w, None, "unstructured:0", "bitmask", False, "w")
    planned = ops.with_plan(packed, json.dumps(["dense"] * 8))
    other = torch.randn(16, 24)  # not the same values, so that it shows which one ran
    x, bias, residual = torch.randn(4, 24), torch.randn(16), torch.randn(4, 16)
    y = packed_linear(x, planned, bias=bias, residual=residual, activation=1, dense=other)
    expected = torch.relu(torch.nn.functional.linear(x, other, bias) + residual)
    assert torch.equal(y, expected)
    assert_linear(packed_linear(x, planned), x, w)  # nothing dense to run: the sparse row
    assert_linear(packed_linear(x, packed, dense=other), x, w)  # not planned: the sparse row


def test_pack_and_unpack() -> None:
    w = sparse_matrix(10, 21)
    mask = w != 0
    mask[0] = True  # kept zeros stay kept
    for layout in ("format", *LAYOUTS):
        packed = ops.pack(w, mask, "unstructured:0", layout, False, "w")
        assert torch.equal(ops.unpack(packed, [10, 21], torch.float32), w)
        assert torch.equal(ops.unpack_mask(packed, [10, 21]), mask)
        ops.validate(packed)
        back = ops.convert(packed, "format")
        assert _ops.info(back)["layout"] == "bitmask"
        assert torch.equal(ops.unpack(back, [10, 21], torch.float32), w)
        parts = [ops.slice_rows(packed, 0, 4), ops.slice_rows(packed, 4, 10)]
        assert torch.equal(ops.concat_rows(parts), packed)


def test_packing_takes_any_strides() -> None:
    w = sparse_matrix(21, 10)
    packed = ops.pack(w.T, None, "", "format", True, "w")
    assert torch.equal(ops.unpack(packed, [10, 21], torch.float32), w.T)
    assert _ops.info(packed)["transposed"] is True


@pytest.mark.parametrize("pattern", ["2:4", "block:4x4:0.5", "fanin:0.75", "unstructured:0.5"])
def test_format_arrays_round_trip(pattern: str) -> None:
    w = torch.randn(8, 16)
    w = w * ops.magnitude_mask(w, pattern, "tensor")
    packed = ops.pack(w, None, pattern, "format", False, "w")
    info = _ops.info(packed)
    arrays = ops.format_arrays(packed)
    for array, form in zip(arrays, info["arrays"], strict=True):
        assert list(array.shape) == form["shape"]
        assert str(array.dtype) == f"torch.{form['dtype']}"
    assert torch.equal(ops.from_format_arrays(json.dumps(info), arrays), packed)
    with pytest.raises(ValueError, match="arrays"):
        ops.from_format_arrays(json.dumps(info), arrays[:-1])
    with pytest.raises(ValueError, match="JSON"):
        ops.from_format_arrays("{", arrays)


def test_misaligned_bytes_are_used() -> None:
    """A memory-mapped checkpoint puts tensors where it likes."""
    w = sparse_matrix(8, 16)
    packed = ops.pack(w, None, "", "bitmask", False, "w")
    shifted = torch.empty(packed.numel() + 1, dtype=torch.uint8)[1:]
    shifted.copy_(packed)
    assert shifted.data_ptr() % 64 != 0
    x = torch.randn(3, 16)
    assert torch.equal(packed_linear(x, shifted), packed_linear(x, packed))


def test_masks() -> None:
    scores = [torch.randn(8, 8), torch.randn(4, 16)]
    masks = ops.select_masks(scores, "unstructured:0.5", "global")
    assert sum(int(mask.sum()) for mask in masks) == 64
    values = torch.randn(8, 16)
    mask = ops.magnitude_mask(values, "2:4", "tensor")
    assert torch.equal(mask.view(8, 4, 4).sum(-1), torch.full((8, 4), 2))
    assert ops.find_violation(values * mask, "2:4") == ""
    assert "row 0" in ops.find_violation(values, "2:4")
    assert ops.infer_pattern(values * mask) == "2:4"
    assert ops.count_nonzeros(values * mask) == 64
    assert json.loads(ops.parse_pattern("2:4"))["m"] == 4


def test_plan_and_tables() -> None:
    w = sparse_matrix(64, 64, keep=0.05)
    packed = ops.pack(w, None, "", "format", False, "w")
    planned, text = ops.plan(packed, w, True, 0, "model", "default", "", "off")
    plan = json.loads(text)
    assert len(plan["choices"]) == len(plan["bucket_ends"]) + 1
    if plan["sparse"]:
        assert _ops.info(planned)["layout"] == plan["layout"]
    else:
        assert planned.shape == (0,)
    again = ops.plan(packed, w, True, 0, "model", "default", "", "off")[1]
    assert again == text
    names = {row["name"] for row in json.loads(ops.kernel_table())}
    assert {choice["kernel"] for choice in plan["choices"]} <= names | {"dense", ""}
    assert json.loads(ops.machine_info())["threads"] == torch.get_num_threads()


def test_measured_plan_of_a_forced_kernel_is_stored() -> None:
    w = sparse_matrix(64, 64, keep=0.05)
    packed = ops.pack(w, None, "", "format", False, "w")
    table = json.loads(ops.kernel_table())
    kernel = next(
        row["name"]
        for row in table
        if row["operation"] == "linear"
        and row["layout"] == "kcsr64"
        and row["runs_here"]
        and row["weight_dtype"] == "float32"
    )
    planned, text = ops.plan(packed, w, True, 1, "measure", "default", kernel, "off")
    assert json.loads(text)["sparse"]
    assert set(_ops.info(planned)["plan"]) == {kernel}
    x = torch.randn(5, 64)
    assert_linear(packed_linear(x, planned), x, w)


REFUSALS = [
    (dict(x=torch.zeros(2, 23)), r"x has shape \[2, 23\].*\[\.\.\., 24\]"),
    (dict(x=torch.zeros(())), r"x has shape \[\]"),
    (dict(x=torch.zeros(2, 24, dtype=torch.float64)), r"x is float64.*float32.*\.to\("),
    (dict(x=torch.zeros(2, 24, dtype=torch.complex64)), r"dtype"),
    (dict(bias=torch.zeros(15)), r"bias has shape \[15\]"),
    (dict(bias=torch.zeros(16, dtype=torch.float64)), r"bias is float64"),
    (dict(residual=torch.zeros(1, 16)), r"residual has shape \[1, 16\].*\[2, 16\]"),
    (dict(activation=9), r"activation 9"),
    (
        dict(scale=torch.ones(16)),
        r"scale is given, and the packed weight is a batch of 1 in float32",
    ),
    (dict(dense=torch.zeros(24, 16)), r"dense has shape \[24, 16\]"),
    (dict(out=15), r"out 15"),
    (dict(layout=16), r"layout 16"),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_linear_refuses(change: dict[str, object], message: str) -> None:
    packed = ops.pack(sparse_matrix(16, 24), None, "unstructured:0", "bitmask", False, "w")
    call = dict(x=torch.zeros(2, 24), packed=packed, layout=2, out=16) | change
    with pytest.raises(ValueError, match=message):
        ops.linear(**call)


def test_bytes_that_are_no_weight_are_refused() -> None:
    packed = ops.pack(sparse_matrix(16, 24), None, "", "bitmask", False, "w")
    broken = packed.clone()
    broken[0] = 0
    short = (packed[:-64].clone(), packed[:10].clone())
    for bad in (*short, broken, packed.view(torch.int8), packed[None]):
        with pytest.raises(ValueError, match="packed"):
            ops.linear(torch.zeros(2, 24), bad, 2, 16)


def test_violations_name_the_place() -> None:
    w = torch.zeros(4, 8)
    w[2, 4:7] = 1
    with pytest.raises(ValueError, match=r"'blk\.fc' row 2, columns 4–7: 3 non-zeros, 2:4"):
        ops.pack(w, None, "2:4", "format", False, "blk.fc")
    with pytest.raises(ValueError, match="bool"):
        ops.pack(w, w, "2:4", "format", False, "w")
    with pytest.raises(ValueError, match="layout 'csr'"):
        ops.pack(w, None, "", "csr", False, "w")
    with pytest.raises(ValueError, match="shape"):
        ops.pack(torch.zeros(8), None, "", "format", False, "w")


# --- What torch asks of an operator ---------------------------------------------------------------

DATA_DEPENDENT = ("test_schema", "test_autograd_registration")


def linear_cases() -> list[tuple[tuple[object, ...], dict[str, object]]]:
    cases: list[tuple[tuple[object, ...], dict[str, object]]] = []
    weights = ((7, 13, "kcsr64", 16), (16, 32, "bitmask", 2), (0, 8, "bitmask", 2))
    for out, inputs, layout, code in weights:
        torch.manual_seed(out)
        packed = ops.pack(sparse_matrix(out, inputs), None, "unstructured:0", layout, False, "w")
        bias = torch.randn(out)
        for x in (
            torch.randn(4, inputs),
            torch.randn(inputs),
            torch.randn(2, 3, inputs),
            torch.randn(0, inputs),
            torch.randn(inputs, 5).T,
            torch.randn(4, 2 * inputs)[:, ::2],
        ):
            residual = torch.randn(*x.shape[:-1], out)
            cases.append(((x, packed, code, out), {}))
            for activation in (Activation.RELU, Activation.GELU):
                options = dict(bias=bias, activation=int(activation), residual=residual)
                cases.append(((x, packed, code, out), options))
    return cases


@pytest.mark.parametrize("case", range(len(linear_cases())))
def test_opcheck_linear(case: int) -> None:
    args, kwargs = linear_cases()[case]
    opcheck(ops.linear.default, args, kwargs)
    x, packed, code, out = args
    assert isinstance(x, Tensor)
    opcheck(ops.linear_plain.default, (x, packed, code, out, kwargs.get("bias")))
    opcheck(ops.linear_autograd.default, (x.clone().requires_grad_(), packed, code, out), kwargs)
    grad = torch.randn(*x.shape[:-1], out)
    opcheck(ops.linear_dx.default, (grad.requires_grad_(), packed, code, x.shape[-1]))


def test_opcheck_the_rest() -> None:
    w = sparse_matrix(8, 16)
    packed = ops.pack(w, None, "unstructured:0", "bitmask", False, "w")
    info = json.dumps(_ops.info(packed))
    arrays = ops.format_arrays(packed)
    for values in (w, sparse_matrix(16, 8).T, torch.zeros(0, 8), torch.zeros(7, 5)):
        opcheck(ops.pack.default, (values, None, "unstructured:0", "bitmask", False, "w"))
        opcheck(ops.magnitude_mask.default, (values, "unstructured:0.5", "tensor"))
        opcheck(ops.select_masks.default, ([values, values], "unstructured:0.5", "global"))
        opcheck(ops.infer_pattern.default, (values,), test_utils=DATA_DEPENDENT)
        opcheck(ops.find_violation.default, (values, "2:4"), test_utils=DATA_DEPENDENT)
        opcheck(ops.count_nonzeros.default, (values,), test_utils=DATA_DEPENDENT)
    opcheck(ops.unpack.default, (packed, [8, 16], torch.float32))
    opcheck(ops.unpack_mask.default, (packed, [8, 16]))
    opcheck(ops.convert.default, (packed, "kcsr64"))
    opcheck(ops.slice_rows.default, (packed, 2, 5))
    opcheck(ops.concat_rows.default, ([packed, packed],))
    opcheck(ops.validate.default, (packed,))
    opcheck(ops.with_plan.default, (packed, json.dumps([None] * 8)))
    opcheck(ops.from_format_arrays.default, (info, arrays))
    opcheck(ops.info.default, (packed,), test_utils=DATA_DEPENDENT)
    opcheck(ops.format_arrays.default, (packed,), test_utils=DATA_DEPENDENT)
    plan = (packed, w, False, 0, "model", "default", "", "off")
    opcheck(ops.plan.default, plan, test_utils=DATA_DEPENDENT)


def test_every_operator_is_checked_here() -> None:
    """A new operator has to be given to opcheck in some test."""
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    everything = torch._C._dispatch_get_all_op_names()
    names = {name for name in everything if name.startswith("gossamer::")}
    without_tensors = {"parse_pattern", "machine_info", "kernel_table", "cuda_device_info"}
    for name in sorted(names):
        short = name.removeprefix("gossamer::").split(".")[0]
        assert short in without_tensors or f"check(ops.{short}.default" in sources, short


# --- Gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("keeps_dense", [False, True])
def test_gradcheck(activation: int, keeps_dense: bool) -> None:
    w = sparse_matrix(6, 9, dtype=torch.float64, keep=0.5)
    packed = ops.pack(w, None, "unstructured:0", "bitmask", False, "w")
    dense = w if keeps_dense else None
    tensors = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((2, 3, 9), (6,), (2, 3, 6))
    ]

    def call(x: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return ops.linear_autograd(x, packed, 2, 6, None, bias, int(activation), residual, dense)

    assert torch.autograd.gradcheck(call, tensors)
    if activation == 0:
        assert torch.autograd.gradgradcheck(call, tensors)


def test_gradcheck_of_a_stack() -> None:
    w = sparse_matrix(3, 4, 5, dtype=torch.float64, keep=0.5)
    packed = ops.pack(w, None, "unstructured:0", "bitmask", False, "w")
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, bias: ops.linear_autograd(x, packed, 2, 4, None, bias), (x, bias)
    )


def test_the_dense_copy_has_no_gradient() -> None:
    w = sparse_matrix(6, 9)
    packed = ops.pack(w, None, "unstructured:0", "bitmask", False, "w")
    y = ops.linear_autograd(torch.randn(2, 9), packed, 2, 6, dense=w.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="desparsify_"):
        y.sum().backward()
