# SPDX-License-Identifier: BSD-3-Clause
"""Models in safetensors files: packed weights as arrays (docs/formats.md), the rest as it is."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from gossamer._io_file import open_file
from gossamer._io_load import CASTS, LoadResult, prepare_load
from gossamer._io_write import flatten, write
from gossamer._packing import Request, is_channels_last
from gossamer.config import MEMORIES, PLANS, check_choice

__all__ = ["LoadResult", "load_into", "save"]


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
        OSError: the file cannot be written, and the old one is as it was; or the new one is in
            its place but its folder cannot be synced. The message says which.
    """
    tensors, metadata = flatten(model, packed)
    write(Path(os.path.realpath(path)), tensors, metadata)


def load_into(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    plan: str = "measure",
    memory: str = "default",
    layout: str | None = None,
    cast: str = "lossless",
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
        memory: "default", "speed" or "low", as for `sparsify_`.
        layout: as for `sparsify_`.
        cast: where the file and the model have different dtypes. "lossless" converts to a dtype
            that holds every value of the file's (bfloat16 to float32, say) and refuses others;
            "any" converts as `load_state_dict` does, rounding or cutting off without a word.

    Returns:
        The names that did not match.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a directory.
        ValueError: the file is damaged, or names, shapes or dtypes do not match (all are listed).
    """
    check_choice("plan", plan, PLANS)
    check_choice("memory", memory, MEMORIES)
    last = is_channels_last(model)
    request = Request(plan=plan, memory=memory, layout=layout, channels_last=last)
    check_choice("cast", cast, CASTS)
    with torch.no_grad(), open_file(Path(path)) as file:
        steps, result = prepare_load(model, file, request, strict=strict, cast=cast)
        for step in steps:
            step()
    return result
