# SPDX-License-Identifier: BSD-3-Clause
"""The same fusion in graphs that `torch.compile` captures."""

from __future__ import annotations

import hashlib
import operator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass

from gossamer._fusion_activation import activation_of, with_square
from gossamer._weight_convolution import conv2d
from gossamer.weight import SparseWeight, linear

__all__ = ["FusionPass", "fusion_pass"]

_SOURCES = ("fusion_compile.py", "_fusion_activation.py", "_fusion_trace.py")
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_METHODS = ("add", "add_", "__add__", "__iadd__")


class FusionPass(CustomGraphPass):
    """Gives packed layers in a captured graph the residual and the activation that follow them.

    It is a pass over the graph that `torch.compile` captures, before its operators are taken apart:

        torch.compile(model, options={"pre_grad_custom_pass": gossamer.fusion_pass})

    A layer whose result something else uses too is left alone, and so is a residual of another
    shape or dtype, or one that is computed behind the layer by anything but layers, BatchNorms in
    evaluation mode and activations.
    """

    def __call__(self, graph: fx.graph.Graph) -> None:
        """Changes `graph` in place."""
        for node in list(graph.nodes):
            if _is_packed_layer(node):
                _fuse(graph, node)
        graph.lint()

    def uuid(self) -> bytes:
        """What inductor keeps compiled graphs under: it changes when the pass does."""
        hasher = hashlib.sha256()
        for name in _SOURCES:
            hasher.update(Path(__file__).with_name(name).read_bytes())
        return hasher.digest()


fusion_pass = FusionPass()


def _is_packed_layer(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in _PACKED:
        return False
    if node.kwargs or len(node.args) < 2:
        return False
    if _PACKED[node.target] is conv2d and len(node.args) > 6 and node.args[6] != 1:
        return False
    return type(_known(node.args[1])) is SparseWeight


def _fuse(graph: fx.Graph, node: fx.Node) -> None:
    taken: list[fx.Node] = [node]
    epilogue: dict[str, Any] = {}
    addition = _only_user(node)
    residual = None if addition is None else _residual(node, addition)
    if addition is not None and residual is not None:
        taken.append(addition)
        epilogue["residual"] = residual
    after = _only_user(taken[-1])
    activation = None if after is None else activation_of(after, None, taken[-1])
    if after is not None and activation is not None:
        epilogue["activation"], nodes = with_square(activation, after)
        taken += nodes
    if not epilogue:
        return
    # Not behind its activation: its input may change in between. What comes before an addition that
    # was found changes nothing.
    with graph.inserting_before(taken[1] if residual is not None else node):
        call = graph.call_function(_PACKED[node.target], node.args[:6], epilogue)
    call.meta = dict(taken[-1].meta)
    taken[-1].replace_all_uses_with(call)
    for one in reversed(taken):
        graph.erase_node(one)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _residual(node: fx.Node, addition: fx.Node) -> fx.Node | None:
    """What is added to a layer's result where its operator can take it, else None."""
    is_method = addition.op == "call_method" and addition.target in _METHODS
    is_function = addition.op == "call_function" and addition.target in _ADDITIONS
    if not (is_method or is_function) or addition.kwargs or len(addition.args) != 2:
        return None
    left, right = addition.args
    if right is node and (addition.target is operator.iadd or is_method):
        return None  # the other tensor changes, or has its own class's method
    other = right if left is node else left
    if not isinstance(other, fx.Node) or other is node:
        return None
    result, known = _known(node), _known(other)
    fits = (
        isinstance(result, Tensor)
        and isinstance(known, Tensor)
        and type(known) is not SparseWeight
        and known.shape == result.shape
        and known.dtype == result.dtype
        and known.device == result.device
    )
    return other if fits and _changes_nothing(node, addition) else None


def _changes_nothing(node: fx.Node, end: fx.Node) -> bool:
    """Whether the layer may as well run where `end` is."""
    between = node.next
    while between is not end:
        if not _is_pure(between):
            return False
        between = between.next
    return True


def _is_pure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "get_attr"):
        return True
    if node.op != "call_function" or node.kwargs.get("inplace", False):
        return False
    if node.target is nn.functional.batch_norm:
        training = node.args[5] if len(node.args) > 5 else node.kwargs.get("training", False)
        return training is False
    is_activation = node.target in (nn.functional.relu, nn.functional.gelu, nn.functional.silu)
    return (
        node.target in _PACKED
        or node.target in _PACKED.values()
        or (is_activation and len(node.args) == 1)
    )


def _known(node: Any) -> Any:
    """The example value of a node, as the capture left it."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


_PACKED: dict[Any, Any] = {nn.functional.linear: linear, nn.functional.conv2d: conv2d}
"""What computes the same with an epilogue, where the weight is packed."""
