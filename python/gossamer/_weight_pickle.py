# SPDX-License-Identifier: BSD-3-Clause
"""The arrays of packed weights as a pickle takes them: those of shared weights are the same."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gossamer import _ops

__all__ = ["canonical_form", "current_plan", "with_float8"]

_BUCKETS_OF_VERSION_1 = 7

# Arrays that somebody is writing, by the memory of the packed weight and its changes. A
# state_dict has another tensor object for each name of a shared weight; torch.save writes a storage
# once, and holds on to it until all are written.
_written: WeakValueDictionary[tuple[str, int, int, int], Tensor] = WeakValueDictionary()


def canonical_form(packed: Tensor, transposed: bool) -> tuple[str, list[Tensor]]:
    """A packed weight's description as JSON, and its arrays.

    Args:
        packed: uint8, any layout.
        transposed: whether the weight is seen as [in, out].

    Returns:
        The arrays of an earlier call for the same memory, as long as they live and it did not
        change. Those of float8 as bytes: torch's pickles of float8 tensors cannot be read back.
    """
    canonical = torch.ops.gossamer.convert(packed, "format")
    form = {**_ops.info(canonical), "transposed": transposed}
    place = (str(packed.device), packed.data_ptr(), packed._version)
    arrays = []
    form["float8"] = []
    for index, array in enumerate(torch.ops.gossamer.format_arrays(canonical)):
        if array.dtype == torch.float8_e4m3fn:
            form["float8"].append(index)
            array = array.view(torch.uint8)
        key = (*place, index)
        known = _written.get(key)
        # Memory that was freed and is used again has the same address: it is compared.
        if known is None or not torch.equal(_bytes(known), _bytes(array)):
            _written[key] = known = array
        arrays.append(known)
    return json.dumps(form), arrays


def with_float8(form: str, arrays: list[Tensor]) -> tuple[str, list[Tensor]]:
    """What `canonical_form` gave, for `from_format_arrays`: float8 arrays are such again."""
    described = json.loads(form)
    places = described.pop("float8", [])
    found = [a.view(torch.float8_e4m3fn) if i in places else a for i, a in enumerate(arrays)]
    return json.dumps(described), found


def current_plan(kernels: Sequence[Any]) -> list[Any]:
    """A pickled plan for the buckets of token counts that there are now.

    Args:
        kernels: a name or None for each bucket; seven where 2–4 and 5–8 tokens were one.
    """
    if len(kernels) != _BUCKETS_OF_VERSION_1:
        return list(kernels)
    return [*kernels[:2], *kernels[1:]]


def _bytes(array: Tensor) -> Tensor:
    return array.contiguous().view(torch.uint8).flatten()
