# SPDX-License-Identifier: BSD-3-Clause
"""Arguments of a block for each batch, in the memory of the CPU where they are asked to be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

__all__ = ["Kept"]

_T = TypeVar("_T")


class Kept(Sequence[_T], Generic[_T]):
    """Values that hold tensors; each comes back to its device when it is asked for.

    Args:
        device: where tensors are needed. None keeps everything where it is.
        values: what is kept.
    """

    def __init__(self, device: torch.device | None, values: Sequence[_T] = ()) -> None:
        self._device = device
        self._values = [self._put(value) for value in values]

    def append(self, value: _T) -> None:
        """Adds one."""
        self._values.append(self._put(value))

    def __setitem__(self, index: int, value: _T) -> None:
        self._values[index] = self._put(value)

    @overload
    def __getitem__(self, index: int) -> _T: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[_T]: ...

    def __getitem__(self, index: int | slice) -> _T | Sequence[_T]:
        if isinstance(index, slice):
            part: Kept[_T] = Kept(self._device)
            part._values = self._values[index]
            return part
        value = self._values[index]
        return value if self._device is None else _moved(value, self._device)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[_T]:
        return (self[index] for index in range(len(self)))

    def _put(self, value: _T) -> _T:
        return value if self._device is None else _moved(value, torch.device("cpu"))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device) for item in value)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    return value
