# SPDX-License-Identifier: BSD-3-Clause
"""The arrays of packed weights as a pickle takes them: those of shared weights are the same."""

from __future__ import annotations

import json
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from gossamer import _ops

__all__ = ["canonical_form"]

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
        change.
    """
    canonical = torch.ops.gossamer.convert(packed, "format")
    form = {**_ops.info(canonical), "transposed": transposed}
    place = (str(packed.device), packed.data_ptr(), packed._version)
    arrays = []
    for index, array in enumerate(torch.ops.gossamer.format_arrays(canonical)):
        key = (*place, index)
        known = _written.get(key)
        # Memory that was freed and is used again has the same address: it is compared.
        if known is None or not torch.equal(_bytes(known), _bytes(array)):
            _written[key] = known = array
        arrays.append(known)
    return json.dumps(form), arrays


def _bytes(array: Tensor) -> Tensor:
    return array.contiguous().view(torch.uint8).flatten()
