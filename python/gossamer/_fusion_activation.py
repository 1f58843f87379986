# SPDX-License-Identifier: BSD-3-Clause
"""Which epilogue a call in a graph is."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from gossamer._fusion_trace import Unreadable, is_activation_function, read


def activation_of(node: fx.Node, module: nn.Module | None, last: fx.Node) -> str | None:
    """The epilogue that a call is, None where it is none."""
    if module is not None:
        return _of_module(module)
    if node.op == "call_method" and node.args == (last,):
        return "relu" if node.target in ("relu", "relu_") and not node.kwargs else None
    if node.op != "call_function" or node.args != (last,):
        return None
    if set(node.kwargs) - {"inplace", "approximate"}:
        return None
    return is_activation_function(node.target, dict(node.kwargs))


def with_square(activation: str, node: fx.Node) -> tuple[str, list[fx.Node]]:
    """The epilogue that an activation's call is, and its nodes.

    ReLU and the square that alone uses its result are "relu2".
    """
    if activation == "relu" and len(node.users) == 1:
        (square,) = node.users
        if _is_square(square, node):
            return "relu2", [node, square]
    return activation, [node]


def _is_square(node: fx.Node, last: fx.Node) -> bool:
    if node.kwargs:
        return False
    if node.op == "call_method" and node.target in ("square", "pow", "__pow__"):
        is_power = node.target != "square"
    elif node.op == "call_function" and node.target in (torch.square, torch.pow, operator.pow):
        is_power = node.target is not torch.square
    else:
        return False
    return node.args == ((last, 2) if is_power else (last,))


def _of_module(module: nn.Module) -> str | None:
    kind = type(module)
    if kind is nn.ReLU:
        return "relu"
    if kind is nn.SiLU:
        return "silu"
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(str(module.approximate))
    if module._modules or module._parameters or module._buffers:
        return None
    # A module that only calls torch's, as Hugging Face's GELUActivation and ReLUSquaredActivation.
    try:
        nodes = list(read(module).nodes)
    except Unreadable:
        return None
    activation = activation_of(nodes[1], None, nodes[0]) if len(nodes) > 2 else None
    if activation is None:
        return None
    activation, taken = with_square(activation, nodes[1])
    is_all = len(nodes) == len(taken) + 2 and nodes[-1].args == (taken[-1],)
    return activation if is_all else None
