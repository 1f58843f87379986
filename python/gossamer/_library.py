# SPDX-License-Identifier: BSD-3-Clause
"""Loads `_C.so`, and `_C_cuda.so` where there is a GPU; importing it defines the operators.

The operators are C++ on PyTorch's stable ABI. Loading `_C.so` with `torch.ops.load_library` alone
is enough to run programs that were exported with them.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from gossamer import _ops_cuda

_OLDEST_TORCH = (2, 10)


def library_path() -> Path:
    """Where `_C.so` is: beside this file, or where GOSSAMER_LIBRARY says."""
    override = os.environ.get("GOSSAMER_LIBRARY")
    return Path(override) if override else Path(__file__).with_name("_C.so")


def _check_torch() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"gossamer needs torch >= {oldest} (its operators use the stable ABI of that release); "
            f"this is torch {torch.__version__}. Upgrade it: pip install -U torch"
        )


def _load(path: Path) -> None:
    if not path.is_file():
        raise ImportError(
            f"gossamer's operators are not there: {path} does not exist. Install the package "
            "(pip install gossamer, or `make install` in a checkout), or set GOSSAMER_LIBRARY to a "
            "built _C.so"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"gossamer's operators could not be loaded from {path}: {error}. They need "
            f"libgossamer.so beside them and torch >= 2.10 (this is {torch.__version__}); rebuild "
            "with `make install`"
        ) from error


_check_torch()
_load(library_path())
_cuda_library = library_path().with_name("_C_cuda.so")
if torch.cuda.is_available() and _cuda_library.is_file():
    try:
        _load(_cuda_library)
        _ops_cuda.register()
    except ImportError as error:  # such as torch for another vendor's GPUs; the CPU is unharmed
        _ops_cuda.load_failure = str(error)
