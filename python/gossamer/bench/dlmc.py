# SPDX-License-Identifier: BSD-3-Clause
"""Sparsity patterns of the Deep Learning Matrix Collection, from `dlmc_subset.tar.gz`.

A `.smtx` file is text: a line `rows, columns, non-zeros`, a line of row offsets, a line of column
indices, all counted from zero. It holds no values.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["ARCHIVE", "TOKENS", "mask", "names", "parse"]

ARCHIVE = "dlmc_subset.tar.gz"
TOKENS = 256
_NORMAL = ("/0.7/", "/0.9/")


def names(folder: Path, extent: str) -> list[str]:
    """Matrices of the archive: one for quick runs, one a size at two sparsities, or all.

    Raises:
        FileNotFoundError: the archive is not in the folder.
    """
    with tarfile.open(_path(folder)) as archive:
        found = sorted(name for name in archive.getnames() if name.endswith(".smtx"))
    if extent == "full":
        return found
    transformer = [name for name in found if name.startswith("transformer/")]
    chosen = [name for name in transformer if any(part in name for part in _NORMAL)]
    return chosen[:1] if extent == "quick" else chosen


def mask(folder: Path, name: str) -> Tensor:
    """What a matrix keeps, bool [rows, columns].

    Raises:
        FileNotFoundError: the archive is not in the folder.
        ValueError: the file is no such matrix.
    """
    with tarfile.open(_path(folder)) as archive:
        stream = archive.extractfile(name)
        if stream is None:
            raise ValueError(f"{name} in {ARCHIVE} is no file; a .smtx file is accepted")
        return parse(name, stream.read().decode("ascii", "replace"))


def parse(name: str, text: str) -> Tensor:
    """The matrix of a file's text, bool [rows, columns].

    Raises:
        ValueError: the text is no such matrix; the message says what does not fit.
    """
    try:
        head, offsets_text, columns_text = [*text.rstrip("\n").split("\n"), "", ""][:3]
        rows, columns, count = (int(part) for part in head.split(","))
        offsets = torch.tensor([int(part) for part in offsets_text.split()], dtype=torch.int64)
        places = torch.tensor([int(part) for part in columns_text.split()], dtype=torch.int64)
    except ValueError as error:
        raise ValueError(f"{name}: not a .smtx file ({error})") from error
    lengths = offsets.diff()
    right = (
        min(rows, columns, count) >= 0
        and len(offsets) == rows + 1
        and len(places) == count
        and int(offsets[0]) == 0
        and int(offsets[-1]) == count
        and bool((lengths >= 0).all())
        and bool(((places >= 0) & (places < columns)).all())
    )
    if not right:
        raise ValueError(
            f"{name}: {rows} rows, {columns} columns and {count} non-zeros do not fit its "
            f"{len(offsets)} offsets and {len(places)} indices"
        )
    kept = torch.zeros(rows, columns, dtype=torch.bool)
    kept[torch.arange(rows).repeat_interleave(lengths), places] = True
    return kept


def _path(folder: Path) -> Path:
    path = folder / ARCHIVE
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; --data names the folder that holds it")
    return path
