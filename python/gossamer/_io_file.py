# SPDX-License-Identifier: BSD-3-Clause
"""A safetensors file as models are loaded from it: plain tensors, and packed weights checked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gossamer import _ops
from gossamer._quantization import QUANTIZED_DTYPES
from gossamer.weight import SparseWeight

__all__ = [
    "ACCURATE",
    "FORMAT_VERSION",
    "INFO_KEYS",
    "INPUT_SCALE",
    "OPTIONAL_KEYS",
    "SCALES_PREFIX",
    "VERSION_KEY",
    "WEIGHT_PREFIX",
    "ModelFile",
    "open_file",
]

VERSION_KEY = "gossamer.version"
WEIGHT_PREFIX = "gossamer.weight."
SCALES_PREFIX = "gossamer.scales."
INPUT_SCALE = ", input scale "
"""Behind the dtype of scales, and then the scale that inputs are rounded at."""
ACCURATE = ", accurate"
"""Behind the dtype of scales where sums of float8 products are to be accurate."""
FORMAT_VERSION = 1
INFO_KEYS = ("format", "pattern", "dtype", "shape", "transposed", "version")
OPTIONAL_KEYS = ("kernel",)
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ARRAYS = {
    "nm": ("values", "indices"),
    "bitmask": ("bitmask", "values", "row_offsets"),
    "bsr": ("block_row_offsets", "block_cols", "values"),
    "fanin": ("values", "cols"),
}


@dataclass
class ModelFile:
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
        """Of a tensor, or of the dense parameter that a packed weight stands for."""
        if name in self.packed:
            return tuple(self.packed[name].shape)
        return tuple(self.handle.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype | None:
        """Of a tensor, or of a packed weight's values; None where torch has no such dtype."""
        if name in self.packed:
            return self.packed[name].dtype
        return _DTYPES.get(self.handle.get_slice(name).get_dtype())

    def tensor(self, name: str) -> Tensor:
        """Reads a plain tensor; ValueError where that fails."""
        try:
            return self.handle.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{self.path}': tensor '{name}' cannot be read: {error}") from error


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[ModelFile]:
    """Opens a file and reads and checks its packed weights.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a directory.
        ValueError: it is no safetensors file, or a packed weight in it is damaged.
    """
    if path.is_dir():
        raise IsADirectoryError(
            f"'{path}' is a directory: a safetensors file is accepted; name one in it, "
            "e.g. its model.safetensors"
        )
    if not path.exists():
        raise FileNotFoundError(
            f"'{path}' is not there: a safetensors file is accepted; check the path (relative ones "
            f"begin at {Path.cwd()})"
        )
    if not path.is_file():
        raise ValueError(
            f"'{path}' is no regular file: a safetensors file is read in any order and mapped into "
            "memory; write it to a file first"
        )
    try:
        handle = safe_open(path, framework="pt")
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a valid safetensors file: {error}") from error
    with handle:
        file = ModelFile(path, handle, dict(handle.metadata() or {}))
        file.plain = set(handle.keys())
        _read_packed(file)
        yield file


def _read_packed(file: ModelFile) -> None:
    for key, text in file.metadata.items():
        if key.startswith(WEIGHT_PREFIX):
            name = key.removeprefix(WEIGHT_PREFIX)
            info = _parse_info(file, name, text)
            file.packed[name] = _read_weight(file, name, info)
    for key, word in file.metadata.items():
        if key.startswith(SCALES_PREFIX):
            _read_scales(file, key.removeprefix(SCALES_PREFIX), word)
    for name, weight in file.packed.items():
        if name in file.plain:
            raise ValueError(
                f"'{file.path}' holds '{name}' twice, as a plain tensor and as a packed weight"
            )
        file.plain -= {f"{name}.{array}" for array in _ARRAYS[_ops.info(weight.packed)["format"]]}


def _read_scales(file: ModelFile, name: str, word: str) -> None:
    """Joins a packed 8-bit weight and its scales."""

    def refuse(why: str) -> ValueError:
        return ValueError(f"'{file.path}': scales of '{name}': {why} (docs/formats.md)")

    if name not in file.packed:
        raise refuse("the file holds no packed weight of that name")
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in QUANTIZED_DTYPES}
    stands_for, _, number = word.partition(INPUT_SCALE)
    kind = stands_for.removesuffix(ACCURATE)
    try:
        input_scale = float(number) if number or INPUT_SCALE in word else 0.0
    except ValueError:
        raise refuse(f"the scale of inputs is {number!r}, which is no number") from None
    if number and input_scale == 0.0:
        raise refuse("the scale of inputs is 0; it is above 0, or left out")
    if kind not in dtypes:
        raise refuse(f"they stand for {word!r}; {', '.join(dtypes)} are accepted")
    if f"{name}.scales" not in file.plain:
        raise refuse(f"their tensor '{name}.scales' is missing")
    scale = file.tensor(f"{name}.scales")
    try:
        weight = SparseWeight.from_quantized(
            file.packed[name].packed,
            scale,
            dtypes[kind],
            accurate=stands_for != kind,
            input_scale=input_scale,
        )
    except ValueError as error:
        raise refuse(str(error)) from error
    if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
        raise refuse("they are to be finite and not negative")
    file.packed[name] = weight
    file.plain.discard(f"{name}.scales")


def _parse_info(file: ModelFile, name: str, text: str) -> dict[str, Any]:
    def refuse(why: str) -> ValueError:
        return ValueError(
            f"'{file.path}': packed weight '{name}': {why}; its metadata should have exactly the "
            f"keys {', '.join(INFO_KEYS)}, a convolution's {', '.join(OPTIONAL_KEYS)} too "
            "(docs/formats.md)"
        )

    try:
        info = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refuse(f"its metadata is not valid JSON ({error})") from error
    if not isinstance(info, dict):
        raise refuse("its metadata is no JSON object")
    for key in INFO_KEYS:
        if key not in info:
            raise refuse(f"{key} is missing")
    for key in info:
        if key not in (*INFO_KEYS, *OPTIONAL_KEYS):
            raise refuse(f"{key!r} is not known")
    if info["version"] is True or info["version"] != FORMAT_VERSION:
        raise refuse(
            f"version {info['version']!r} is not {FORMAT_VERSION}, the only one this reader knows"
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
    kernel = info.get("kernel", [1, 1])
    if not isinstance(kernel, list) or len(kernel) != 2:
        raise refuse(f"kernel {kernel!r} is no list of two sizes")
    if not all(type(size) is int and 1 <= size < 2**16 for size in kernel):
        raise refuse(f"kernel {kernel!r} has a size that is not an integer from 1 to 2^16 - 1")
    return info


def _read_weight(file: ModelFile, name: str, info: dict[str, Any]) -> SparseWeight:
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
