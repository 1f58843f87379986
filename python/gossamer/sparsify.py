# SPDX-License-Identifier: BSD-3-Clause
"""`sparsify_` packs a model's sparse layers, `desparsify_` makes them dense again."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace

from torch import nn

from gossamer._layers import Layer, find_layers, is_linear
from gossamer._packing import (
    Decision,
    Report,
    Request,
    decide,
    is_channels_last,
    plain_report,
    swap,
)
from gossamer.config import MEMORIES, PLANS, Config, SparseConfig, Wishes, check_choice
from gossamer.weight import SparseWeight

__all__ = ["desparsify_", "sparsify_"]

FilterFn = Callable[[nn.Module, str], bool]


def sparsify_(
    model: nn.Module,
    config: Config | None = None,
    filter_fn: FilterFn | None = None,
    *,
    plan: str = "measure",
    memory: str = "default",
    layout: str | None = None,
) -> nn.Module:
    """Packs the layers whose weights are sparse, where that is faster on this machine.

    Looks at every `nn.Linear` and `nn.Conv2d` (and subclasses that keep their forward) and at the
    `Conv1D` of Hugging Face's GPT-2. Convolutions are packed in float32, with one group and padded
    with zeros; they are planned for the memory format that their weight has. A layer stays the
    plain module it was where its weight is not sparse (under 25 % zeros, unless a pattern is asked
    for), where dense is faster, or where something else needs the dense weight; `explain(model)`
    says which and why. A packed weight is frozen; gradients still flow to the layer's input and
    bias. Nothing is pruned.

    Args:
        model: changed in place. A single layer is a model too.
        config: None infers each layer's pattern from its zeros. A pattern's text, `SparseConfig`,
            `SemiSparseWeightConfig`, `BlockSparseWeightConfig`,
            `Int8DynamicActivationSparseWeightConfig` or another config of `gossamer.config` applies
            to every layer that is selected. A dict gives each glob of layer names a config of its
            own (or None); the first that matches decides, layers that none matches stay plain.
        filter_fn: called with each of these layers and its name; False leaves it plain.
        plan: "measure" times the best candidates against dense (results are cached between
            processes), "model" asks the cost model alone and is deterministic.
        memory: "default" keeps the fastest layout, or two where few and many tokens want different
            ones; that may take more than the saved format, and at 50 % zeros in float32 more than
            dense (1.13 times). "speed" may keep a dense copy too, which runs at token counts where
            it is faster, and holds two layouts whatever their size.
            "low" keeps one layout, of those that take at most 1.15 times the bytes of the saved
            format. On a GPU, where few layers win at every token count, "default" keeps the copy as
            "speed" does, and only "low" does without. Where a copy runs, NaN and infinity in x at
            a pruned column give NaN, as in any dense layer; in a packed float layer a pruned weight
            adds nothing.
        layout: packs in this layout without asking whether it is faster; "format" is the one that
            is saved.

    Returns:
        The model.

    Raises:
        ValueError: a weight breaks the pattern that it was said to have (the message names layer,
            row and columns), or an argument does not exist. The model is as it was.
        TypeError: `model` or `config` is of another type, or `filter_fn` does not take a layer and
            its name.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}: an nn.Module is accepted")
    check_choice("plan", plan, PLANS)
    check_choice("memory", memory, MEMORIES)
    wishes = Wishes(config)
    layers = [layer for layer in find_layers(model) if layer.linear]
    wishes.check_used([layer.name for layer in layers])

    requests: dict[str, Request | str] = {}
    last = is_channels_last(model)
    for layer in layers:
        request = _request(layer, wishes.of(layer.name), filter_fn, plan, memory, layout)
        if isinstance(request, Request):
            request = replace(request, channels_last=last)
        requests[layer.name] = request
    _untangle(layers, requests)

    # Everything that can fail comes first, so that an exception leaves the model as it was.
    decisions: dict[int, Decision] = {}
    results: list[tuple[Layer, SparseWeight | nn.Parameter | None, Report]] = []
    shared: dict[int, nn.Parameter] = {}
    for layer in layers:
        request = requests[layer.name]
        if layer.obstacle is None and isinstance(layer.weight, SparseWeight):
            continue
        if isinstance(request, str):
            results.append((layer, None, plain_report(request)))
            continue
        key = id(layer.module._parameters["weight"])
        if key not in decisions:
            decisions[key] = _decide(layer, request, layers)
            packed = decisions[key].weight
            if packed is not None:
                shared[key] = nn.Parameter(packed, requires_grad=False)
        results.append((layer, shared.get(key), copy.deepcopy(decisions[key].report)))

    for layer, weight, report in results:
        if weight is not None:
            swap(layer.module, "weight", weight)
        layer.module.gossamer_report = report  # type: ignore[assignment]
    return model


