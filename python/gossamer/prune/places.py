# SPDX-License-Identifier: BSD-3-Clause
"""Where a model's tensors are and of which dtype, and the way back where something moved them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from gossamer.prune.mask import join

__all__ = ["Places"]


@dataclass
class _Place:
    """One parameter or buffer: who holds it, and what it was. Nothing is copied."""

    fqn: str
    module: nn.Module
    name: str
    tensor: Tensor
    data: Tensor

    def now(self) -> Tensor | None:
        # Those of a compiled ScriptModule are no dicts.
        own = {**dict(self.module._parameters.items()), **dict(self.module._buffers.items())}
        return own.get(self.name)


class Places:
    """Devices and dtypes of all parameters and buffers of a model, as they are now.

    Args:
        model: watched from now on.
    """

    def __init__(self, model: nn.Module) -> None:
        self._places = [
            _Place(join(prefix, name), module, name, tensor, tensor.data)
            for prefix, module in model.named_modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]

    def refusal(self) -> str | None:
        """What was moved, for a message; None where nothing was."""
        place = next(self._moved(), None)
        if place is None:
            return None
        was, now = place.data, place.now()
        is_now = "gone" if now is None else f"{now.dtype} on {now.device} now"
        return (
            f"calibrate: the model was moved on the way: '{place.fqn}' was {was.dtype} on "
            f"{was.device} and is {is_now}; move it before calibrate, and in forward the batch only"
        )

    def check(self) -> None:
        """Refuses a model that was moved.

        Raises:
            ValueError: a tensor is on another device, or of another dtype.
        """
        why = self.refusal()
        if why is not None:
            raise ValueError(why)

    def restore(self) -> None:
        """Puts tensors that were moved back to where they were."""
        for place in list(self._moved()):
            if isinstance(place.tensor, nn.Parameter):
                place.module._parameters[place.name] = place.tensor
            else:
                place.module._buffers[place.name] = place.tensor
            if not _alike(place.tensor, place.data):
                place.tensor.data = place.data

    def _moved(self) -> Iterator[_Place]:
        for place in self._places:
            now = place.now()
            if now is None or not _alike(now, place.data):
                yield place


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.dtype == other.dtype
