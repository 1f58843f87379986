# SPDX-License-Identifier: BSD-3-Clause
"""`SupermaskLinear` and the helpers of `torchao.sparsity` 0.18 by their old names."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "SupermaskLinear",
    "create_block_sparse_tensor",
    "create_semi_structured_tensor",
    "mask_creator",
]


class _BlockMask(torch.autograd.Function):
    """Weight times mask; scores get ∂L/∂W ⊙ W summed over their block (edge-popup).

    With `plain` they get the sum of ∂L/∂W.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor, blocksize: int, plain: bool
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.plain = plain
        ctx.shape, ctx.blocksize = scores.shape, blocksize
        return torch.where(mask, weight, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (weight,) = grads, ctx.saved_tensors
        moved = grad if ctx.plain else grad * weight
        for dim, count in enumerate(ctx.shape):
            place = torch.arange(moved.shape[dim], device=moved.device) // ctx.blocksize
            size = list(moved.shape)
            size[dim] = count
            moved = moved.new_zeros(size).index_add_(dim, place, moved)
        return grad, moved, None, None, None


class SupermaskLinear(nn.Linear):
    """A linear layer that learns which blocks of its weight to keep.

    Blocks with the highest scores are kept, the lower index among equals; scores are trained
    through the mask with ∂L/∂W ⊙ W (the old one left out the weight), and all weights get the
    gradient. More sparsity than one block allows is lowered to that, with a warning (the old one
    failed with an AttributeError).

    Args:
        sparsity_level: fraction of blocks that are zero.
        blocksize: side of a block.
        fixed_mask: whether scores are not trained.
        fixed_weight: whether weights are not trained.
        *args: of `nn.Linear`.
        as_in_torchao: gives scores the gradient without the weight, as the old one did.
        **kwargs: of `nn.Linear`.
    """

    def __init__(
        self,
        sparsity_level: float,
        blocksize: int,
        fixed_mask: bool,
        fixed_weight: bool,
        *args: Any,
        as_in_torchao: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.as_in_torchao = as_in_torchao
        sides = [max(1, math.ceil(side / blocksize)) for side in self.weight.shape]
        most = 1 - 1 / math.prod(sides)
        if sparsity_level > most:
            warnings.warn(
                f"sparsity {sparsity_level} is lowered to {most}: a weight of "
                f"{list(self.weight.shape)} in {blocksize}x{blocksize} blocks keeps one at least",
                stacklevel=2,
            )
        self.sparsity_level = min(sparsity_level, most)
        self.blocksize = blocksize
        self.scores = nn.Parameter(self.weight.new_empty(sides), requires_grad=not fixed_mask)
        nn.init.kaiming_uniform_(self.scores, a=math.sqrt(5))
        self.weight.requires_grad = not fixed_weight

    def get_mask(self) -> Tensor:
        """Bool, the weight's shape; True is kept."""
        scores = self.scores.detach().float().cpu()
        mask: Tensor = torch.ops.gossamer.select_masks(
            [scores], f"unstructured:{self.sparsity_level}", "tensor"
        )[0].to(self.weight.device)
        for dim, side in enumerate(self.weight.shape):
            mask = mask.repeat_interleave(self.blocksize, dim=dim).narrow(dim, 0, side)
        return mask

    def forward(self, x: Tensor) -> Tensor:
        """X·(mask ⊙ W)ᵀ + b."""
        weight = _BlockMask.apply(
            self.weight, self.scores, self.get_mask(), self.blocksize, self.as_in_torchao
        )
        return F.linear(x, weight, self.bias)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, sparsity_level: float = 0.0, blocksize: int = 1
    ) -> SupermaskLinear:
        """A supermask layer with a linear layer's weight and bias."""
        made = cls(
            sparsity_level,
            blocksize,
            False,
            False,
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
        ).to(device=linear.weight.device, dtype=linear.weight.dtype)
        with torch.no_grad():
            made.weight.copy_(linear.weight)
            if linear.bias is not None:
                made.bias.copy_(linear.bias)
        return made

    @classmethod
    def to_linear(cls, supermask_linear: SupermaskLinear) -> nn.Linear:
        """A plain linear layer with zeros."""
        own = supermask_linear
        linear = nn.Linear(own.in_features, own.out_features, bias=own.bias is not None).to(
            device=own.weight.device, dtype=own.weight.dtype
        )
        with torch.no_grad():
            linear.weight.copy_(torch.where(own.get_mask(), own.weight, 0))
            if own.bias is not None:
                linear.bias.copy_(own.bias)
        return linear


def mask_creator(tensor: Tensor, N: int = 2, M: int = 4) -> Tensor:
    """The mask of the N largest of every M consecutive elements, in the tensor's shape, float32.

    Raises:
        ValueError: the elements do not divide into groups of M.
    """
    if tensor.numel() % M:
        raise ValueError(f"a tensor of shape {list(tensor.shape)} has no whole groups of {M}")
    rows = tensor.detach().float().reshape(-1, M).cpu()
    mask = torch.ops.gossamer.magnitude_mask(rows, f"{N}:{M}", "row")
    return mask.to(tensor.device, torch.float32).reshape(tensor.shape)


def create_block_sparse_tensor(
    M: int,
    N: int,
    blocksize: int,
    sparsity: float,
    dtype: torch.dtype,
    device: torch.device | str | None = None,
) -> Tensor:
    """Ones in random blocks [M, N], each kept with probability 1 − sparsity.

    Args:
        M: rows.
        N: columns.
        blocksize: side of a block.
        sparsity: from 0 to 1.
        dtype: of the result.
        device: of the result; None is torch's default (it was always CUDA).

    Raises:
        ValueError: the sparsity is no fraction.
    """
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity}: a number from 0 to 1 is accepted")
    blocks = torch.bernoulli(
        torch.full((M // blocksize, N // blocksize), 1 - sparsity, device=device)
    )
    whole = blocks.repeat_interleave(blocksize, 0).repeat_interleave(blocksize, 1)
    return whole.to(dtype).contiguous()


def create_semi_structured_tensor(
    r: int, c: int, dtype: torch.dtype, device: torch.device | str | None = None
) -> Tensor:
    """Random numbers from 1 to 2 in one of every two columns, 0 in the other: [r, c].

    Args:
        r: rows.
        c: columns, even.
        dtype: of the result.
        device: of the result; None is torch's default (it was always CUDA).
    """
    chosen = torch.randint(0, 2, (r * c // 2,), device=device)
    mask = F.one_hot(chosen, num_classes=2).reshape(r, c)
    return (mask + torch.rand(r, c, device=device) * mask).to(dtype)
