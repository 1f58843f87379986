# SPDX-License-Identifier: BSD-3-Clause
"""Processes of torch.distributed that calibrate one model together, each with its own batches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gossamer._errors import first_line

__all__ = ["ALONE", "Ranks"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """The default process group, or this process alone.

    Every method but for one process is a collective: all ranks call the same ones in one order.

    Attributes:
        count: how many processes there are.
        own: the number of this one.
    """

    count: int = 1
    own: int = 0

    @classmethod
    def current(cls) -> Ranks:
        """All processes where torch.distributed is initialised, else this one."""
        if not dist.is_available() or not dist.is_initialized():
            return ALONE
        return cls(dist.get_world_size(), dist.get_rank())

    def each(self, value: _T) -> list[_T]:
        """What every rank has, in their order: plain data."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def first(self, value: _T) -> _T:
        """What rank 0 has."""
        if self.count == 1:
            return value
        held = [value if self.own == 0 else None]
        dist.broadcast_object_list(held, src=0)
        found: Any = held[0]
        return found

    def check_equal(self, weights: Mapping[str, Tensor]) -> None:
        """Refuses ranks that do not hold the same weights.

        Raises:
            ValueError: names, shapes or bits differ.
        """
        if self.count == 1:
            return
        every = self.each({fqn: _checksum(weight) for fqn, weight in weights.items()})
        for rank, sums in enumerate(every):
            differ = [fqn for fqn in {**every[0], **sums} if every[0].get(fqn) != sums.get(fqn)]
            if differ:
                raise ValueError(
                    f"calibrate: '{differ[0]}' of rank {rank} is not that of rank 0; load and "
                    "prepare the same model on all ranks, or pass alone=True where one rank "
                    "calibrates by itself"
                )

    def add_(self, *tensors: Tensor) -> None:
        """Replaces tensors by their sums over all ranks, with the same bits on each."""
        if self.count == 1:
            return
        for tensor in tensors:
            held = _where_it_travels(tensor)
            dist.all_reduce(held)
            # Not every algorithm adds in one order on all ranks.
            dist.broadcast(held, src=0)
            tensor.copy_(held)

    def take_first_(self, *tensors: Tensor) -> None:
        """Replaces tensors by those of rank 0, bit by bit."""
        if self.count == 1:
            return
        for tensor in tensors:
            held = _where_it_travels(tensor.detach())
            raw = held.contiguous().flatten().view(torch.uint8)
            dist.broadcast(raw, src=0)
            tensor.copy_(raw.view(tensor.dtype).view(tensor.shape))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What one rank cannot do, none does: they all raise, instead of waiting for it.

        Raises:
            RuntimeError: another rank failed; the one that did raises its own error.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as own:
            if self.count == 1:
                raise
            error = own
        failed = self.each(None if error is None else first_line(error))
        if error is not None:
            raise error
        for rank, why in enumerate(failed):
            if why is not None:
                raise RuntimeError(f"calibrate: rank {rank} failed, so that all ranks stop: {why}")


ALONE = Ranks()
"""This process by itself."""


def _checksum(weight: Tensor) -> tuple[list[int], int]:
    """A weight's shape, and its bits as integers added up, which comes out the same everywhere."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = weight.detach().view(integers[weight.element_size()])
    return list(weight.shape), int(bits.sum(dtype=torch.int64))


def _where_it_travels(tensor: Tensor) -> Tensor:
    """The tensor on a device that the process group can send from."""
    needs_gpu = str(dist.get_backend()) == "nccl" and not tensor.is_cuda
    return tensor.to(torch.device("cuda", torch.cuda.current_device())) if needs_gpu else tensor
