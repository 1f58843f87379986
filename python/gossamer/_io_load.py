# SPDX-License-Identifier: BSD-3-Clause
"""Loading a file into a model: what goes where is found first, then everything changes at once."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gossamer._convolution import Convolution
from gossamer._io_file import ModelFile
from gossamer._layers import find_layers
from gossamer._packing import (
    Decision,
    Report,
    Request,
    decide,
    decide_packed,
    plain_report,
    swap,
)
from gossamer.weight import SparseWeight

__all__ = ["CASTS", "LoadResult", "LoadStep", "prepare_load"]

CASTS = ("lossless", "any")


class LoadResult(NamedTuple):
    """Names that did not match; both are empty where `strict`.

    Attributes:
        missing: in the model and not in the file; these keep their values.
        unexpected: in the file and not in the model; these are not used.
    """

    missing: list[str]
    unexpected: list[str]


def prepare_load(
    model: nn.Module, file: ModelFile, request: Request, *, strict: bool, cast: str
) -> tuple[list[LoadStep], LoadResult]:
    """Everything that can fail: the steps that are left cannot, and the model is as it was.

    Args:
        model: any module.
        file: open until the steps are done.
        request: how packed weights are planned.
        strict: names must match exactly.
        cast: one of `CASTS`.

    Raises:
        ValueError: names, shapes or dtypes do not match (all are listed).
    """
    slots = _slots(model)
    matches, result = _match(slots, file, strict, cast)
    return [_prepare(slots[key], file, name, request) for key, name in matches.items()], result


@dataclass
class _Slot:
    """A parameter or buffer of the model, with every place that holds it."""

    value: Tensor
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    linear: bool = True
    transposed: bool = False
    obstacle: str | None = None
    bias: bool = False
    convolution: Convolution | None = None
    report: Report | None = None


def _slots(model: nn.Module) -> dict[int, _Slot]:
    state = model.state_dict(keep_vars=True)
    found = find_layers(model, values_follow=True)
    layers = {id(layer.module): layer for layer in found if layer.linear}
    slots: dict[int, _Slot] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):
            for key, value in store.items():
                name = f"{prefix}.{key}" if prefix else key
                if value is None or name not in state:
                    continue
                slot = slots.setdefault(id(value), _Slot(value))
                slot.places.append((module, key))
                slot.names.append(name)
                layer = layers.get(id(module)) if key == "weight" else None
                if layer is None:
                    slot.linear = False
                    continue
                slot.obstacle = slot.obstacle or layer.obstacle
                slot.transposed = layer.transposed
                slot.convolution = layer.convolution
                slot.bias |= getattr(module, "bias", None) is not None
                slot.report = slot.report or getattr(module, "gossamer_report", None)
    known = {name for slot in slots.values() for name in slot.names}
    for name in state:
        if name not in known:
            raise ValueError(
                f"'{name}' of the model's state_dict is no parameter or buffer of a module; load "
                "it apart"
            )
    return slots


def _match(
    slots: dict[int, _Slot], file: ModelFile, strict: bool, cast: str
) -> tuple[dict[int, str], LoadResult]:
    matches: dict[int, str] = {}
    missing: list[str] = []
    mismatched: list[str] = []
    lossy: list[str] = []
    for key, slot in slots.items():
        found = [name for name in map(file.resolve, slot.names) if name is not None]
        if not found:
            missing += slot.names
            continue
        matches[key] = found[-1]  # of several copies the last one counts, as in load_state_dict
        shape = file.shape(found[-1])
        if shape != tuple(slot.value.shape):
            mismatched.append(f"{found[-1]} (file {list(shape)}, model {list(slot.value.shape)})")
        dtype = file.dtype(found[-1])
        if cast == "lossless" and dtype and not _holds_all_of(slot.value.dtype, dtype):
            lossy.append(f"{found[-1]} (file {_word(dtype)}, model {_word(slot.value.dtype)})")
    names = {name for slot in slots.values() for name in slot.names}
    wanted = {file.resolve(name) for name in names}
    unexpected = sorted((file.plain | set(file.packed)) - wanted)
    faults = [f"shapes differ: {', '.join(mismatched)}"] if mismatched else []
    if lossy:
        faults.append(
            f"dtypes would lose values: {', '.join(lossy)}; convert the model with .to() or "
            "the file, or pass cast='any', which converts as load_state_dict does"
        )
    if strict:
        faults += [f"missing in the file: {', '.join(missing)}"] if missing else []
        faults += [f"not in the model: {', '.join(unexpected)}"] if unexpected else []
    if faults:
        hint = ""
        if any("parametrizations" in name for name in missing):
            hint = (
                "; the model has live masks or parametrizations: load before prepare(), or after "
                "squash_mask()"
            )
        elif any(".parametrizations." in f".{name}" for name in unexpected):
            hint = (
                "; it was saved with live masks: save after squash_mask(), or give the model masks "
                "first: gossamer.prune.attach_masks(model, safetensors.torch.load_file(path))"
            )
        elif strict and not mismatched and not lossy:
            hint = "; strict=False loads what matches"
        raise ValueError(f"'{file.path}' does not fit the model: {'; '.join(faults)}{hint}")
    return matches, LoadResult(missing, unexpected)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _holds_all_of(target: torch.dtype, source: torch.dtype) -> bool:
    """Whether each value of `source` is one of `target`, of the same kind of number."""
    if target == source:
        return True
    kinds = [(d.is_floating_point, d.is_complex, d == torch.bool) for d in (target, source)]
    if kinds[0] != kinds[1] or target.is_complex:
        return False
    if target.is_floating_point:
        wide, narrow = torch.finfo(target), torch.finfo(source)
        return wide.eps <= narrow.eps and wide.tiny <= narrow.tiny and wide.max >= narrow.max
    into, out_of = torch.iinfo(target), torch.iinfo(source)
    return into.min <= out_of.min and into.max >= out_of.max


class LoadStep:
    """One change of the model, prepared: calling it cannot fail."""

    def __init__(self, slot: _Slot, value: Tensor | None, report: Report | None) -> None:
        self.slot = slot
        self.value = value  # a new parameter, or what is copied into the old one
        self.report = report

    def __call__(self) -> None:
        slot = self.slot
        assert self.value is not None
        if isinstance(self.value, nn.Parameter):
            for module, key in slot.places:
                swap(module, key, self.value)
        elif slot.value.device.type == "meta":
            for module, key in slot.places:
                module._buffers[key] = self.value
        else:
            slot.value.copy_(self.value)
        if self.report is not None:
            for module, _ in slot.places:
                module.gossamer_report = copy.deepcopy(self.report)  # type: ignore[assignment]


def _prepare(slot: _Slot, file: ModelFile, name: str, request: Request) -> LoadStep:
    """Reads, converts and plans one tensor; everything that can fail happens here."""
    old = slot.value
    trainable = old.requires_grad
    if isinstance(old, SparseWeight):
        trainable = bool(slot.report and slot.report["trainable"])
    if name not in file.packed:
        values = file.tensor(name)
        if not isinstance(old, SparseWeight):
            report = plain_report(slot.obstacle or "the file holds it dense")
            return LoadStep(slot, _for_plain(old, values), report if slot.linear else None)
        values = _as_images(values.to(old.dtype), request)
        if old.scale is not None:
            request = replace(
                request, quantize=old.quantization, input_scale=old.input_scale or 0.0
            )
        decision = decide(
            values,
            name,
            request,
            transposed=old.transposed,
            bias=slot.bias,
            convolution=slot.convolution,
        )
        return _finish(slot, values, decision, trainable)
    weight = file.packed[name]
    obstacle = _packed_obstacle(slot, weight)
    if obstacle is not None:
        return _finish(slot, weight.to_dense(), Decision(None, plain_report(obstacle)), trainable)
    if weight.dtype != old.dtype:
        cast_weight = weight.to(old.dtype)
        assert isinstance(cast_weight, SparseWeight)
        weight = cast_weight
    values = _as_images(weight.to_dense(), request)
    decision = decide_packed(weight, values, request, bias=slot.bias, convolution=slot.convolution)
    return _finish(slot, values, decision, trainable)


def _as_images(values: Tensor, request: Request) -> Tensor:
    """A convolution's weight in the memory format of the model's images, which no file holds."""
    if values.dim() != 4 or not request.channels_last:
        return values
    return values.contiguous(memory_format=torch.channels_last)


def _packed_obstacle(slot: _Slot, weight: SparseWeight) -> str | None:
    if not slot.linear:
        return "its place in the model is the weight of no linear layer or convolution"
    if slot.obstacle is not None:
        return slot.obstacle
    if weight.transposed != slot.transposed:
        return "the file holds it in the other orientation"
    return None


def _for_plain(old: Tensor, values: Tensor) -> Tensor:
    """What a plain tensor gets: values to copy, or a new parameter where it had no memory."""
    if old.device.type == "meta" and isinstance(old, nn.Parameter):
        return nn.Parameter(values.to(old.dtype).clone(), requires_grad=old.requires_grad)
    if old.device.type == "meta":
        return values.to(old.dtype).clone()
    return values


def _finish(slot: _Slot, values: Tensor, decision: Decision, trainable: bool) -> LoadStep:
    report = decision.report if slot.linear else None
    if decision.weight is not None:
        decision.report["trainable"] = trainable
        return LoadStep(slot, nn.Parameter(decision.weight, requires_grad=False), report)
    if isinstance(slot.value, SparseWeight):
        return LoadStep(slot, nn.Parameter(values.clone(), requires_grad=trainable), report)
    return LoadStep(slot, _for_plain(slot.value, values), report)
