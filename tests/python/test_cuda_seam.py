# SPDX-License-Identifier: BSD-3-Clause
"""`_C_cuda.so` loads and answers where there is a GPU, and stays unloaded where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer import _ops_cuda, _weight_dispatch
from gossamer._layers import _device_obstacle
from gossamer.weight import SparseWeight

LIBRARY = Path(gossamer.__file__).with_name("_C_cuda.so")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_device_info_agrees_with_torch() -> None:
    if not LIBRARY.is_file():
        pytest.skip("the package was built without nvcc")
    info = json.loads(torch.ops.gossamer.cuda_device_info(torch.empty(1, device="cuda")))
    properties = torch.cuda.get_device_properties(0)
    assert info["name"] == properties.name
    assert info["compute_capability"] == [properties.major, properties.minor]
    assert info["multiprocessors"] == properties.multi_processor_count
    assert info["memory_bytes"] == properties.total_memory


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_without_a_device_nothing_of_cuda_is_loaded() -> None:
    loaded = {Path(path).name for path in torch.ops.loaded_libraries}
    assert "_C.so" in loaded
    assert "_C_cuda.so" not in loaded


def test_layers_on_a_gpu_are_looked_at() -> None:
    cuda = torch.device("cuda", 0)
    assert _device_obstacle(cuda, values_follow=False) is None
    assert "move it with .to('cuda')" in str(_device_obstacle(cuda, values_follow=True))
    other = str(_device_obstacle(torch.device("mps"), values_follow=False))
    assert "2:4 ones in float16 or bfloat16 on CUDA devices" in other


def test_a_weight_without_values_stays_plain_with_a_reason() -> None:
    layer = torch.nn.Linear(8, 8, device="meta")
    gossamer.sparsify_(layer)
    assert type(layer.weight) is torch.nn.Parameter
    assert "meta" in next(iter(gossamer.explain(layer))).reason


def test_a_build_without_cuda_kernels_says_so_when_a_weight_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if hasattr(torch.ops.gossamer, "cuda_kernel"):
        pytest.skip("this build has CUDA kernels")
    values = torch.zeros(8, 8, dtype=torch.bfloat16)
    values[:, ::2] = 1
    weight = SparseWeight.from_dense(values, "2:4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(NotImplementedError, match="this build of gossamer has no CUDA kernels"):
        _weight_dispatch._moved(weight, torch.device("cuda", 0))


@pytest.mark.parametrize("layout", ["nm", "nm24_tiles", "nm24_pairs", "nm+kcsr128"])
def test_a_header_alone_describes_and_plans_a_weight(layout: str) -> None:
    values = torch.zeros(96, 200, dtype=torch.bfloat16)
    values[:, ::2] = 1
    packed = torch.ops.gossamer.pack(values, None, "2:4", "nm", False, "w")
    packed = torch.ops.gossamer.convert(packed, layout)
    described = _ops_cuda._described(packed)
    assert torch.equal(described[:256], packed[:256])
    assert _ops_cuda._info(packed) == torch.ops.gossamer.info(packed)
    kernels = json.dumps([None, "dense", "dense"] + [None] * 5)
    planned = torch.ops.gossamer.with_plan(packed, kernels)
    assert torch.equal(_ops_cuda._with_plan(packed, kernels), planned)
    assert not torch.equal(planned, packed)


@pytest.mark.parametrize(
    "packed", [torch.zeros(10, dtype=torch.uint8), torch.zeros(300), torch.zeros(2, 300)]
)
def test_what_has_no_header_is_refused_as_it_was(packed: torch.Tensor) -> None:
    with pytest.raises(ValueError) as expected:  # noqa: PT011
        torch.ops.gossamer.info(packed)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        _ops_cuda._info(packed)
    assert str(caught.value) == str(expected.value)
