# SPDX-License-Identifier: BSD-3-Clause
"""What calibration has done so far, on disk, so that it can go on after a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gossamer._errors import first_line

__all__ = ["Journal"]

_HEADER = "calibration.json"
_VERSION = 2
_KEYS = ("left_dense", "not_alone", "layers", "blocks", "weights", "masks", "halves")


class Journal:
    """One file for each step of a walk through a model, written when the step is complete.

    Every file is written under another name, pushed to the disk, and renamed, so that a crash
    leaves whole steps only.

    Args:
        folder: made where it does not exist.
        run: what must be equal for the steps to be those of the same run, by what it is called in
            messages: model, batches, method.

    Raises:
        ValueError: the folder holds the steps of another run, or a file that is none.
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
        """What `save` was given for a step; None where that step was never completed.

        Raises:
            ValueError: the file is damaged.
        """
        path = self._path(step)
        if not path.exists():
            return None
        try:
            entry = dict(torch.load(path, map_location="cpu", weights_only=True))
            return {key: entry[key] for key in _KEYS}
        except Exception as error:  # A damaged file raises what its first wrong byte leads to.
            raise ValueError(
                f"calibrate: '{path}' is damaged ({first_line(error)}); delete that file, and its "
                "step is made again"
            ) from error

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
