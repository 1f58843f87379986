# SPDX-License-Identifier: BSD-3-Clause
"""Models in safetensors files: packed weights as arrays (docs/formats.md), the rest as it is."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer import _ops
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
from gossamer.config import MEMORIES, PLANS, check_choice
from gossamer.weight import SparseWeight

__all__ = ["LoadResult", "load_into", "save"]

_VERSION_KEY = "gossamer.version"
_WEIGHT_PREFIX = "gossamer.weight."
_FORMAT_VERSION = 1
_INFO_KEYS = ("format", "pattern", "dtype", "shape", "transposed", "version")
_ARRAYS = {
    "nm": ("values", "indices"),
    "bitmask": ("bitmask", "values", "row_offsets"),
    "bsr": ("block_row_offsets", "block_cols", "values"),
    "fanin": ("values", "cols"),
}


# --- Writing --------------------------------------------------------------------------------------


def save(model: nn.Module, path: str | os.PathLike[str], *, packed: bool = True) -> None:
    """Writes a model's parameters and persistent buffers to a safetensors file.

    A packed weight is written in its format (docs/formats.md), whatever layout it is held in.
    Tensors that are shared are written once; the metadata maps each further name to the first one,
    as Hugging Face's `save_model` does. The file appears whole or not at all.

    Args:
        model: any module.
        path: of the file; an existing one is replaced when the new one is complete.
        packed: False writes packed weights as dense ones with zeros, which anything can read.

    Raises:
        ValueError: the model holds something that such a file cannot (named in the message).
        OSError: the file cannot be written; the old one is as it was.
    """
    tensors, metadata = _flatten(model, packed)
    _write(Path(os.path.realpath(path)), tensors, metadata)


def _flatten(model: nn.Module, packed: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    first_name: dict[tuple[Any, ...], str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        _check_writable(name, value)
        key = _identity(value)
        if key in first_name:
            metadata[name] = first_name[key]
            continue
        first_name[key] = name
        if not isinstance(value, SparseWeight):
            tensors[name] = value.detach()
        elif not packed:
            tensors[name] = value.to_dense()
        else:
            metadata[_VERSION_KEY] = str(_FORMAT_VERSION)
            metadata[_WEIGHT_PREFIX + name] = _add_packed(tensors, name, value)
    return _separate(tensors), metadata


def _check_writable(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(
            f"'{name}' is a {type(value).__name__}: safetensors files hold tensors only; save it "
            "elsewhere or leave it out of the state_dict"
        )
    if value.device.type == "meta":
        raise ValueError(f"'{name}' is on the meta device and has no values; load them first")
    if not isinstance(value, SparseWeight) and value.layout is not torch.strided:
        raise ValueError(
            f"'{name}' is {value.layout}: strided tensors are accepted; convert it with .to_dense()"
        )


def _identity(value: Tensor) -> tuple[Any, ...]:
    """Equal for two tensors that are the same memory seen the same way."""
    if isinstance(value, SparseWeight):
        return ("packed", value.packed.data_ptr(), value.transposed)
    if value.numel() == 0:
        return ("empty", id(value))
    return (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride())


def _add_packed(tensors: dict[str, Tensor], name: str, weight: SparseWeight) -> str:
    canonical = torch.ops.gossamer.convert(weight.packed, "format")
    info = _ops.info(canonical)
    arrays = torch.ops.gossamer.format_arrays(canonical)
    for array, tensor in zip(info["arrays"], arrays, strict=True):
        tensors[f"{name}.{array['name']}"] = tensor
    info = {**info, "transposed": weight.transposed, "version": _FORMAT_VERSION}
    return json.dumps({key: info[key] for key in _INFO_KEYS}, separators=(",", ":"))


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no memory: what the file format can hold."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.contiguous()
        if plain.numel() and plain.untyped_storage().data_ptr() in seen:
            plain = plain.clone()
        seen.add(plain.untyped_storage().data_ptr())
        tensors[name] = plain
    return tensors


def _write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes beside the target, syncs, and renames."""
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
        )
        os.close(handle)
        save_file(tensors, temporary, metadata)
        os.chmod(temporary, _mode(target))
        _sync(temporary)
        os.replace(temporary, target)
        temporary = None
        _sync(str(target.parent))
    except (OSError, SafetensorError) as error:
        text = f"'{target}' could not be written: {error}; what was there before is unchanged"
        raise OSError(getattr(error, "errno", None) or 0, text) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _mode(target: Path) -> int:
    """The old file's permissions, or what a new file gets."""
    if target.exists():
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- Reading --------------------------------------------------------------------------------------


class LoadResult(NamedTuple):
    """Names that did not match; both are empty where `strict`.

    Attributes:
        missing: in the model and not in the file; these keep their values.
        unexpected: in the file and not in the model; these are not used.
    """

    missing: list[str]
    unexpected: list[str]


