# SPDX-License-Identifier: BSD-3-Clause
"""From scores to a mask as torch operations, for scores that are not on the CPU.

Masks are those of `select_masks` of the core: exact counts, the lower index among equals. On CUDA,
a kernel of `_C_cuda.so` selects groups.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.prune.pattern import PatternFields, parse_pattern

__all__ = ["check_scores", "dropped_count", "has_kernels", "keep_highest", "select", "selects"]

_LARGEST_RANKED = 16
"""Larger groups are sorted: ranking compares every pair."""


def has_kernels(tensor: Tensor) -> bool:
    """Whether kernels of `_C_cuda.so` take this tensor."""
    return tensor.is_cuda and hasattr(torch.ops.gossamer, "obs_sweep_block_")


def selects(pattern: str) -> bool:
    """Whether `select` knows a pattern; panels of `vnm` are the core's alone."""
    return parse_pattern(pattern).kind != "vnm"


def check_scores(fqn: str, scores: Tensor) -> None:
    """Refuses NaN, which has no place in an order."""
    if bool(scores.isnan().any()):
        raise ValueError(f"'{fqn}': a score is NaN; scores must be numbers")


def select(scores: Tensor, pattern: str, scope: str, segment: int = 0) -> Tensor:
    """The mask that `select_masks` finds for one weight, on the scores' device.

    Args:
        scores: [batch,] out, in; no NaN.
        pattern: `unstructured`, `N:M`, `fanin` or `block`.
        scope: "row" or "tensor".
        segment: groups of M start anew after so many columns; 0: never.
    """
    fields = parse_pattern(pattern)
    if fields.kind == "block":
        return _select_blocks(scores, fields, scope)
    flat = scores.reshape(-1, scores.shape[-1])
    if fields.kind == "nm":
        return _select_groups(flat, fields, segment or flat.shape[1]).view(scores.shape)
    by_row = scope == "row" or fields.kind == "fanin"
    rows = flat if by_row else flat.reshape(1, -1)
    return keep_highest(rows, dropped_count(fields.sparsity, rows.shape[1])).view(scores.shape)


def dropped_count(sparsity: float, count: int) -> int:
    """How many of `count` a sparsity drops: to the nearest, halves up."""
    return math.floor(sparsity * count + 0.5)


def keep_highest(rows: Tensor, dropped: int) -> Tensor:
    """All but the `dropped` lowest of each row; the lower index among equals is kept."""
    order = rows.sort(dim=-1, descending=True, stable=True).indices
    kept = torch.zeros_like(rows, dtype=torch.bool)
    return kept.scatter_(-1, order[..., : rows.shape[-1] - dropped], True)


def _select_groups(scores: Tensor, fields: PatternFields, segment: int) -> Tensor:
    if has_kernels(scores):
        chosen: Tensor = torch.ops.gossamer.select_groups(scores, fields.n, fields.m, segment)
        return chosen
    rows, cols = scores.shape
    groups = math.ceil(segment / fields.m)
    padded = scores.reshape(rows, cols // segment, segment)
    if segment % fields.m:
        padded = torch.nn.functional.pad(padded, (0, groups * fields.m - segment), value=-torch.inf)
    grouped = padded.reshape(rows, -1, fields.m)
    if fields.m <= _LARGEST_RANKED:
        kept = _ranks(grouped) < fields.n
    else:
        kept = keep_highest(grouped, fields.m - fields.n)
    return kept.view(rows, -1, groups * fields.m)[..., :segment].reshape(rows, cols)


def _ranks(groups: Tensor) -> Tensor:
    """How many of its group rank above each score, the lower index first among equals."""
    above = torch.zeros_like(groups, dtype=torch.int8)
    for distance in range(1, groups.shape[-1]):
        first = groups[..., :-distance] >= groups[..., distance:]
        above[..., distance:] += first
        above[..., :-distance] += first.logical_not()
    return above


def _select_blocks(scores: Tensor, fields: PatternFields, scope: str) -> Tensor:
    height, width = fields.block_rows, fields.block_cols
    matrices = scores.reshape(-1, *scores.shape[-2:])
    batch, of_matrix, of_row = matrices.shape
    rows, cols = math.ceil(of_matrix / height), math.ceil(of_row / width)
    padded = F.pad(matrices.double(), (0, cols * width - of_row, 0, rows * height - of_matrix))
    # Not index_add_, whose order on a GPU is not the same twice: equal blocks have equal sums.
    sums = padded.view(batch, rows, height, cols, width).transpose(2, 3).flatten(3).sum(dim=3)
    row = torch.arange(of_matrix, device=scores.device) // height
    col = torch.arange(of_row, device=scores.device) // width
    means = (sums / (row.bincount()[:, None] * col.bincount())).view(batch * rows, cols)
    flat = means if scope == "row" else means.reshape(1, -1)
    kept = keep_highest(flat, dropped_count(fields.sparsity, flat.shape[1])).view(batch, rows, cols)
    return kept[:, row][:, :, col].view(scores.shape)
