# SPDX-License-Identifier: BSD-3-Clause
"""Which epilogue a call in a graph is."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

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
        graph = read(module)
    except Unreadable:
        return None
    nodes = list(graph.nodes)
    activation = activation_of(nodes[1], None, nodes[0]) if len(nodes) > 2 else None
    if activation is not None:
        activation, taken = with_square(activation, nodes[1])
        if len(nodes) == len(taken) + 2 and nodes[-1].args == (taken[-1],):
            return activation
    return _written_out(graph)


_ARITHMETIC = (
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow,
    torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.square,
    torch.tanh, torch.erf, torch.sigmoid, torch.exp, nn.functional.tanh, nn.functional.sigmoid,
)  # fmt: skip
_METHODS = ("add", "sub", "mul", "div", "neg", "pow", "square", "tanh", "erf", "sigmoid", "exp")
_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
}
_CLOSE = 1e-9
"""Of float64 results: constants are often written with ten digits, float32 has eight."""


def _written_out(graph: fx.Graph) -> str | None:
    """The epilogue whose formula a forward writes out, as Hugging Face's NewGELUActivation does.

    Only arithmetic of one tensor and of numbers, element by element: what agrees with a formula on
    thousands of points agrees between them.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in graph.nodes:
        is_known = (
            node.op in ("placeholder", "output")
            or (node.op == "call_function" and node.target in _ARITHMETIC)
            or (node.op == "call_method" and node.target in _METHODS)
        )
        arguments = () if node.op == "output" else node.args
        numbers = [one for one in arguments if not isinstance(one, fx.Node)]
        if not is_known or node.kwargs or not all(isinstance(n, int | float) for n in numbers):
            return None
    if len(inputs) != 1:
        return None
    x = torch.linspace(-12.0, 12.0, 4001, dtype=torch.float64)
    try:
        y = fx.Interpreter(nn.Module(), graph=graph).run(x)
    except Exception:  # whatever it does with such a tensor
        return None
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return None
    for name, formula in _FORMULAS.items():
        if bool(((y - formula(x)).abs() <= _CLOSE * (1.0 + x.abs())).all()):
            return name
    return None
