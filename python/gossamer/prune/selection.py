# SPDX-License-Identifier: BSD-3-Clause
"""From scores to masks: here weights become matrices and masks weights again.

The core selects on the CPU, `device_select` where the scores are; the masks are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer.prune import device_select
from gossamer.prune.matrix import MatrixForm
from gossamer.prune.pattern import CustomPattern, column_block, is_grouped, parse_pattern

__all__ = ["Candidate", "Rival", "check_fits", "check_kept", "select", "select_all"]


@dataclass(frozen=True)
class Candidate:
    """A weight whose scores are in, before its mask is known.

    Attributes:
        fqn: its full name.
        scores: [batch,] out, in, float32 or float64, on the weight's device.
        form: how the weight became that matrix.
        grouped: whether the pattern groups neighbouring inputs.
        shape: the weight's shape.
    """

    fqn: str
    scores: Tensor
    form: MatrixForm
    grouped: bool
    shape: torch.Size

    @classmethod
    def of(
        cls,
        fqn: str,
        module: nn.Module,
        weight: Tensor,
        scores: Tensor,
        pattern: str | CustomPattern,
    ) -> Candidate:
        """Checks and folds scores.

        Raises:
            ValueError: there is not one score for each element.
        """
        if not isinstance(scores, Tensor) or scores.shape != weight.shape:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"the scores of '{fqn}' are {got}: one score for each element, "
                f"{list(weight.shape)}, is accepted"
            )
        dtype = torch.float64 if scores.dtype == torch.float64 else torch.float32
        form = MatrixForm.of(module, weight)
        grouped = is_grouped(pattern)
        matrix = form.to_matrix(scores.detach().to(dtype), grouped=grouped)
        return cls(fqn, matrix, form, grouped, weight.shape)

    def unfold(self, mask: Tensor) -> Tensor:
        """A mask of the matrix in the weight's shape."""
        return self.form.from_matrix(mask, self.shape, grouped=self.grouped)


def select(
    candidates: Sequence[Candidate], pattern: str | CustomPattern, scope: str
) -> list[Tensor]:
    """The mask of each candidate, in its weight's shape.

    Args:
        candidates: weights that compete with each other where the scope is "global".
        pattern: a pattern's text, or an object with `select(scores)`.
        scope: "row", "tensor", "columns:N" or "global".

    Raises:
        ValueError: a score is NaN, a pattern's `select` returned something else than a mask, or an
            object is asked to select in blocks of columns.
    """
    width = column_block(scope)
    if width and not isinstance(pattern, str) and not is_grouped(pattern):
        raise ValueError(
            f"'{candidates[0].fqn}': scope {scope!r}: pattern {pattern} is an object, which "
            "selects from the whole weight; 'row' or 'tensor' is accepted"
        )
    if isinstance(pattern, str) and width:
        masks = [_select_by_columns(candidate, pattern, width) for candidate in candidates]
    elif isinstance(pattern, str):
        masks = _select_by_core(candidates, pattern, scope)
    else:
        masks = [_select_by_object(candidate, pattern) for candidate in candidates]
    return [candidate.unfold(mask) for candidate, mask in zip(candidates, masks, strict=True)]


class Rival(NamedTuple):
    """A weight with the pattern that it is to have, and the scope in which its scores compete."""

    candidate: Candidate
    pattern: str | CustomPattern
    scope: str


def select_all(rivals: Sequence[Rival]) -> list[Tensor]:
    """The mask of each weight; those of equal pattern and scope "global" compete together.

    Raises:
        ValueError: as for `select`.
    """
    masks: dict[int, Tensor] = {}
    together: dict[str, list[int]] = defaultdict(list)
    for index, (candidate, pattern, scope) in enumerate(rivals):
        if isinstance(pattern, str) and scope == "global":
            together[pattern].append(index)
        else:
            masks[index] = select([candidate], pattern, scope)[0]
    for shared, members in together.items():
        found = select([rivals[index].candidate for index in members], shared, "global")
        masks.update(zip(members, found, strict=True))
    return [masks[index] for index in range(len(rivals))]


