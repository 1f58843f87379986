# SPDX-License-Identifier: BSD-3-Clause
"""What stands between a model and a GPU: each thing has its sentence, and the CPU is unharmed."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gossamer as gs
from gossamer import _cuda_device, _ops_cuda, _packing, _plan_cuda, _weight_dispatch
from gossamer.weight import SparseWeight

CUDA = torch.device("cuda", 0)
gpu = pytest.mark.gpu
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def values(dtype: torch.dtype = torch.bfloat16) -> Tensor:
    w = torch.randn(64, 128, dtype=dtype)
    w.view(64, 32, 4)[..., ::2] = 0
    return w


class Machine:
    """What torch says of a machine's GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.has_kernels(None)
        self.sees(True)
        self.capability(9, 0)

    def sees(
        self, available: bool, error: Exception | None = None, cuda: str | None = "13"
    ) -> None:
        def init() -> None:
            if error is not None:
                raise error

        self.patch.setattr(torch.cuda, "is_available", lambda: available)
        self.patch.setattr(torch.cuda, "init", init)
        self.patch.setattr(torch.version, "cuda", cuda)

    def has_kernels(self, why: str | None) -> None:
        for module in (_weight_dispatch, _plan_cuda):
            self.patch.setattr(module, "no_kernels", lambda: why)

    def capability(self, *numbers: int) -> None:
        self.patch.setattr(torch.cuda, "get_device_capability", lambda device: numbers)
        self.patch.setattr(torch.cuda, "get_device_name", lambda device: "Fake")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver.\nmore"
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.sees(False, cuda=None), r"torch \S+ was built without CUDA; install a build"),
        (lambda m: m.sees(False, RuntimeError("Found no NVIDIA driver on your system.")),
         r"no CUDA device can be used: Found no NVIDIA driver on your system"),
        (lambda m: m.sees(False, RuntimeError(OLD)),
         r"no CUDA device can be used: The NVIDIA driver on your system is too old \(found"),
        (lambda m: m.sees(False), r"torch sees no CUDA device; look at CUDA_VISIBLE_DEVICES"),
        (lambda m: m.has_kernels("gossamer's CUDA kernels (_C_cuda.so) do not load: x"),
         r"CUDA kernels \(_C_cuda.so\) do not load: x"),
        (lambda m: m.capability(7, 5),
         r"Fake \(compute capability 7.5\) has no sparse tensor cores"),
        (lambda m: m.capability(10, 0),
         r"no kernel multiplies 2:4 weights on Fake \(compute capability 10.0\); kernels are for"),
    ],
)  # fmt: skip
def test_a_packed_weight_that_cannot_be_moved_says_why_and_stays_usable(
    change: Callable[[Machine], None], sentence: str, machine: Machine
) -> None:
    weight = SparseWeight.from_dense(values(), "2:4")
    layer = nn.Linear(128, 64, bias=False, dtype=torch.bfloat16)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    x = torch.randn(3, 128).bfloat16()
    y = layer(x)
    change(machine)
    # What torch itself asks of a GPU would come first where there is none.
    sees = torch.cuda.is_available()
    ways = [lambda: _weight_dispatch._moved(weight, CUDA)]
    ways += [] if sees else [lambda: layer.to("cuda"), layer.cuda, lambda: weight.to(device=CUDA)]
    for move in ways:
        with pytest.raises(NotImplementedError, match=sentence) as caught:
            move()
        assert "gossamer.desparsify_" in str(caught.value)
        assert "more" not in str(caught.value)
    assert torch.equal(layer(x), y)


def test_float8_needs_hopper(machine: Machine) -> None:
    for capability in ((8, 9), (12, 0)):
        machine.capability(*capability)
        for values, sentence in (
            (torch.float8_e4m3fn, "no kernel multiplies float8 weights on Fake"),
            (torch.int8, None),
            (torch.bfloat16, None),
        ):
            assert str(_cuda_device.no_products(CUDA, values)).startswith(str(sentence))
    machine.capability(9, 0)
    assert _cuda_device.no_products(CUDA, torch.float8_e4m3fn) is None


