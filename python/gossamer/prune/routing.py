# SPDX-License-Identifier: BSD-3-Clause
"""Which tensors hold rows that a network picked itself, as a router does for its experts.

Rows of one batch in two models, dense and pruned, can be paired where both have the same tokens in
the same order. A router that sees other values picks other tokens, and as many perhaps, so that no
shape gives that away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RoutingWatch"]

# Operators that take rows of their first argument, and where what says which is among their others.
_PICKS = {
    "index": 1,
    "_unsafe_index": 1,
    "index_select": 2,
    "gather": 2,
    "take": 1,
    "masked_select": 1,
}
_PUTS = (
    "index_put",
    "_index_put_impl",
    "_unsafe_index_put",
    "index_add",
    "index_copy",
    "index_reduce",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "masked_scatter",
)
"""Operators that write rows back to where they were in their first argument."""
_ORDERS = {"sort": 1, "topk": 2, "kthvalue": 2}
"""Operators that give values in an order of their own, and which argument is the dimension."""


@dataclass
class _Mark:
    """What is known of a storage while its data may be gone, so that its number is not reused.

    Attributes:
        learned: it depends on the model's parameters: another model has other values.
        picked: its rows are such that indices which are learned have picked.
    """

    holder: StorageWeakRef
    learned: bool = False
    picked: bool = False


class RoutingWatch(TorchDispatchMode):
    """Follows the operators of a forward pass from the parameters to the inputs of layers.

    Views share a storage and so a mark. Rows count as picked from where indices that depend on
    parameters picked them (the mask of a padded batch depends on none) to where they are written
    back into a whole. Not followed: indices that went through Python numbers, and products with
    one-hot matrices.

    Args:
        model: whose parameters make values those of this model.
    """

    supports_higher_order_operators = True
    """flex_attention, torch.cond and their like come as one operator."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._marks: dict[int, _Mark] = {}
        self._parameters: set[int] = set()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Watches one forward pass."""
        self._marks.clear()
        for parameter in self._model.parameters():
            self._note(parameter, learned=True, picked=False)
        self._parameters = set(self._marks)
        try:
            # What torch compiles under a mode, or refuses to, it would remember afterwards.
            with torch.compiler.set_stance("force_eager"), self:
                yield
        finally:
            self._marks.clear()

    def picked(self, x: Tensor) -> bool:
        """Whether the rows of a tensor of the pass in progress are picked ones."""
        mark = self._mark(x)
        return mark is not None and mark.picked

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs an operator and marks what it gives."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = getattr(func, "_schema", None)  # Operators of higher order have none.
        name = "" if schema is None else schema.name.rpartition("::")[2]
        if name.endswith("_like") or name.startswith("new_"):
            return result  # Takes a shape, no values.
        marks = [mark for mark in map(self._mark, _tensors((args, kwargs))) if mark is not None]
        learned = any(mark.learned for mark in marks)
        if not learned:
            return result
        picked = self._picks(name, args, kwargs, result, marks)
        for tensor in _tensors(result):
            self._note(tensor, learned=True, picked=picked)
        return result

    def _picks(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        marks: Iterable[_Mark],
    ) -> bool:
        """Whether an operator's results hold picked rows."""
        if name.removesuffix("_") in _PUTS:
            return self.picked(args[0])
        if name in _PICKS and len(args) > _PICKS[name]:
            chooses = any(
                mark is not None and mark.learned
                for mark in map(self._mark, _tensors(args[_PICKS[name]]))
            )
            if chooses and not self._is_parameter(args[0]):
                # As many rows again out of picked ones are the whole put back in its order.
                return not (self.picked(args[0]) and result.shape[:1] == args[0].shape[:1])
        if name in _ORDERS and isinstance(args[0], Tensor) and args[0].dim() > 1:
            position = _ORDERS[name]
            along = kwargs.get("dim", args[position] if len(args) > position else -1)
            if isinstance(along, int) and along not in (-1, args[0].dim() - 1):
                return True
        return any(mark.picked for mark in marks)

    def _is_parameter(self, tensor: Tensor) -> bool:
        """Whether rows are those of a table, such as an embedding, and not of a batch."""
        return _number(tensor) in self._parameters

    def _mark(self, tensor: Tensor) -> _Mark | None:
        return self._marks.get(_number(tensor))

    def _note(self, tensor: Tensor, *, learned: bool, picked: bool) -> None:
        number = _number(tensor)
        if not number:
            return
        mark = self._marks.get(number)
        if mark is None:
            mark = self._marks[number] = _Mark(StorageWeakRef(tensor.untyped_storage()))
        mark.learned |= learned
        mark.picked |= picked


def _number(tensor: Tensor) -> int:
    """What tells storages apart; 0 for tensors that have none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return 0


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
