# SPDX-License-Identifier: BSD-3-Clause
"""New running statistics for BatchNorm after weights were dropped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gossamer.prune.batches import Forward, each_batch, run_batch
from gossamer.prune.capture import evaluating
from gossamer.prune.ranks import Ranks

__all__ = ["average_statistics", "batchnorm_layers", "recalibrate_batchnorm"]


def recalibrate_batchnorm(
    model: nn.Module, batches: Iterable[Any], *, forward: Forward = run_batch
) -> nn.Module:
    """Takes the means and variances of every BatchNorm layer anew, averaged over batches.

    For masks without corrected weights, which move the means that BatchNorm expects. Weights that
    were corrected with the target "dense-target" need it no more.

    Args:
        model: its running statistics change; it comes back in the mode it had, and as it was where
            this raises.
        batches: as for `OneShot.calibrate`; run once.
        forward: as for `OneShot.calibrate`.

    Returns:
        The model.

    Raises:
        ValueError: there is no such layer, no batch, or a batch gives a layer NaN or infinity.
    """
    layers = batchnorm_layers(model)
    saved = [({name: b.clone() for name, b in m.named_buffers()}, m.momentum) for m in layers]
    names = {id(module): name for name, module in model.named_modules()}
    seen = 0
    try:
        with evaluating(model):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # The plain mean over batches.
                layer.training = True
            for batch in each_batch("recalibrate_batchnorm", batches):
                forward(model, batch)
                _check_finite(layers, names, seen)
                seen += 1
        if not seen:
            raise ValueError("recalibrate_batchnorm: there are no batches; pass at least one")
    except BaseException:
        for layer, (buffers, _) in zip(layers, saved, strict=True):
            _restore(layer, buffers)
        raise
    finally:
        for layer, (_, momentum) in zip(layers, saved, strict=True):
            layer.momentum = momentum
    return model


def average_statistics(model: nn.Module, ranks: Ranks, batches: int) -> None:
    """Makes running statistics the means over the batches of all ranks.

    Args:
        model: whose statistics are means over batches of this rank.
        ranks: all of them.
        batches: how many this one has.
    """
    whole = sum(ranks.each(batches))
    for layer in batchnorm_layers(model):
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None:
                statistic.mul_(batches / whole)
                ranks.add_(statistic)
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.fill_(whole)


def batchnorm_layers(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm layers that keep running statistics.

    Raises:
        ValueError: there is none.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    ]
    if not layers:
        raise ValueError(
            "recalibrate_batchnorm: the model has no BatchNorm layer with running statistics"
        )
    return layers


def _check_finite(layers: Sequence[_BatchNorm], names: Mapping[int, str], index: int) -> None:
    for layer in layers:
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None and not bool(statistic.isfinite().all()):
                raise ValueError(
                    f"recalibrate_batchnorm: '{names[id(layer)]}': its inputs hold NaN or infinity "
                    f"in batch {index}, or overflow its statistics; look for the layer before it "
                    "that overflows, or run in float32"
                )


def _restore(layer: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, value in buffers.items():
        layer.get_buffer(name).copy_(value)
