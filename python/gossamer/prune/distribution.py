# SPDX-License-Identifier: BSD-3-Clause
"""How one sparsity for a model becomes one for each layer.

    sparsifier.prepare(model, lamp(model, "unstructured:0.9"))

Each function returns a config for `Sparsifier.prepare`: full names of weights to patterns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.prune.batches import Forward, each_batch, run_batch
from gossamer.prune.capture import evaluating, watch_inputs
from gossamer.prune.layer import LayerForm
from gossamer.prune.pattern import parse_pattern, pattern_with
from gossamer.prune.targets import Config, choose, find_targets, one_shot_config

__all__ = ["erk", "lamp", "owl", "uniform"]


def uniform(
    model: nn.Module, pattern: str, config: Config = None, *, rounding: str = "nearest"
) -> dict[str, str]:
    """The same sparsity for each weight.

    Args:
        model: read only.
        pattern: any pattern of the grammar; `unstructured` or `fanin` with `rounding="down"`.
        config: which weights, as for `Sparsifier.prepare`, but that None leaves the layer that
            gives logits and routers dense, as `OneShot.prepare` does; their own patterns are not
            read.
        rounding: how many zeros a row of a linear layer or convolution gets. "nearest" rounds S·in
            as all patterns do; "down" cuts it off, as the published codes of Wanda and magnitude
            pruning by row do, so that 70 % of 144 inputs are 100 zeros and not 101. Meant for
            scope "row": to compare with their figures.

    Raises:
        ValueError: nothing is chosen, or there is no such rounding of the pattern.
    """
    weights = _chosen(model, config)
    if rounding == "nearest":
        return dict.fromkeys(weights, pattern)
    fields = parse_pattern(pattern)
    if rounding != "down" or fields.kind not in ("unstructured", "fanin"):
        raise ValueError(
            f"rounding {rounding!r} of pattern '{pattern}': 'nearest' is accepted, and 'down' for "
            "unstructured:S and fanin:S"
        )
    targets, found = find_targets(model), {}
    for name, weight in weights.items():
        form = LayerForm.of(targets[name].module, weight)
        inputs = form.matrices(weight).shape[-1]
        # What is meant by 0.7·10 is 7, whatever the product of the two floats.
        zeros = math.floor(fields.sparsity * inputs * (1 + 1e-12))
        found[name] = pattern_with(pattern, zeros / inputs)
    return found


def erk(model: nn.Module, pattern: str, config: Config = None) -> dict[str, str]:
    """Erdős–Rényi-Kernel: density in proportion to the sum of a weight's sides over their product.

    Small layers stay denser. Layers that would be more than dense are dense, and the others pay
    for it (Evci et al. 2020, arXiv:1911.11134, section 3).

    Args:
        model: read only.
        pattern: `unstructured`, `block` or `fanin`, with the sparsity of all weights together.
        config: as for `uniform`.

    Raises:
        ValueError: the pattern has no sparsity of its own, or nothing is chosen.
    """
    sparsity = _own_sparsity(pattern)
    weights = _chosen(model, config)
    raw = {name: sum(w.shape) / w.numel() for name, w in weights.items()}
    budget = (1.0 - sparsity) * sum(w.numel() for w in weights.values())
    dense: set[str] = set()
    while True:
        left = budget - sum(weights[name].numel() for name in dense)
        share = sum(raw[name] * w.numel() for name, w in weights.items() if name not in dense)
        epsilon = max(left, 0.0) / share if share else 0.0
        over = {name for name in weights if name not in dense and epsilon * raw[name] > 1}
        if not over:
            break
        dense |= over
    density = {name: 1.0 if name in dense else epsilon * raw[name] for name in weights}
    return _patterns(pattern, density)


def lamp(model: nn.Module, pattern: str, config: Config = None) -> dict[str, str]:
    """What a threshold over the LAMP scores of all weights leaves of each.

    A weight's score is its square over the sum of the squares of its layer that are not smaller
    (Lee et al. 2021, arXiv:2010.07611, equation 4), so that no layer is ever emptied.

    Args:
        model: read only.
        pattern: as for `erk`.
        config: as for `uniform`.

    Raises:
        ValueError: as `erk`, or a weight holds NaN or infinity.
    """
    sparsity = _own_sparsity(pattern)
    weights = _chosen(model, config)
    _check_finite("lamp", weights)
    scores = [
        torch.ops.gossamer.lamp_scores(w.detach().cpu().reshape(1, -1)) for w in weights.values()
    ]
    masks = torch.ops.gossamer.select_masks(scores, f"unstructured:{sparsity}", "global")
    kept = [float(mask.double().mean()) for mask in masks]
    return _patterns(pattern, dict(zip(weights, kept, strict=True)))


def owl(
    model: nn.Module,
    pattern: str,
    batches: Iterable[Any],
    config: Config = None,
    *,
    outlier: float = 5.0,
    spread: float = 0.08,
    group: Callable[[str], str] | None = None,
    forward: Forward = run_batch,
) -> dict[str, str]:
    """Layers with more outliers keep more (Yin et al. 2024, arXiv:2310.05175, section 3).

    A layer's outliers are its Wanda scores |w|·‖x_j‖₂ above `outlier` times their mean. Densities
    lie `2·spread` apart at most, in order of the share of outliers, around that of the pattern.

    Args:
        model: read only; runs once over the batches in evaluation mode.
        pattern: as for `erk`.
        batches: as for `OneShot.calibrate`.
        config: as for `uniform`.
        outlier: how many times the mean makes an outlier.
        spread: λ of the paper.
        group: from a weight's full name to the name of what shares one density, e.g. its block;
            None gives each weight its own.
        forward: as for `OneShot.calibrate`.

    Raises:
        ValueError: as `erk`; no batch reaches a layer, or a weight or inputs hold NaN or infinity.
    """
    sparsity = _own_sparsity(pattern)
    weights = _chosen(model, config)
    _check_finite("owl", weights)
    shares = _outliers(model, weights, batches, outlier, forward)
    names: dict[str, list[str]] = {}
    for name in weights:
        names.setdefault(group(name) if group else name, []).append(name)
    by_group = {key: sum(shares[n] for n in own) / len(own) for key, own in names.items()}
    low, high = min(by_group.values()), max(by_group.values())
    width = high - low or 1.0
    rank = {
        n: 2 * spread * (by_group[key] - low) / width for key, own in names.items() for n in own
    }
    elements = sum(w.numel() for w in weights.values())
    mean = sum(rank[name] * w.numel() for name, w in weights.items()) / elements
    density = {n: min(max(1 - sparsity + rank[n] - mean, 0.0), 1.0) for n in weights}
    return _patterns(pattern, density)


def _outliers(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    batches: Iterable[Any],
    outlier: float,
    forward: Forward,
) -> dict[str, float]:
    """The fraction of each weight's Wanda scores that are outliers."""
    targets = find_targets(model)
    layers = {name: targets[name].module for name in weights}
    forms = {name: LayerForm.of(layers[name], weights[name]) for name in weights}
    squares: dict[str, Tensor] = {}
    index = 0

    def add(name: str, x: Tensor) -> None:
        rows = forms[name].rows(layers[name], x).double().square().sum(dim=1, keepdim=True)
        if not bool(rows.isfinite().all()):
            raise ValueError(
                f"owl: '{name}': its inputs hold NaN or infinity in batch {index}; look for the "
                "layer before it that overflows, or run in float32"
            )
        squares[name] = squares[name] + rows if name in squares else rows

    with evaluating(model), watch_inputs(model, layers, add):
        for batch in each_batch("owl", batches):
            forward(model, batch)
            index += 1
    missing = [name for name in weights if name not in squares]
    if missing:
        raise ValueError(
            f"owl: no batch reaches {', '.join(map(repr, missing))}; pass batches that use all "
            "layers, or leave these out of the config"
        )
    found = {}
    for name, weight in weights.items():
        scores = forms[name].matrices(weight.detach().abs().double()) * squares[name].sqrt()
        found[name] = float((scores > outlier * scores.mean()).double().mean())
    return found


def _chosen(model: nn.Module, config: Config) -> dict[str, Tensor]:
    config = one_shot_config(model) if config is None else config
    chosen = [target for target, _ in choose(find_targets(model), config)]
    for target in chosen:
        obstacle = target.obstacle()
        if obstacle:
            raise ValueError(f"'{target.fqn}' {obstacle}")
    return {target.fqn: target.weight for target in chosen if target.weight is not None}


def _check_finite(caller: str, weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        if not bool(weight.detach().isfinite().all()):
            raise ValueError(
                f"{caller}: '{name}' holds NaN or infinity, which has no place among sizes; load "
                "weights that are finite, or leave it out of the config"
            )


def _own_sparsity(pattern: str) -> float:
    fields = parse_pattern(pattern)
    if fields.grouped:
        raise ValueError(
            f"pattern '{pattern}': its sparsity follows from its numbers, the same in each layer; "
            "unstructured:S, block:RxC:S and fanin:S are accepted"
        )
    return fields.sparsity


def _patterns(pattern: str, density: Mapping[str, float]) -> dict[str, str]:
    return {name: pattern_with(pattern, 1.0 - kept) for name, kept in density.items()}
