# SPDX-License-Identifier: BSD-3-Clause
"""What calibration has done so far, on disk, so that it can go on after a crash."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Journal", "description", "digest"]

_HEADER = "calibration.json"
_VERSION = 1


class Journal:
    """One file for each step of a walk through a model, written when the step is complete.

    Every file is written under another name, pushed to the disk, and renamed, so that a crash
    leaves whole steps only.

    Args:
        folder: made where it does not exist.
        run: what must be equal for the steps to be those of the same run, by what it is called in
            messages: model, batches, method.

    Raises:
        ValueError: the folder holds the steps of another run.
    """

    def __init__(self, folder: str | Path, run: Mapping[str, str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        header = self.folder / _HEADER
        ours = {"version": _VERSION, **run}
        if header.exists():
            try:
                theirs = dict(json.loads(header.read_text(encoding="utf-8")))
            except (ValueError, TypeError):
                raise ValueError(
                    f"calibrate: '{header}' is not what calibrate wrote; delete the folder, or "
                    "choose another"
                ) from None
            changed = sorted(key for key in ours if theirs.get(key) != ours[key])
            if changed:
                raise ValueError(
                    f"calibrate: '{self.folder}' holds the state of another run (other "
                    f"{', '.join(changed)}); delete it, or choose another folder"
                )
            return
        self._write(header, json.dumps(ours, indent=1).encode())

    def load(self, step: int) -> dict[str, Any] | None:
        """What `save` was given for a step; None where that step was never completed."""
        path = self._path(step)
        if not path.exists():
            return None
        entry: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return entry

    def save(self, step: int, entry: Mapping[str, Any]) -> None:
        """Keeps a step: plain data and tensors."""
        path = self._path(step)
        passing = path.with_suffix(".new")
        with passing.open("wb") as file:
            torch.save(dict(entry), file)
            file.flush()
            os.fsync(file.fileno())
        passing.replace(path)

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:05}.pt"

    @staticmethod
    def _write(path: Path, content: bytes) -> None:
        passing = path.with_suffix(".new")
        with passing.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        passing.replace(path)


def description(part: Any) -> list[Any]:
    """The name and settings of a part of a method, the same in every process."""
    name = getattr(part, "__qualname__", type(part).__qualname__)
    return [name, dict(getattr(part, "__dict__", {}))]


def digest(value: Any) -> str:
    """A fingerprint: of a module's state, of tensors in dicts and sequences, of plain values.

    Objects of other classes count by their class alone.
    """
    state = hashlib.sha256()
    _feed(state, value.state_dict() if isinstance(value, nn.Module) else value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        state.update(f"{value.dtype}{list(value.shape)}".encode())
        dense = value.detach().cpu().contiguous()
        state.update(dense.flatten().view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        _feed_all(state, "dict", (item for pair in value.items() for item in pair))
    elif isinstance(value, list | tuple):
        _feed_all(state, "list", value)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        state.update(repr(value).encode() + b";")
    else:
        state.update(f"{type(value).__module__}.{type(value).__qualname__};".encode())


def _feed_all(state: Any, kind: str, items: Iterable[Any]) -> None:
    state.update(f"{kind}(".encode())
    for item in items:
        _feed(state, item)
    state.update(b")")
