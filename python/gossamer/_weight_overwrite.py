# SPDX-License-Identifier: BSD-3-Clause
"""How a packed weight takes over another one's values: in its own memory where they fit."""

from __future__ import annotations

import torch
from torch import Tensor

from gossamer.weight import SparseWeight

__all__ = ["overwrite"]


def overwrite(target: SparseWeight, new: SparseWeight, dense: Tensor | None) -> None:
    """Makes `target` what `new` is, as `Tensor.copy_` does.

    A CUDA graph that was captured, an alias (`state_dict`) and another process that shares the
    memory hold addresses, not this object: where shape, dtype, layout and size are the same, the
    bytes, the scales and the dense copy are written where they lie, and a plan for the GPU stays.
    Other bytes take the place of the old ones, which graphs must not outlive.

    Args:
        target: what is overwritten.
        new: the values, with memory that nobody else has.
        dense: [[batch,] out, in] or a convolution's four dimensions, of `new`; None keeps none.
    """
    facts = new._facts
    packed, scale = new.packed, new.scale
    is_alike = facts[:7] == target._facts[:7] and (scale is None) == (target.scale is None)
    if is_alike and _fits(target.packed, packed):
        facts = facts._replace(plan=target._facts.plan)
        packed = target.packed.copy_(packed)
        if packed.is_cuda:
            torch.ops.gossamer.publish_(packed)
        scale = _written(target.scale, scale)
        dense = _written(target.dense, dense)
    target._adopt(packed, facts, dense, scale)


def _fits(old: Tensor, new: Tensor) -> bool:
    if old.is_inference() and not torch.is_inference_mode_enabled():
        return False  # torch refuses to write to it
    return old.shape == new.shape and old.dtype == new.dtype and old.device == new.device


def _written(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    if old is None or new is None or not _fits(old, new):
        return new
    return old.copy_(new)
