# SPDX-License-Identifier: BSD-3-Clause
"""Sparsifiers: what turns dense weights into masks, over one or many steps.

pruner = gossamer.GradualMagnitude("unstructured:0.9", begin_step=0, end_step=600)
pruner.prepare(model)      # masks become buffers of the model
...                        # train; pruner.step() after each optimizer step
pruner.squash_mask()       # plain weights with zeros
"""

from __future__ import annotations

from gossamer.prune.batchnorm import recalibrate_batchnorm
from gossamer.prune.calibration_report import (
    BlockResult,
    CalibrationReport,
    LayerResult,
    show_progress,
)
from gossamer.prune.checkpoint import attach_masks, squash_masks
from gossamer.prune.distribution import erk, lamp, owl, uniform
from gossamer.prune.given import ByMovement, ByTaylor, Existing
from gossamer.prune.interop import from_torch_prune, to_torch_prune
from gossamer.prune.mask import Mask, masked_parameters
from gossamer.prune.methods import GradualMagnitude, Magnitude, Random, Taylor
from gossamer.prune.named_methods import ALPS, RIA, Best, SparseGPT, Wanda
from gossamer.prune.one_shot import OneShot
from gossamer.prune.parts import (
    Admm,
    ByMagnitude,
    ByObs,
    ByRandom,
    ByRIA,
    ByWanda,
    LeastSquares,
    ObsSweep,
    Part,
    Score,
    Swap,
)
from gossamer.prune.pattern import CustomPattern
from gossamer.prune.problem import LayerProblem
from gossamer.prune.reconstruction import Reconstruction
from gossamer.prune.report import density, sparsity_report
from gossamer.prune.schedule import cubic_sparsity, register_schedule
from gossamer.prune.scored_mask import ScoredMask
from gossamer.prune.sensitivity import Sensitivity, measure_sensitivity
from gossamer.prune.sparsifier import Sparsifier
from gossamer.prune.statistics import save_statistics
from gossamer.prune.training import LotteryTicket, Movement, Supermask
from gossamer.prune.transposable import Transposable

__all__ = [
    "ALPS",
    "RIA",
    "Admm",
    "Best",
    "BlockResult",
    "ByMagnitude",
    "ByMovement",
    "ByObs",
    "ByRIA",
    "ByRandom",
    "ByTaylor",
    "ByWanda",
    "CalibrationReport",
    "CustomPattern",
    "Existing",
    "GradualMagnitude",
    "LayerProblem",
    "LayerResult",
    "LeastSquares",
    "LotteryTicket",
    "Magnitude",
    "Mask",
    "Movement",
    "ObsSweep",
    "OneShot",
    "Part",
    "Random",
    "Reconstruction",
    "Score",
    "ScoredMask",
    "Sensitivity",
    "SparseGPT",
    "Sparsifier",
    "Supermask",
    "Swap",
    "Taylor",
    "Transposable",
    "Wanda",
    "attach_masks",
    "cubic_sparsity",
    "density",
    "erk",
    "from_torch_prune",
    "lamp",
    "masked_parameters",
    "measure_sensitivity",
    "owl",
    "recalibrate_batchnorm",
    "register_schedule",
    "save_statistics",
    "show_progress",
    "sparsity_report",
    "squash_masks",
    "to_torch_prune",
    "uniform",
]
