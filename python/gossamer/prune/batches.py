# SPDX-License-Identifier: BSD-3-Clause
"""Batches: what a model is called with, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gossamer._errors import first_line

__all__ = ["Forward", "each_batch", "first_pass", "run_batch"]

Forward: TypeAlias = Callable[[nn.Module, Any], Any]
"""How a model is called with a batch."""


def run_batch(model: nn.Module, batch: Any) -> Any:
    """Calls a model: with the items of a dict by name, of a list or tuple in order, else as is.

    Raises:
        TypeError: the model does not take them; the message says how to call it otherwise.
    """
    try:
        if isinstance(batch, Mapping):
            return model(**batch)
        if isinstance(batch, list | tuple):
            return model(*batch)
        return model(batch)
    except TypeError as error:
        if isinstance(batch, Mapping):
            how = f"by name with {', '.join(map(str, batch))}"
        elif isinstance(batch, list | tuple) and len(batch) > 1:
            how = f"with all {len(batch)} items of a {type(batch).__name__}"
        else:
            raise
        first = f"batch[{next(iter(batch))!r}]" if isinstance(batch, Mapping) else "batch[0]"
        raise TypeError(
            f"{error}. The model was called {how}; where it takes the inputs alone, labels aside, "
            f"pass forward=lambda model, batch: model({first})"
        ) from error


def first_pass(model: nn.Module, batch: Any, forward: Forward, index: int) -> None:
    """Calls a model with a batch for the first time; where that fails, says with which one.

    Raises:
        RuntimeError: the operators refuse it, for its dtypes or shapes say.
        IndexError: it holds numbers that a table has no row for.
    """
    try:
        forward(model, batch)
    except (RuntimeError, IndexError) as error:
        if type(error) not in (RuntimeError, IndexError):
            raise  # Of a kind that whoever raises it wants to see, out of memory say.
        parameter = next(model.parameters(), None)
        own = "" if parameter is None else f", the model {_kind_of(parameter)}"
        raise type(error)(
            f"calibrate: the model fails with batch {index}: {first_line(error)}. The batch is "
            f"{_described(batch)}{own}"
        ) from error


def _kind_of(tensor: Tensor) -> str:
    return f"{tensor.dtype} on {tensor.device}"


def _described(value: Any) -> str:
    """Types, dtypes and shapes of a batch."""
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {_kind_of(value)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_described(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple) and len(value) <= 8:
        return f"[{', '.join(map(_described, value))}]"
    return f"a {type(value).__name__}"


def each_batch(caller: str, batches: Iterable[Any]) -> Iterator[Any]:
    """The batches one after the other.

    Tensors that `torch.inference_mode` made are copied: nothing can be watched on them.

    Args:
        caller: for messages.
        batches: any iterable of what a model is called with.

    Raises:
        TypeError: it is one batch, whose items would be taken for batches.
    """
    is_one = isinstance(batches, Tensor | Mapping | str) or hasattr(batches, "__array_interface__")
    # A dataset may have no __iter__, and can be iterated over all the same.
    if is_one or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        what = type(batches).__name__
        raise TypeError(
            f"{caller}: batches is a {what}: an iterable of batches is accepted, such as a "
            "DataLoader or a list; pass [batch] for a single one"
        )
    return map(_plain, batches)


def _plain(value: Any) -> Any:
    """The value without inference tensors, in dicts, lists and tuples too."""
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    return value