def _request(
    layer: Layer,
    settings: SparseConfig | None,
    filter_fn: FilterFn | None,
    plan: str,
    memory: str,
    layout: str | None,
) -> Request | str:
    """What to do with a layer, or the reason why it stays plain."""
    if filter_fn is not None and not _is_selected(filter_fn, layer):
        return "not selected by filter_fn"
    if settings is None:
        return "no entry of config matches its name"
    if layer.obstacle is not None:
        return layer.obstacle
    scale = settings.input_scale((layer.name, *layer.tied))
    if settings.input_scales is not None and scale is None:
        return (
            "input_scales has none for it: it was not called, or saw nothing but zeros, when they "
            "were calibrated"
        )
    return Request(
        settings.pattern,
        settings.plan or plan,
        settings.memory or memory,
        layout,
        settings.quantize,
        scale or 0.0,
    )


def _is_selected(filter_fn: FilterFn, layer: Layer) -> bool:
    try:
        inspect.signature(filter_fn).bind(layer.module, layer.name)
    except ValueError:
        pass  # built-in callables without a signature: the call says what they take
    except TypeError as error:
        raise TypeError(
            f"filter_fn cannot be called with a layer and its name ({error}); give it two "
            "parameters, e.g. lambda module, name: name != 'head'"
        ) from None
    return bool(filter_fn(layer.module, layer.name))


def _untangle(layers: list[Layer], requests: dict[str, Request | str]) -> None:
    """A shared weight is packed for all of its layers or for none."""
    plain = [layer for layer in layers if isinstance(requests[layer.name], str)]
    for layer in layers:
        if isinstance(requests[layer.name], str):
            continue
        for other in plain:
            if other.name in layer.tied:
                requests[layer.name] = (
                    f"its weight is shared with '{other.name}', which stays plain: "
                    f"{requests[other.name]}"
                )
                break
        for name in layer.tied:
            wish = requests.get(name)
            mine = requests[layer.name]
            if isinstance(wish, Request) and isinstance(mine, Request) and wish != mine:
                raise ValueError(
                    f"config: '{layer.name}' and '{name}' share one weight but are to be packed "
                    f"differently ({mine} and {wish}); give both the same config"
                )


def _decide(layer: Layer, request: Request, layers: list[Layer]) -> Decision:
    weight = layer.weight
    assert weight is not None
    users = [other.module for other in layers if other.name in layer.tied]
    bias = any(getattr(module, "bias", None) is not None for module in (layer.module, *users))
    decision = decide(
        weight,
        layer.name or "weight",
        request,
        transposed=layer.transposed,
        bias=bias,
        convolution=layer.convolution,
    )
    if decision.weight is not None:
        decision.report["trainable"] = weight.requires_grad
        if layer.tied:
            decision.report["reason"] += f"; shared with {', '.join(layer.tied)}"
    return decision


def desparsify_(model: nn.Module) -> nn.Module:
    """Makes every packed weight a plain dense parameter again.

    The values are exact, with zeros where they were pruned. A weight that was trainable when it was
    packed is trainable again; layers that shared a weight share it still.

    Args:
        model: changed in place.

    Returns:
        The model.
    """
    dense: dict[int, nn.Parameter] = {}
    for module in model.modules():
        report = getattr(module, "gossamer_report", None)
        for key, value in list(module._parameters.items()):
            if not isinstance(value, SparseWeight):
                continue
            if id(value) not in dense:
                trainable = bool(report and report["trainable"])
                dense[id(value)] = nn.Parameter(value.to_dense(), requires_grad=trainable)
            swap(module, key, dense[id(value)])
        if report is not None and is_linear(module):
            del module.gossamer_report
    return model
