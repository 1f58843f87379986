# SPDX-License-Identifier: BSD-3-Clause
"""Random scores that are the same in each run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["random_scores"]


def random_scores(name: str, seed: int, step: int, shape: Sequence[int]) -> Tensor:
    """Uniform in [0, 1), float32, on the CPU.

    They follow from the arguments alone; the global random state is neither read nor moved.
    """
    digest = hashlib.sha256(f"{seed}/{name}/{step}".encode()).digest()
    # 63 bits: a generator's seed is a signed 64-bit integer.
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.rand(tuple(shape), generator=generator)
