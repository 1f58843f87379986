# SPDX-License-Identifier: BSD-3-Clause
"""Which epilogue a call in a graph is."""

from __future__ import annotations

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
    # A module that only calls one of torch's, as Hugging Face's GELUActivation does.
    try:
        nodes = list(read(module).nodes)
    except Unreadable:
        return None
    if len(nodes) != 3 or nodes[2].args != (nodes[1],):
        return None
    return activation_of(nodes[1], None, nodes[0])