def load_into(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    plan: str = "measure",
    memory: str = "default",
    layout: str | None = None,
) -> LoadResult:
    """Loads a safetensors file into a model of the same architecture, dense or packed.

    A packed weight of the file is laid out and planned for this machine and takes the parameter's
    place; where dense is faster here, or where something needs the dense weight, its values are
    copied into the plain parameter instead. A dense weight goes into a plain parameter as it is;
    where the model holds a packed one, it is packed anew if its zeros are worth it.
    `explain(model)` says what was done.

    Args:
        model: changed in place, and only when the whole file has been read and found right.
        path: of a file that `save`, the gossamer command, or anything that writes safetensors made.
        strict: names must match exactly; False loads those that do.
        plan: "measure" or "model", as for `sparsify_`.
        memory: "default" or "speed", as for `sparsify_`.
        layout: as for `sparsify_`.

    Returns:
        The names that did not match.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or names or shapes do not match (all are listed).
    """
    check_choice("plan", plan, PLANS)
    check_choice("memory", memory, MEMORIES)
    request = Request(plan=plan, memory=memory, layout=layout)
    with torch.no_grad(), _open(Path(path)) as file:
        slots = _slots(model)
        matches, result = _match(slots, file, strict)
        steps = [_prepare(slots[key], file, name, request) for key, name in matches.items()]
        for step in steps:
            step()
    return result


@dataclass
class _File:
    """An open file: its plain tensors, its packed weights, and the further names of shared ones."""

    path: Path
    handle: Any
    metadata: dict[str, str]
    plain: set[str] = field(default_factory=set)
    packed: dict[str, SparseWeight] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.plain or name in self.packed

    def resolve(self, name: str) -> str | None:
        """The name under which the file holds `name`, None where it does not."""
        if name in self:
            return name
        first = self.metadata.get(name)
        return first if first is not None and first in self else None

    def shape(self, name: str) -> tuple[int, ...]:
        if name in self.packed:
            return tuple(self.packed[name].shape)
        return tuple(self.handle.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        try:
            return self.handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{self.path}': tensor '{name}' cannot be read: {error}") from error


@contextlib.contextmanager
def _open(path: Path) -> Iterator[_File]:
    if not path.is_file():
        raise FileNotFoundError(f"'{path}' is not there, or is no file")
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a valid safetensors file: {error}") from error
    with handle:
        file = _File(path, handle, dict(handle.metadata() or {}))
        file.plain = set(handle.keys())
        _read_packed(file)
        yield file


def _read_packed(file: _File) -> None:
    for key, text in file.metadata.items():
        if key.startswith(_WEIGHT_PREFIX):
            name = key.removeprefix(_WEIGHT_PREFIX)
            info = _parse_info(file, name, text)
            file.packed[name] = _read_weight(file, name, info)
    for name, weight in file.packed.items():
        if name in file.plain:
            raise ValueError(
                f"'{file.path}' holds '{name}' twice, as a plain tensor and as a packed weight"
            )
        file.plain -= {f"{name}.{array}" for array in _ARRAYS[_ops.info(weight.packed)["format"]]}


def _parse_info(file: _File, name: str, text: str) -> dict[str, Any]:
    def refuse(why: str) -> ValueError:
        return ValueError(
            f"'{file.path}': packed weight '{name}': {why}; its metadata should have exactly the "
            f"keys {', '.join(_INFO_KEYS)} (docs/formats.md)"
        )

    try:
        info = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(f"its metadata is not valid JSON ({error})") from error
    if not isinstance(info, dict):
        raise refuse("its metadata is no JSON object")
    for key in _INFO_KEYS:
        if key not in info:
            raise refuse(f"{key} is missing")
    for key in info:
        if key not in _INFO_KEYS:
            raise refuse(f"{key!r} is not known")
    if info["version"] is True or info["version"] != _FORMAT_VERSION:
        raise refuse(
            f"version {info['version']!r} is not {_FORMAT_VERSION}, the only one this reader knows"
        )
    if not isinstance(info["format"], str) or info["format"] not in _ARRAYS:
        raise refuse(f"format {info['format']!r} is not one of {', '.join(_ARRAYS)}")
    if not isinstance(info["transposed"], bool):
        raise refuse(f"transposed is {info['transposed']!r}, not true or false")
    shape = info["shape"]
    if not isinstance(shape, list) or len(shape) not in (2, 3):
        raise refuse(f"shape {shape!r} is no list of two or three sizes")
    if not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise refuse(f"shape {shape!r} has a size that is not an integer from 0 to 2^31 - 1")
    return info


def _read_weight(file: _File, name: str, info: dict[str, Any]) -> SparseWeight:
    arrays = _ARRAYS[info["format"]]
    for array in arrays:
        if f"{name}.{array}" not in file.plain:
            raise ValueError(
                f"'{file.path}': packed weight '{name}': its array '{name}.{array}' is missing"
            )
    tensors = [file.tensor(f"{name}.{array}") for array in arrays]
    try:
        text = json.dumps({**info, "arrays": list(arrays)})
        return SparseWeight.from_packed(torch.ops.gossamer.from_format_arrays(text, tensors))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"'{file.path}': packed weight '{name}': {error}") from error


