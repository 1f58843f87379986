# SPDX-License-Identifier: BSD-3-Clause
"""Parts that take what the model has already: live masks, gradients of a loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.prune.parts import Score
from gossamer.prune.problem import LayerProblem

__all__ = ["ByMovement", "ByTaylor", "Existing"]


@dataclass(frozen=True)
class Existing:
    """The mask that a weight has already: of another sparsifier, a checkpoint, or one's own zeros.

    For parts after it that improve a mask or correct the weights on it, which are the dense ones
    under the live mask:

        magnitude = Magnitude("unstructured:0.5", scope="global")
        magnitude.prepare(model)
        magnitude.step()
        method = OneShot("unstructured", Existing(), LeastSquares())
        method.prepare(model)
        method.calibrate(batches)

    Where nothing has selected a live mask, the zeros of the weight are the mask; but then there
    are no dense weights to be made up for.
    """

    needs_gram: ClassVar[bool] = False

    def __call__(self, problem: LayerProblem) -> None:
        """Writes the problem's mask.

        Raises:
            ValueError: nothing is dropped, or the mask keeps more than the pattern.
        """
        mask = problem.present
        if mask is None:
            mask = problem.dense != 0
            if bool(mask.all()):
                raise ValueError(
                    f"Existing, '{problem.fqn}': nothing has selected its mask, and it holds no "
                    "zeros; call step() of the sparsifier that is to select it, or "
                    "attach_masks(model, state_dict), before calibrate(), or put a score such as "
                    "ByWanda() here"
                )
        problem.mask, problem.solution = mask.clone(), None
        problem.check(verify=True)
        fields = problem.fields
        if fields is None or fields.kind not in ("unstructured", "block"):
            return
        height, width = max(fields.block_rows, 1), max(fields.block_cols, 1)
        live = F.max_pool2d(mask.float(), (height, width), ceil_mode=True).bool()
        whole = live.repeat_interleave(height, -2).repeat_interleave(width, -1)
        if not torch.equal(whole[:, : mask.shape[1], : mask.shape[2]], mask):
            raise ValueError(
                f"Existing, '{problem.fqn}': its mask keeps parts of {height}x{width} blocks; name "
                "the pattern that it has, e.g. 'unstructured'"
            )
        # Scopes round in other places, by half a weight for each row at most.
        slack = mask.shape[0] * mask.shape[1] / 2 * height * width
        if (1 - fields.sparsity) * mask.numel() + slack < int(mask.count_nonzero()):
            raise ValueError(
                f"Existing, '{problem.fqn}': its mask has {1 - float(mask.float().mean()):.2%} "
                f"zeros, fewer than '{problem.pattern}' asks for; leave the number away "
                "('unstructured', 'block:4x4') where each weight has its own"
            )


@dataclass(frozen=True)
class ByTaylor(Score):
    """|w·∂L/∂w|: how far the loss moves when a weight is dropped, to the first order.

    Molchanov et al. 2019, arXiv:1906.10771. The gradients are those that `loss.backward()` left
    between `prepare` and `calibrate`, summed over as many calls as there were.
    """

    needs_gram: ClassVar[bool] = False

    def score(self, problem: LayerProblem) -> Tensor:
        """|w·∂L/∂w|."""
        return (problem.dense * _gradient(problem, "ByTaylor")).abs()


@dataclass(frozen=True)
class ByMovement(Score):
    """−w·∂L/∂w: weights that a step of training would move away from zero are kept.

    The first step of movement pruning (Sanh et al. 2020, arXiv:2005.07683, equation 2), with
    gradients as `ByTaylor` takes them. `Movement` adds the steps of a whole training up.
    """

    needs_gram: ClassVar[bool] = False

    def score(self, problem: LayerProblem) -> Tensor:
        """−w·∂L/∂w."""
        return -problem.dense * _gradient(problem, "ByMovement")


def _gradient(problem: LayerProblem, part: str) -> Tensor:
    if problem.gradient is None:
        raise ValueError(
            f"{part}, '{problem.fqn}': the weight has no gradient; call loss.backward() after "
            "prepare() and before calibrate(), and zero_grad() only after it"
        )
    return problem.gradient
