# SPDX-License-Identifier: BSD-3-Clause
"""A `SparseWeight` between processes, and what asks for the dense memory that it does not have."""

from __future__ import annotations

import sys
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

from gossamer._cuda_device import no_device
from gossamer._weight_facts import Facts
from gossamer._weight_tables import function
from gossamer.weight import SparseWeight

# --- Shared memory --------------------------------------------------------------------------------


@function(Tensor.share_memory_)
def _handle_share_memory(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    weight.packed.share_memory_()
    for other in (weight.dense, weight.scale):
        if other is not None:
            other.share_memory_()
    return weight


@function(Tensor.is_shared)
def _handle_is_shared(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    parts = (weight.packed, weight.dense, weight.scale)
    return all(part is None or part.is_shared() for part in parts)


def _reduce_for_process(weight: SparseWeight) -> tuple[Any, ...]:
    """What torch.multiprocessing sends: the bytes themselves, which both processes then share."""
    is_param = bool(getattr(weight, "_is_param", False))
    state = (weight.packed, tuple(weight._facts), weight.dense, is_param, weight.scale)
    return _from_process, state


def _from_process(
    packed: Tensor,
    facts: tuple[Any, ...],
    dense: Tensor | None,
    is_param: bool,
    scale: Tensor | None = None,
) -> SparseWeight:
    weight = SparseWeight(packed, Facts(*facts), dense, scale)
    if is_param:
        weight._is_param = True
    return weight


ForkingPickler.register(SparseWeight, _reduce_for_process)


# --- Devices --------------------------------------------------------------------------------------


@function(Tensor.to, Tensor.cuda)
def _handle_to(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Says why there is no GPU: torch would look for one before it asks the weight."""
    to_cuda = func is Tensor.cuda
    if not to_cuda and type(args[0]) is SparseWeight:
        others = [arg for arg in (*args[1:], *kwargs.values()) if not isinstance(arg, Tensor)]
        to_cuda = any(
            isinstance(arg, (str, torch.device)) and torch.device(arg).type == "cuda"
            for arg in others
        )
    why = no_device() if to_cuda else None
    if why is not None:
        raise NotImplementedError(
            f"a packed weight cannot be moved to a CUDA device: {why}. On the CPU it is computed "
            "as it is; gossamer.desparsify_ unpacks the model for other devices"
        )
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


# --- Dense memory ---------------------------------------------------------------------------------

_INSTEAD = {
    Tensor.numpy: "weight.to_dense().numpy()",
    Tensor.__array__: "weight.to_dense().numpy()",
    Tensor.tolist: "weight.to_dense().tolist()",
    Tensor.__dlpack__: "weight.to_dense()",
    Tensor.apply_: "weight.to_dense().apply_(...)",
    Tensor.map_: "weight.to_dense().map_(...)",
    Tensor.map2_: "weight.to_dense().map2_(...)",
    Tensor.data_ptr: "weight.packed.data_ptr(), where its bytes are, or weight.to_dense()",
    Tensor.untyped_storage: "weight.packed, its bytes, or weight.to_dense()",
    Tensor.storage: "weight.packed, its bytes, or weight.to_dense()",
    Tensor._typed_storage: "weight.packed, its bytes, or weight.to_dense()",
}


@function(*_INSTEAD)
def _refuse_memory(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # torch's compiler tells tensors apart by their storage, and never reads that of a wrapper.
    caller = sys._getframe(2).f_globals.get("__name__", "")
    if func is Tensor.untyped_storage and caller.partition(".")[0] == "torch":
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
    name = "torch.Tensor." + func.__name__
    raise NotImplementedError(
        f"{name}: a packed weight holds no dense values in memory; use {_INSTEAD[func]}. "
        "gossamer.save(model, path) writes safetensors files of packed weights, and with "
        "packed=False of dense ones"
    )
