# SPDX-License-Identifier: BSD-3-Clause
"""The seam that the CUDA kernels will fill: `_C_cuda.so` loads and answers where there is a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gossamer
from gossamer import _weight_dispatch
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