@dataclass
class _Slot:
    """A parameter or buffer of the model, with every place that holds it."""

    value: Tensor
    places: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    linear: bool = True
    obstacle: str | None = None
    bias: bool = False
    report: Report | None = None


def _slots(model: nn.Module) -> dict[int, _Slot]:
    state = model.state_dict(keep_vars=True)
    layers = {id(layer.module): layer for layer in find_layers(model) if layer.linear}
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


def _match(slots: dict[int, _Slot], file: _File, strict: bool) -> tuple[dict[int, str], LoadResult]:
    matches: dict[int, str] = {}
    missing: list[str] = []
    mismatched: list[str] = []
    for key, slot in slots.items():
        found = [name for name in map(file.resolve, slot.names) if name is not None]
        if not found:
            missing += slot.names
            continue
        matches[key] = found[-1]  # of several copies the last one counts, as in load_state_dict
        shape = file.shape(found[-1])
        if shape != tuple(slot.value.shape):
            mismatched.append(f"{found[-1]} (file {list(shape)}, model {list(slot.value.shape)})")
    names = {name for slot in slots.values() for name in slot.names}
    wanted = {file.resolve(name) for name in names}
    unexpected = sorted((file.plain | set(file.packed)) - wanted)
    faults = [f"shapes differ: {', '.join(mismatched)}"] if mismatched else []
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
        elif strict and not mismatched:
            hint = "; strict=False loads what matches"
        raise ValueError(f"'{file.path}' does not fit the model: {'; '.join(faults)}{hint}")
    return matches, LoadResult(missing, unexpected)


class _Step:
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


def _prepare(slot: _Slot, file: _File, name: str, request: Request) -> _Step:
    """Reads, converts and plans one tensor; everything that can fail happens here."""
    old = slot.value
    trainable = old.requires_grad
    if isinstance(old, SparseWeight):
        trainable = bool(slot.report and slot.report["trainable"])
    if name not in file.packed:
        values = file.tensor(name)
        if not isinstance(old, SparseWeight):
            report = plain_report(slot.obstacle or "the file holds it dense")
            return _Step(slot, _for_plain(old, values), report if slot.linear else None)
        values = values.to(old.dtype)
        decision = decide(values, name, request, transposed=old.transposed, bias=slot.bias)
        return _finish(slot, values, decision, trainable)
    weight = file.packed[name]
    obstacle = _packed_obstacle(slot, weight)
    if obstacle is not None:
        return _finish(slot, weight.to_dense(), Decision(None, plain_report(obstacle)), trainable)
    if weight.dtype != old.dtype:
        weight = cast(SparseWeight, weight.to(old.dtype))
    values = weight.to_dense()
    return _finish(slot, values, decide_packed(weight, values, request, bias=slot.bias), trainable)


def _packed_obstacle(slot: _Slot, weight: SparseWeight) -> str | None:
    if not slot.linear:
        return "its place in the model is no linear layer's weight"
    if slot.obstacle is not None and slot.value.device.type != "meta":
        return slot.obstacle
    conv1d = type(slot.places[0][0]).__name__ == "Conv1D"
    if weight.transposed != conv1d:
        return "the file holds it in the other orientation"
    return None


def _for_plain(old: Tensor, values: Tensor) -> Tensor:
    """What a plain tensor gets: values to copy, or a new parameter where it had no memory."""
    if old.device.type == "meta" and isinstance(old, nn.Parameter):
        return nn.Parameter(values.to(old.dtype).clone(), requires_grad=old.requires_grad)
    if old.device.type == "meta":
        return values.to(old.dtype).clone()
    return values


def _finish(slot: _Slot, values: Tensor, decision: Decision, trainable: bool) -> _Step:
    report = decision.report if slot.linear else None
    if decision.weight is not None:
        decision.report["trainable"] = trainable
        return _Step(slot, nn.Parameter(decision.weight, requires_grad=False), report)
    if isinstance(slot.value, SparseWeight):
        return _Step(slot, nn.Parameter(values.clone(), requires_grad=trainable), report)
    return _Step(slot, _for_plain(slot.value, values), report)