def check_fits(
    fqn: str, module: nn.Module, weight: Tensor, pattern: str | CustomPattern, scope: str
) -> None:
    """Refuses a pattern that would keep nothing of a weight, whatever its scores.

    With scope "global" a layer may well lose all of its weights to others.

    Raises:
        ValueError: as `check_kept`.
    """
    if scope == "global" or not isinstance(pattern, str) or not weight.numel():
        return
    fields, form = parse_pattern(pattern), MatrixForm.of(module, weight)
    shape = form.to_matrix(torch.empty(weight.shape, device="meta"), grouped=False).shape
    rows, cols = shape[-2:]
    rivals = cols if scope == "row" or fields.kind == "fanin" else weight.numel()
    rivals = rows * min(column_block(scope), cols) if column_block(scope) else rivals
    blocks = rivals / max(fields.block_rows * fields.block_cols, 1)
    if fields.grouped or blocks * (1 - fields.sparsity) >= 1:
        return
    candidate = Candidate(fqn, torch.zeros(shape), form, grouped=False, shape=weight.shape)
    check_kept(fqn, weight.shape, pattern, select([candidate], pattern, scope)[0])


def check_kept(fqn: str, shape: Sequence[int], pattern: str | CustomPattern, mask: Tensor) -> None:
    """Refuses a mask that switches a layer off because the pattern is too coarse for it.

    Raises:
        ValueError: nothing is kept, of a weight that has elements, by a pattern that is to keep
            some.
    """
    asks_for_nothing = isinstance(pattern, str) and parse_pattern(pattern).sparsity >= 1
    if asks_for_nothing or not mask.numel() or bool(mask.any()):
        return
    raise ValueError(
        f"'{fqn}': pattern {pattern} keeps nothing of a weight {list(shape)}; give it smaller "
        "blocks or a lower sparsity, or leave it dense: prepare(model, {'<name>': None, '*': ...})"
    )


def _select_by_columns(candidate: Candidate, pattern: str, width: int) -> Tensor:
    if candidate.grouped:  # Groups of inputs compete in themselves.
        return _select_by_core([candidate], pattern, "tensor")[0]
    parts = [
        replace(candidate, scores=part.contiguous()) for part in candidate.scores.split(width, -1)
    ]
    return torch.cat([_select_by_core([part], pattern, "tensor")[0] for part in parts], dim=-1)


def _select_by_core(candidates: Sequence[Candidate], pattern: str, scope: str) -> list[Tensor]:
    devices = {candidate.scores.device for candidate in candidates}
    there = all(own.scores.is_cuda and own.scores.numel() for own in candidates)
    if there and device_select.selects(pattern):
        if scope != "global" or parse_pattern(pattern).kind in ("nm", "fanin"):
            scope = "tensor" if scope == "global" else scope
            return [_select_there(candidate, pattern, scope) for candidate in candidates]
        if len(devices) == 1 and parse_pattern(pattern).kind == "unstructured":
            return _select_there_together(candidates, pattern)
    scores = [candidate.scores.cpu() for candidate in candidates]
    try:
        masks: list[Tensor] = torch.ops.gossamer.select_masks(scores, pattern, scope)
    except (ValueError, RuntimeError) as error:
        text = str(error)
        for index, candidate in enumerate(candidates):
            text = text.replace(f"selection {index}:", f"'{candidate.fqn}':")
        raise ValueError(text) from None
    return masks


def _select_there(candidate: Candidate, pattern: str, scope: str) -> Tensor:
    """On the scores' device."""
    device_select.check_scores(candidate.fqn, candidate.scores)
    return device_select.select(candidate.scores, pattern, scope)


def _select_there_together(candidates: Sequence[Candidate], pattern: str) -> list[Tensor]:
    """Weights of one device that compete with each other, as one long row."""
    for candidate in candidates:
        device_select.check_scores(candidate.fqn, candidate.scores)
    dtype = torch.float32
    if any(candidate.scores.dtype == torch.float64 for candidate in candidates):
        dtype = torch.float64
    flat = [candidate.scores.to(dtype).flatten() for candidate in candidates]
    mask = device_select.select(torch.cat(flat)[None], pattern, "tensor")[0]
    parts = mask.split([len(own) for own in flat])
    return [
        part.view(candidate.scores.shape) for part, candidate in zip(parts, candidates, strict=True)
    ]


def _select_by_object(candidate: Candidate, pattern: CustomPattern) -> Tensor:
    there = getattr(pattern, "any_device", False)
    mask = pattern.select(candidate.scores if there else candidate.scores.cpu())
    if mask.dtype != torch.bool or mask.shape != candidate.scores.shape:
        raise ValueError(
            f"pattern {pattern} selected {mask.dtype} {list(mask.shape)} for '{candidate.fqn}': "
            f"torch.bool {list(candidate.scores.shape)} is accepted"
        )
    return mask
