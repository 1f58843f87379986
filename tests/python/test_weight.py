# SPDX-License-Identifier: BSD-3-Clause
"""SparseWeight in the place of a parameter: products, copies, files, refusals."""

from __future__ import annotations

import copy
import io
import json
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.weight import SparseWeight, linear

LAYOUTS = ["format", "kcsr128"]


def sparse_matrix(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, dtype=dtype) * (torch.rand(*shape) < 0.2)


def packed_layer(
    inputs: int = 40, out: int = 24, layout: str = "kcsr128"
) -> tuple[nn.Linear, Tensor]:
    layer = nn.Linear(inputs, out)
    w = sparse_matrix(out, inputs)
    layer.weight = nn.Parameter(SparseWeight.from_dense(w, layout=layout), requires_grad=False)
    return layer, w


def assert_product(y: Tensor, a: Tensor, b: Tensor) -> None:
    """Any summation order is within K·eps·(|A|·|B|) of the exact product (Higham 2002, eq. 3.5)."""
    bound = (a.shape[-1] + 2) * 2.0**-23 * (a.double().abs() @ b.double().abs())
    assert bool(((y.double() - a.double() @ b.double()).abs() <= bound).all())


def test_it_looks_like_the_parameter() -> None:
    w = sparse_matrix(24, 40)
    weight = SparseWeight.from_dense(w, "unstructured:0.5", layout="kcsr128")
    assert weight.shape == w.shape
    assert weight.numel() == w.numel()
    assert weight.element_size() == 4
    assert weight.dtype is torch.float32
    assert weight.layout is torch.strided
    assert weight.device.type == "cpu"
    assert weight.is_contiguous()
    assert not weight.requires_grad
    assert weight.pattern == "unstructured:0.5"
    assert weight.layout_name == "kcsr128"
    assert weight.density == pytest.approx(int((w != 0).sum()) / w.numel())
    assert weight.packed_bytes == weight.packed.numel()
    assert (weight.out_features, weight.in_features) == (24, 40)
    assert weight.plan == [""] * 8
    text = repr(weight)
    assert text.startswith("SparseWeight([24, 40], float32, unstructured:0.5, ")
    assert "% kept, kcsr128, 0.00 MB)" in text
    assert torch.equal(weight.to_dense(), w)
    assert torch.equal(weight.mask(), w != 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products(layout: str) -> None:
    w = sparse_matrix(24, 40)
    weight = SparseWeight.from_dense(w, layout=layout)
    x, g, b = torch.randn(5, 40), torch.randn(5, 24), torch.randn(24)
    for lead in ((), (5,), (2, 3), (2, 3, 4), (0,)):
        xs = torch.randn(*lead, 40)
        assert_product(F.linear(xs, weight), xs, w.T)
        assert F.linear(xs, weight, b).shape == (*lead, 24)
    assert torch.equal(F.linear(x, weight=weight, bias=b), F.linear(x, weight, b))
    for y in (x @ weight.t(), torch.matmul(x, weight.T), torch.mm(x, weight.mT)):
        assert_product(y, x, w.T)
    assert_product(x @ weight.transpose(0, 1), x, w.T)
    for y in (g @ weight, F.linear(g, weight.t())):
        assert_product(y, g, w)
    assert_product(weight @ x.T, w, x.T)
    assert_product(weight @ x[0], w, x[0])
    assert_product(weight.t() @ g.T, w.T, g.T)
    y = torch.addmm(b, x, weight.t(), beta=2, alpha=3)
    assert torch.allclose(y, 3 * (x @ w.T) + 2 * b, atol=1e-4)
    residual = torch.randn(5, 24)
    y = linear(x, weight, b, activation="relu", residual=residual)
    assert torch.equal(y, torch.relu(linear(x, weight, b, residual=residual)))
    for name, act in (
        ("gelu", F.gelu),
        ("gelu_tanh", lambda y: F.gelu(y, approximate="tanh")),
        ("silu", F.silu),
        ("relu2", lambda y: F.relu(y).square()),
    ):
        y = linear(x, weight, b, activation=name, residual=residual)
        torch.testing.assert_close(y, act(linear(x, weight, b, residual=residual)))
    with pytest.raises(ValueError, match="activation 'mish'"):
        linear(x, weight, activation="mish")


def test_a_transposed_weight_is_the_conv1d_of_gpt2() -> None:
    w = sparse_matrix(40, 24)
    weight = SparseWeight.from_dense(w, layout="kcsr128", transposed=True)
    assert weight.shape == (40, 24)
    assert (weight.out_features, weight.in_features) == (24, 40)
    assert torch.equal(weight.to_dense(), w)
    assert torch.equal(weight.mask(), w != 0)
    x, b = torch.randn(5, 40), torch.randn(24)
    assert_product(torch.addmm(torch.zeros(24), x, weight), x, w)
    assert torch.equal(torch.addmm(b, x, weight), F.linear(x, weight.t(), b))
    assert_product(x @ weight, x, w)
    again = SparseWeight.from_packed(weight.packed)
    assert again.transposed
    assert torch.equal(again.to_dense(), w)


def test_a_stack_is_multiplied_batchwise() -> None:
    w = sparse_matrix(3, 16, 24)
    weight = SparseWeight.from_dense(w)
    x = torch.randn(3, 5, 24)
    assert weight.shape == (3, 16, 24)
    assert_product(torch.bmm(x, weight.mT), x, w.mT)
    assert_product(x @ weight.transpose(-1, -2), x, w.mT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_grad_mode(mode: type) -> None:
    layer, w = packed_layer()
    x = torch.randn(5, 40)
    with mode():
        assert torch.allclose(layer(x), F.linear(x, w, layer.bias), atol=1e-5)
        below = weight_below_torch_function(x, layer.weight)
        assert_product(below, x, w.T)


def weight_below_torch_function(x: Tensor, weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return F.linear(x, weight)


def test_gradients_of_input_and_bias() -> None:
    layer, w = packed_layer()
    x = torch.randn(2, 5, 40, requires_grad=True)
    g = torch.randn(2, 5, 24)
    layer(x).backward(g)
    assert x.grad is not None
    assert_product(x.grad, g, w)
    assert torch.allclose(layer.bias.grad, g.sum((0, 1)), atol=1e-5)
    assert layer.weight.grad is None


def test_gradient_through_squared_relu() -> None:
    w = sparse_matrix(24, 40)
    weight = SparseWeight.from_dense(w)
    x = torch.randn(5, 40, requires_grad=True)
    residual = torch.randn(5, 24, requires_grad=True)
    y = linear(x, weight, activation="relu2", residual=residual)
    g = torch.randn(5, 24)
    got = torch.autograd.grad(y, (x, residual), g)
    want = torch.autograd.grad(F.relu(F.linear(x, w) + residual).square(), (x, residual), g)
    torch.testing.assert_close(got, want)


def test_another_output_dtype_is_a_gpus() -> None:
    weight = SparseWeight.from_dense(sparse_matrix(24, 40))
    x = torch.randn(5, 40)
    assert torch.equal(linear(x, weight, output_dtype=torch.float32), linear(x, weight))
    with pytest.raises(
        ValueError, match=r"output_dtype torch\.bfloat16 of x torch\.float32 on cpu"
    ):
        linear(x, weight, output_dtype=torch.bfloat16)


def test_the_weight_itself_has_no_gradient() -> None:
    layer, w = packed_layer()
    for refused in (
        lambda: layer.weight.requires_grad_(),
        lambda: layer.weight.requires_grad_(True),
        lambda: setattr(layer.weight, "requires_grad", True),
        lambda: layer.requires_grad_(True),
        lambda: nn.Parameter(SparseWeight.from_dense(w)),
    ):
        with pytest.raises(RuntimeError, match=r"desparsify_.*sparsifier"):
            refused()
    assert layer.weight.requires_grad_(False) is layer.weight
    layer.weight.requires_grad = False


def test_as_a_parameter() -> None:
    layer, _ = packed_layer()
    assert isinstance(layer.weight, nn.Parameter)
    assert isinstance(layer.weight, SparseWeight)
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    tied = nn.Linear(40, 24)
    tied.weight = layer.weight
    assert len(list(nn.ModuleList([layer, tied]).parameters())) == 3


def test_copies_are_independent() -> None:
    layer, w = packed_layer()
    for other in (copy.deepcopy(layer), copy.copy(layer)):
        assert isinstance(other.weight, nn.Parameter)
        assert torch.equal(other.weight.to_dense(), w)
    clone = layer.weight.clone()
    assert clone.packed.data_ptr() != layer.weight.packed.data_ptr()
    detached = layer.weight.detach()
    assert isinstance(detached, SparseWeight)
    assert detached.packed is layer.weight.packed
    assert layer.weight.data.packed is layer.weight.packed
    pair = nn.ModuleList([layer, layer])
    twin = copy.deepcopy(pair)
    assert twin[0].weight is twin[1].weight


def test_copy_into_packed() -> None:
    layer, _ = packed_layer()
    planned = torch.ops.gossamer.with_plan(layer.weight.packed, json.dumps(["dense"] * 8))
    weight = SparseWeight.from_packed(planned, dense=layer.weight.to_dense())
    for source in (sparse_matrix(24, 40), torch.zeros(24, 40), torch.randn(24, 40)):
        for form in (source, SparseWeight.from_dense(source), source.double()):
            assert weight.copy_(form) is weight
            assert torch.equal(weight.to_dense(), source)
            assert weight.layout_name == "kcsr128"
            assert weight.plan == ["dense"] * 8
            assert weight.dense is not None
            assert torch.equal(weight.dense, source)
    with pytest.raises(ValueError, match=r"\[24, 40\].*\[40, 24\]"):
        weight.copy_(torch.zeros(40, 24))
    strict = SparseWeight.from_dense(torch.zeros(8, 16), "2:4")
    with pytest.raises(ValueError, match="2:4 allows 2"):
        strict.copy_(torch.ones(8, 16))
    assert torch.equal(strict.to_dense(), torch.zeros(8, 16))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("error", [ValueError, RuntimeError])
def test_only_a_pattern_that_the_layout_cannot_hold_changes_the_layout(
    packed: bool, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = SparseWeight.from_dense(torch.zeros(8, 16), "2:4", layout="nm24_pairs")
    other = SparseWeight.from_dense(sparse_matrix(8, 16))
    pairs.copy_(other)
    assert pairs.layout_name == "bitmask"
    assert torch.equal(pairs.to_dense(), other.to_dense())

    def broken(*args: object) -> None:
        raise error("the bytes are not a packed weight")

    blocked = SparseWeight.from_dense(torch.zeros(8, 16), layout="kcsr64")
    before = blocked.packed.clone()
    monkeypatch.setattr(torch.ops.gossamer, "convert", broken)
    with pytest.raises(error, match="the bytes are not a packed weight"):
        blocked.copy_(other if packed else other.to_dense())
    assert torch.equal(blocked.packed, before)


def test_state_dicts_in_every_direction() -> None:
    source, w = packed_layer()
    other = sparse_matrix(24, 40)
    into_packed, _ = packed_layer(layout="format")
    into_packed.load_state_dict(source.state_dict())
    assert torch.equal(into_packed.weight.to_dense(), w)
    assert into_packed.weight.layout_name == "bitmask"
    into_packed.load_state_dict({"weight": other, "bias": source.bias})
    assert torch.equal(into_packed.weight.to_dense(), other)
    plain = nn.Linear(40, 24)
    plain.load_state_dict(source.state_dict())
    assert type(plain.weight) is nn.Parameter
    assert torch.equal(plain.weight, w)
    assigned = nn.Linear(40, 24).requires_grad_(False)
    assigned.load_state_dict(source.state_dict(), assign=True)
    assert isinstance(assigned.weight, SparseWeight)
    # A trainable model, and one without values, take it too; it is frozen there.
    for device in ("cpu", "meta"):
        for state in (source.state_dict(), dict(source.named_parameters())):
            trainable = nn.Linear(40, 24, device=device)
            trainable.load_state_dict(state, assign=True)
            assert isinstance(trainable.weight, SparseWeight)
            assert torch.equal(trainable.weight.to_dense(), w)
            assert [p.requires_grad for p in trainable.parameters()] == [False, True]
    with pytest.raises(RuntimeError, match="size mismatch"):
        nn.Linear(41, 24).load_state_dict(source.state_dict())


@pytest.mark.parametrize("pattern", ["unstructured:0.5", "2:4", "block:4x4:0.5", "fanin:0.75"])
@pytest.mark.parametrize("transposed", [False, True])
def test_saved_and_loaded(pattern: str, transposed: bool) -> None:
    w = torch.randn(16, 32)
    mask = torch.ops.gossamer.magnitude_mask(w, pattern, "tensor")
    w = w * mask
    if transposed:
        w = w.T.contiguous()
    weight = SparseWeight.from_dense(w, pattern, transposed=transposed)
    if pattern.startswith("unstructured"):
        packed = torch.ops.gossamer.convert(weight.packed, "kcsr64")
        packed = torch.ops.gossamer.with_plan(packed, json.dumps(["dense", *[None] * 7]))
        weight = SparseWeight.from_packed(packed, dense=w.T if transposed else w)
    buffer = io.BytesIO()
    torch.save({"w": weight}, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True)["w"]
    assert isinstance(loaded, SparseWeight)
    assert torch.equal(loaded.to_dense(), w)
    assert torch.equal(loaded.packed, weight.packed)
    assert (loaded.dense is None) == (weight.dense is None)
    assert loaded.transposed == transposed
    assert loaded.plan == weight.plan


def test_a_pickle_from_when_2_to_8_tokens_were_one_bucket_is_read() -> None:
    w = sparse_matrix(24, 128)
    packed = torch.ops.gossamer.convert(SparseWeight.from_dense(w).packed, "kcsr128")
    one, other = "generic_spmm_kcsr128_f32", "avx2_spmm_kcsr128_f32_nv8"
    rebuild, state = SparseWeight.from_packed(packed).__reduce_ex__(2)
    old = [None, one, other, None, other, None, one]
    loaded = rebuild(*state[:3], json.dumps(old), *state[4:])
    assert loaded.plan == [name or "" for name in [None, one, one, other, None, other, None, one]]


def test_a_shared_weight_is_written_once() -> None:
    w = sparse_matrix(128, 256)
    model = nn.ModuleDict({name: nn.Linear(256, 128) for name in ("a", "b", "c")})
    shared = nn.Parameter(SparseWeight.from_dense(w), requires_grad=False)
    for name in ("a", "b"):
        model[name].weight = shared
    model["c"].weight = nn.Parameter(SparseWeight.from_dense(2 * w), requires_grad=False)
    sizes = {}
    for names in ("a", "ab", "ac"):
        buffer = io.BytesIO()
        state = {f"{name}.weight": model.state_dict()[f"{name}.weight"] for name in names}
        torch.save(state, buffer)
        sizes[names] = buffer.tell()
        buffer.seek(0)
        for name, value in torch.load(buffer, weights_only=True).items():
            assert torch.equal(value.to_dense(), w if name < "c" else 2 * w), name
    # A second name costs the entries of the archive and no values.
    own = shared.packed_bytes
    assert sizes["ab"] - sizes["a"] < 0.1 * own
    assert sizes["ac"] - sizes["a"] > 0.9 * own


def test_a_weight_that_changed_is_not_taken_for_the_one_that_was_written() -> None:
    w = sparse_matrix(16, 32)
    weight = SparseWeight.from_dense(w)
    _, (_, arrays, *_) = weight.__reduce_ex__(2)
    torch.ops.gossamer.pack_(weight.packed, 3 * w, None)
    rebuild, state = weight.__reduce_ex__(2)
    assert torch.equal(rebuild(*state).to_dense(), 3 * w)
    assert arrays is not state[1]


def test_a_whole_module_is_pickled() -> None:
    layer, w = packed_layer()
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert isinstance(loaded.weight, nn.Parameter)
    assert torch.equal(loaded.weight.to_dense(), w)


def test_a_tampered_file_is_refused() -> None:
    rebuild, state = SparseWeight.from_dense(sparse_matrix(8, 16)).__reduce_ex__(2)
    info, arrays, *rest = state
    names = [form["name"] for form in json.loads(info)["arrays"]]
    offsets = arrays[names.index("row_offsets")].clone()
    offsets[-1] += 1000
    broken = list(arrays)
    broken[names.index("row_offsets")] = offsets
    with pytest.raises(ValueError, match=r".+"):
        rebuild(info, broken, *rest)
    with pytest.raises(ValueError, match="layout"):
        rebuild(info, arrays, "no such layout", *rest[1:])


def test_casts_keep_the_mask() -> None:
    layer, w = packed_layer()
    layer.double()
    assert layer.weight.dtype is torch.float64
    assert torch.equal(layer.weight.to_dense(), w.double())
    assert torch.equal(layer.weight.mask(), w != 0)
    x = torch.randn(3, 40, dtype=torch.float64)
    assert torch.allclose(layer(x), F.linear(x, w.double(), layer.bias))
    layer.float()
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight.to_dense(), w)
    tiny = SparseWeight.from_dense(torch.full((4, 8), 1e-20), "unstructured:0")
    assert bool(tiny.half().mask().all())
    assert layer.to("cpu") is layer
    with pytest.raises(ValueError, match="complex64"):
        layer.weight.to(torch.complex64)
    with pytest.raises(NotImplementedError, match=r"meta.*desparsify_"):
        layer.weight.to("meta")


def test_unsupported_operations_say_so() -> None:
    weight = packed_layer()[0].weight
    for name, call in {
        "aten.add": lambda: weight + 1,
        "aten.abs": lambda: weight.abs(),
        "aten.select": lambda: weight[0],
        "aten.sum": lambda: weight.sum(),
        "aten.mul_": lambda: weight.mul_(2),
    }.items():
        with pytest.raises(NotImplementedError, match=rf"{name}.*to_dense\(\)"):
            call()
    with pytest.raises(NotImplementedError, match="viewed"):
        weight.view(-1)
    with pytest.raises(NotImplementedError, match="two packed"):
        weight @ weight.t()
    with pytest.raises(NotImplementedError, match="SparseWeight too"):
        F.linear(weight, weight)
    with pytest.raises(RuntimeError, match="copy_"):
        weight.data = torch.zeros(24, 40)
    assert type(torch.zeros_like(weight)) is Tensor


def test_autocast_keeps_the_weight_and_casts_the_rest() -> None:
    layer, _ = packed_layer()
    x = torch.randn(5, 40)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        z = layer(x.bfloat16())
    assert y.dtype is z.dtype is torch.bfloat16
    assert torch.equal(y, layer(x).bfloat16())
    assert torch.equal(z, layer(x.bfloat16().float()).bfloat16())


def test_functional_call_takes_another_weight() -> None:
    layer, _ = packed_layer()
    other = sparse_matrix(24, 40)
    x = torch.randn(5, 40)
    swapped = {"weight": SparseWeight.from_dense(other), "bias": layer.bias}
    y = torch.func.functional_call(layer, swapped, (x,))
    assert torch.allclose(y, F.linear(x, other, layer.bias), atol=1e-5)


def test_thread_counts_and_threads_agree() -> None:
    layer, _ = packed_layer(512, 512)
    layer.requires_grad_(False)
    x = torch.randn(64, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = layer(x)
        torch.set_num_threads(2)
        assert torch.allclose(layer(x), alone, atol=1e-4)
        results: list[Tensor | None] = [None] * 8

        def work(i: int) -> None:
            for _ in range(20):
                results[i] = layer(x)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for result in results:
            assert result is not None
            assert torch.allclose(result, alone, atol=1e-4)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_weight_is_named() -> None:
    with pytest.raises(TypeError, match=r"weight is a list: .*torch\.as_tensor"):
        SparseWeight.from_dense([[1.0, 0.0]])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dtype int64 holds no weights; .* convert the values"):
        SparseWeight.from_dense(torch.eye(4, dtype=torch.int64))
