# SPDX-License-Identifier: BSD-3-Clause
"""Gossamer makes neural networks sparse, and sparse networks fast.

import gossamer as gs

gs.sparsify_(model)                  # packs what is sparse, where that is faster on this machine
print(gs.explain(model))             # per layer: pattern, bytes, kernel, speed-up, why
gs.save(model, "model.safetensors")  # and gs.load_into(model, "model.safetensors")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gossamer.config import (
    BlockSparseWeightConfig,
    Float8DynamicActivationSemiSparseWeightConfig,
    Int8DynamicActivationSemiSparseWeightConfig,
    Int8DynamicActivationSparseWeightConfig,
    Int8StaticActivationSparseWeightConfig,
    SemiSparseWeightConfig,
    SparseConfig,
)
from gossamer.explanation import BucketPlan, Explanation, LayerReport, explain
from gossamer.fusion import fuse_
from gossamer.host import Kernel, Machine, kernels, machine
from gossamer.input_scales import calibrate_input_scales
from gossamer.io import LoadResult, load_into, save
from gossamer.model_report import Outcome, report
from gossamer.prune import (
    ALPS,
    RIA,
    Best,
    GradualMagnitude,
    LotteryTicket,
    Magnitude,
    Movement,
    OneShot,
    Random,
    SparseGPT,
    Sparsifier,
    Supermask,
    Taylor,
    Wanda,
)
from gossamer.sparsify import desparsify_, sparsify_
from gossamer.version import __version__
from gossamer.weight import SparseWeight, conv2d, linear

if TYPE_CHECKING:
    from gossamer.fusion_compile import fusion_pass

__all__ = [
    "ALPS",
    "RIA",
    "Best",
    "BlockSparseWeightConfig",
    "BucketPlan",
    "Explanation",
    "Float8DynamicActivationSemiSparseWeightConfig",
    "GradualMagnitude",
    "Int8DynamicActivationSemiSparseWeightConfig",
    "Int8DynamicActivationSparseWeightConfig",
    "Int8StaticActivationSparseWeightConfig",
    "Kernel",
    "LayerReport",
    "LoadResult",
    "LotteryTicket",
    "Machine",
    "Magnitude",
    "Movement",
    "OneShot",
    "Outcome",
    "Random",
    "SemiSparseWeightConfig",
    "SparseConfig",
    "SparseGPT",
    "SparseWeight",
    "Sparsifier",
    "Supermask",
    "Taylor",
    "Wanda",
    "__version__",
    "calibrate_input_scales",
    "conv2d",
    "desparsify_",
    "explain",
    "fuse_",
    "fusion_pass",
    "kernels",
    "linear",
    "load_into",
    "machine",
    "report",
    "save",
    "sparsify_",
]


def __getattr__(name: str) -> Any:
    # The pass is inductor's kind of object, and importing inductor takes a second.
    if name == "fusion_pass":
        from gossamer.fusion_compile import fusion_pass

        return fusion_pass
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
