# SPDX-License-Identifier: BSD-3-Clause
"""The operators of `torch.ops.gossamer`, with shapes and gradients.

Importing this module is all that is needed to use them.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from gossamer import (
    _library,  # noqa: F401  (loads the operators)
    _ops_gradients,  # noqa: F401
    _ops_int8,  # noqa: F401
    _ops_shapes,  # noqa: F401
)

__all__ = ["info"]


def info(packed: Tensor) -> dict[str, Any]:
    """What a packed weight says of itself.

    Args:
        packed: uint8 [bytes], as `torch.ops.gossamer.pack` returns it.

    Returns:
        `layout` (`"first+second"` of a block of two layouts), `layout_code` (of the first),
        `format`, `pattern`, `dtype`, `shape` ([out, in] or
        [batch, out, in]), `batch`, `out`, `in`, `kept`, `bytes`, `transposed`, `plan` (a kernel's
        name or None for each bucket of token counts), and `arrays` (`name`, `dtype`, `shape`; empty
        where the layout is not a format). Of a convolution also `kernel` ([height, width]); its
        `in` counts taps times channels.

    Raises:
        ValueError: the bytes are not a packed weight.
    """
    return json.loads(torch.ops.gossamer.info(packed))
