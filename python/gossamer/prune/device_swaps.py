# SPDX-License-Identifier: BSD-3-Clause
"""`swap_refine` as torch operations: every row makes its best swap, then all of them the next.

The formula is that of src/prune/swap.cpp. With z the dropped part of a row w and c = G·z, taking u
back and dropping p changes z·G·zᵀ by take(u) + drop(p) − 2·w_u·w_p·G_up. Rows are independent of
each other, so that the masks are those of the core but for sums that are equal up to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["swap_refine"]

_SHORTLIST = 32
"""Pairs that are tried before all are: the cheapest to take back with the cheapest to drop."""
_PAIRS = 1 << 25
"""How many pairs are held at once, in float64."""


def swap_refine(
    weight: Tensor, gram: Tensor, mask: Tensor, group: int, segment: int, max_swaps: int
) -> tuple[Tensor, int]:
    """See swap_refine of include/gossamer/solve.h.

    Args:
        weight: [out, in], float32.
        gram: [in, in], float32.
        mask: bool [out, in]; it stays as it is.
        group: swaps stay inside groups of so many columns; 0: anywhere in the row.
        segment: groups start anew after so many columns; 0: never.
        max_swaps: at most so many in a row; 0 for no limit.

    Returns:
        The mask, and how many swaps were made.
    """
    rows = _Rows(weight, gram, mask)
    places = _places(weight.shape[1], group, segment, weight.device) if group else None
    active = torch.arange(len(weight), device=weight.device)
    made = rounds = 0
    while len(active) and (not max_swaps or rounds < max_swaps):
        active, take, drop = rows.best(active) if places is None else rows.inside(active, places)
        rows.make(active, take, drop)
        made += len(active)
        rounds += 1
    return rows.kept, made


def _places(cols: int, group: int, segment: int, device: torch.device) -> Tensor:
    """The columns of each group, [groups, group]; the last ones of a segment end in −1."""
    segment = segment or cols
    across = math.ceil(segment / group) * group
    at = torch.arange(across, device=device)
    own = at.where(at < segment, -1).view(-1, group)
    starts = torch.arange(0, cols, segment, device=device)
    found = own + starts[:, None, None]
    found = found.where((own >= 0) & (found < cols), -1)
    return found.view(-1, group)


class _Rows:
    """Rows of a weight with what their swaps need, in float64."""

    def __init__(self, weight: Tensor, gram: Tensor, mask: Tensor) -> None:
        self._weight, self._gram, self.kept = weight.double(), gram, mask.clone()
        self._own = self._weight.square() * gram.diagonal().double()
        left = torch.where(mask, 0, self._weight)
        self._pull = torch.empty_like(left)  # c = G·z
        for begin in range(0, gram.shape[1], 1024):  # The whole of G in float64 would be large.
            self._pull[:, begin : begin + 1024] = left @ gram[:, begin : begin + 1024].double()
        # Changes below what rounding of the row's own loss can fake are none.
        self._threshold = -1e-9 * (left * self._pull).sum(dim=1).abs()

    def make(self, rows: Tensor, take: Tensor, drop: Tensor) -> None:
        """Makes one swap in each of some rows."""
        self.kept[rows, take], self.kept[rows, drop] = True, False
        back, gone = self._weight[rows, take], self._weight[rows, drop]
        change = gone[:, None] * self._gram[drop] - back[:, None] * self._gram[take]
        self._pull.index_add_(0, rows, change)

    def _costs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of taking back each dropped weight, and of dropping each kept one; infinite elsewhere."""
        kept, own = self.kept[rows], self._own[rows]
        twice = 2.0 * self._weight[rows] * self._pull[rows]
        return (own - twice).masked_fill(kept, torch.inf), (own + twice).masked_fill(
            ~kept, torch.inf
        )

    def inside(self, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best swap inside a group of each row that has one: rows, what to take, to drop."""
        groups, side = places.shape
        at, outside = places.clamp(min=0), places < 0
        blocks = self._gram[at[:, :, None], at[:, None, :]].double()
        found = []
        for part in rows.split(max(1, _PAIRS // max(1, groups * side * side))):
            take, drop = (cost[:, at].masked_fill(outside, torch.inf) for cost in self._costs(part))
            weight = self._weight[part][:, at]
            change = take[:, :, None, :] + drop[:, :, :, None]
            change -= 2.0 * weight[:, :, None, :] * weight[:, :, :, None] * blocks
            best, index = change.flatten(1).min(dim=1)
            good = best < self._threshold[part]
            index = index[good]
            of_group, pair = index // side**2, index % side**2
            pairs = (at[of_group, pair % side], at[of_group, pair // side])
            found.append((part[good], *pairs))
        return _joined(found)

    def best(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best swap of each row that has one, short lists first."""
        found, count = [], min(_SHORTLIST, self._weight.shape[1])
        for part in rows.split(max(1, _PAIRS // max(1, 8 * self._weight.shape[1]))):
            take, drop = self._costs(part)
            quick = self._of_lists(part, take, drop, count)
            found.append(quick)
            missing = torch.isin(part, quick[0], invert=True)
            if count < self._weight.shape[1] and bool(missing.any()):
                found.append(self._of_all(part[missing], take[missing], drop[missing]))
        return _joined(found)

    def _of_lists(
        self, rows: Tensor, take: Tensor, drop: Tensor, count: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of the cheapest `count` on either side."""
        # In the order of columns, so that the first of equals is that of the core.
        u = take.topk(count, dim=1, largest=False).indices.sort(dim=1).values
        p = drop.topk(count, dim=1, largest=False).indices.sort(dim=1).values
        weight = self._weight[rows]
        products = weight.gather(1, u)[:, None, :] * weight.gather(1, p)[:, :, None]
        change = take.gather(1, u)[:, None, :] + drop.gather(1, p)[:, :, None]
        change -= 2.0 * products * self._gram[p[:, :, None], u[:, None, :]]
        best, index = change.flatten(1).min(dim=1)
        good = best < self._threshold[rows]
        pairs = (u.gather(1, index[:, None] % count), p.gather(1, index[:, None] // count))
        return rows[good], pairs[0][good, 0], pairs[1][good, 0]

    def _of_all(self, rows: Tensor, take: Tensor, drop: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all pairs."""
        cols = self._weight.shape[1]
        found = []
        for at in range(0, len(rows), step := max(1, _PAIRS // cols**2)):
            part = rows[at : at + step]
            weight = self._weight[part]
            least = self._threshold[part].clone()
            pair = torch.full_like(part, -1)
            for begin in range(0, cols, width := max(1, _PAIRS // (cols * len(part)))):
                own = slice(begin, begin + width)
                change = take[at : at + step, None, :] + drop[at : at + step, own, None]
                products = weight[:, None, :] * weight[:, own, None]
                change -= 2.0 * products * self._gram[own].double()
                best, index = change.flatten(1).min(dim=1)
                better = best < least
                least = best.where(better, least)
                pair = (index + begin * cols).where(better, pair)
            good = pair >= 0
            found.append((part[good], pair[good] % cols, pair[good] // cols))
        return _joined(found)


def _joined(found: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    rows, take, drop = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rows, take, drop
