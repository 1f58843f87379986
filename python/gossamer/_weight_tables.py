# SPDX-License-Identifier: BSD-3-Clause
"""The tables that say what a `SparseWeight` answers, and the sentence for everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch

Handler = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""Called with the function or operator, its arguments and its keyword arguments."""

FUNCTIONS: dict[Any, Handler] = {}
"""Answered above autograd, in `__torch_function__`."""

OPERATORS: dict[Any, Handler] = {}
"""Answered below autograd, in `__torch_dispatch__`."""


def function(*functions: Any) -> Callable[[Handler], Handler]:
    """Registers the handler of these functions."""

    def register(handler: Handler) -> Handler:
        FUNCTIONS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def operator(*operators: Any) -> Callable[[Handler], Handler]:
    """Registers the handler of these operators."""

    def register(handler: Handler) -> Handler:
        OPERATORS.update(dict.fromkeys(operators, handler))
        return handler

    return register


def _name(func: Any) -> str:
    return getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or str(func)


def refuse(func: Any) -> NoReturn:
    """Raises NotImplementedError with the name of what was called and the way out."""
    name = str(func) if isinstance(func, torch._ops.OpOverload) else _name(func)
    raise NotImplementedError(
        f"{name} is not computed on a packed weight; use it as the weight of a linear layer "
        "(of a convolution where it has four dimensions), or take weight.to_dense() "
        "(gossamer.desparsify_(model) unpacks a whole model)"
    )