@pytest.mark.parametrize("failure", [None, "libtorch_hip.so: undefined symbol"])
def test_a_library_that_does_not_load_is_told_from_one_that_is_not_there(
    failure: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(torch.ops.gossamer, "cuda_kernel"):
        assert _cuda_device.no_kernels() is None
        return
    monkeypatch.setattr(_ops_cuda, "load_failure", failure)
    expected = f"do not load: {failure}" if failure else "this build of gossamer has no CUDA"
    assert expected in str(_cuda_device.no_kernels())


def decide(dtype: torch.dtype = torch.bfloat16, **request: str) -> _packing.Decision:
    """What sparsify_ would decide of a layer, were it on a GPU."""
    asked = _packing.Request(pattern="2:4", **request)  # type: ignore[arg-type]
    return _packing._decide_cuda(values(dtype), "layer", asked, False, False, None)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("cudaGetDeviceProperties: CUDA driver version is insufficient for CUDA runtime version",
         "kernels cannot use: cudaGetDeviceProperties: CUDA driver version is insufficient for "
         "CUDA runtime version"),
        ("CUDA out of memory. Tried to allocate 2.00 MiB.\nmore",
         "kernels cannot use: CUDA out of memory. Tried to allocate 2.00 MiB."),
    ],
)  # fmt: skip
def test_a_gpu_that_the_kernels_cannot_use_leaves_layers_plain(
    error: str, sentence: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise RuntimeError(error)

    monkeypatch.setattr(_plan_cuda, "_kernel", fail)
    decision = decide()
    assert decision.weight is None
    assert decision.report["reason"].endswith(sentence)


@pytest.mark.parametrize(
    ("capability", "quantize", "sentence"),
    [
        ((7, 5), None, "Fake (compute capability 7.5) has no sparse tensor cores; those of 8.0 and "
         "later have them, so it runs dense"),
        ((10, 0), "int8", "no kernel multiplies 2:4 weights on Fake (compute capability 10.0); "
         "kernels are for 8.x, 9.x and 12.x, so it runs dense"),
        ((8, 6), "float8", "no kernel multiplies float8 weights on Fake (compute capability 8.6); "
         "kernels for these are for 9.x, so it runs dense"),
        ((9, 0), "int8", "no kernel multiplies int8 2:4 weights on Fake, so it runs dense"),
    ],
)  # fmt: skip
def test_a_gpu_without_kernels_gets_its_sentence_from_sparsify(
    capability: tuple[int, int],
    quantize: str | None,
    sentence: str,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine.capability(*capability)
    monkeypatch.setattr(_plan_cuda, "_kernel", lambda x, out: "")
    decision = decide(**({} if quantize is None else {"quantize": quantize}))
    assert decision.weight is None
    assert decision.report["reason"] == sentence


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_full_memory_leaves_the_layer_as_it_is(
    quantize: str | None, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> SparseWeight:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(_plan_cuda, "_kernel", lambda x, out: "sm90")
    monkeypatch.setattr(_plan_cuda, "obstacle", lambda *args: None)
    monkeypatch.setattr(SparseWeight, "from_dense", fail)
    monkeypatch.setattr(_packing, "_quantized_tiles", fail)
    decision = decide(**({} if quantize is None else {"quantize": quantize}))
    assert decision.weight is None
    assert decision.report["reason"] == (
        "plain: packing it failed: CUDA out of memory. Tried to allocate 2.00 GiB."
    )


def test_float32_is_converted_only_on_request(machine: Machine) -> None:
    decision = decide(torch.float32)
    assert decision.weight is None
    reason = decision.report["reason"]
    assert "float32 weights are not multiplied packed on a GPU" in reason
    assert "convert the model with .to(torch.bfloat16)" in reason
    weight = SparseWeight.from_dense(values(torch.float32), "2:4")
    with pytest.raises(NotImplementedError, match=r"dtype torch.float32 cannot be moved"):
        _weight_dispatch._moved(weight, CUDA)


# --- On a GPU -------------------------------------------------------------------------------------


@gpu
@no_gpu
@pytest.mark.parametrize("quantized", [False, True])
def test_tensors_on_other_devices_are_named(quantized: bool) -> None:
    layer = nn.Linear(128, 64, device="cuda", dtype=torch.bfloat16)
    w = values().cuda()
    if quantized:
        packed, scale, _ = torch.ops.gossamer.quantize_pack_24(w, None, torch.int8)
        weight = SparseWeight.from_quantized(packed, scale, torch.bfloat16)
    else:
        weight = SparseWeight.from_dense(w, "2:4", layout="nm24_tiles")
    x = torch.randn(4, 128, device="cuda", dtype=torch.bfloat16)
    y = F.linear(x, weight)
    where = f"cuda:{x.device.index}"
    for call, sentence in (
        (lambda: F.linear(x.cpu(), weight), f"x is on the CPU, the packed weight on {where}"),
        (lambda: F.linear(x, weight, layer.bias.detach().cpu()), "bias is on the CPU"),
        (lambda: gs.linear(x, weight, residual=y.cpu()), "residual is on the CPU"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=re.escape(sentence)):
            call()
    on_cpu = weight.to("cpu")
    with pytest.raises((ValueError, RuntimeError), match="the packed weight on the CPU"):
        F.linear(x, on_cpu)
    assert torch.equal(F.linear(x, weight), y)


@gpu
@no_gpu
def test_a_full_gpu_leaves_the_layer_plain_and_working() -> None:
    layer = nn.Linear(4096, 4096, bias=False, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.view(4096, 1024, 4)[..., ::2] = 0
    x = torch.randn(1, 4096, device="cuda", dtype=torch.bfloat16)
    expected = layer(x)
    torch.cuda.empty_cache()
    device = torch.cuda.current_device()
    total = torch.cuda.get_device_properties(device).total_memory
    reserved = torch.cuda.memory_reserved(device) + (8 << 20)
    torch.cuda.set_per_process_memory_fraction(reserved / total)
    try:
        gs.sparsify_(layer)
        reason = next(iter(gs.explain(layer))).reason
        assert "out of memory" in reason, reason
        assert torch.equal(layer(x), expected)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gs.sparsify_(layer)
    assert "out of memory" not in next(iter(gs.explain(layer))).reason
