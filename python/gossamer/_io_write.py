# SPDX-License-Identifier: BSD-3-Clause
"""Writing a model to a safetensors file: packed weights as arrays, shared tensors once, whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from gossamer import _ops
from gossamer._io_file import (
    ACCURATE,
    FORMAT_VERSION,
    INFO_KEYS,
    INPUT_SCALE,
    OPTIONAL_KEYS,
    SCALES_PREFIX,
    VERSION_KEY,
    WEIGHT_PREFIX,
)
from gossamer.weight import SparseWeight

__all__ = ["flatten", "write"]


def flatten(model: nn.Module, packed: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A model's tensors and metadata as they are written.

    Args:
        model: any module.
        packed: whether packed weights become arrays, or dense tensors.

    Raises:
        ValueError: the model holds something that a safetensors file cannot.
    """
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
            metadata[VERSION_KEY] = str(FORMAT_VERSION)
            metadata[WEIGHT_PREFIX + name] = _add_packed(tensors, name, value)
            if value.scale is not None:
                word = str(value.dtype).removeprefix("torch.")
                word += ACCURATE * value._facts.accurate
                if value.input_scale is not None:
                    word += f"{INPUT_SCALE}{value.input_scale!r}"
                metadata[SCALES_PREFIX + name] = word
                tensors[f"{name}.scales"] = value.scale
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
    info = {**info, "transposed": weight.transposed, "version": FORMAT_VERSION}
    keys = [key for key in (*INFO_KEYS, *OPTIONAL_KEYS) if key in info]
    return json.dumps({key: info[key] for key in keys}, separators=(",", ":"))


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


def write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes beside the target, syncs, and renames.

    Raises:
        OSError: the target is no regular file; or the file could not be written, and the old one is
            as it was; or the new one is in its place but the folder could not be synced. The
            message says which.
    """
    _check_target(target)
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
    except (OSError, SafetensorError) as error:
        text = f"'{target}' could not be written: {error}; what was there before is unchanged"
        raise OSError(getattr(error, "errno", None) or 0, text) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    try:
        _sync(str(target.parent))
    except OSError as error:
        text = (
            f"'{target}' is written and whole, but its folder could not be synced: {error}; a "
            "power failure may still bring back what was there before"
        )
        raise OSError(error.errno or 0, text) from error


def _check_target(target: Path) -> None:
    """Refuses what a rename would destroy: a pipe, a device, a folder."""
    if target.exists() and not target.is_file():
        kind = "a directory" if target.is_dir() else "no regular file"
        code = errno.EISDIR if target.is_dir() else errno.EINVAL
        raise OSError(code, f"cannot write '{target}': it is {kind}; name a file")


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
