# SPDX-License-Identifier: BSD-3-Clause
"""The same fusion in graphs that `torch.compile` captures."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from gossamer._fusion_activation import activation_of
from gossamer._weight_convolution import conv2d
from gossamer.weight import SparseWeight, linear


def fusion_pass(graph: fx.Graph) -> None:
    """Gives packed layers in a captured graph the activation that follows them.

    It is a pass over the graph that `torch.compile` captures, before its operators are taken apart:

        torch.compile(model, options={"pre_grad_custom_pass": gossamer.fusion_pass})

    A layer whose result something else uses too is left alone.

    Args:
        graph: changed in place.
    """
    for node in list(graph.nodes):
        fused = _PACKED.get(node.target) if node.op == "call_function" else None
        if fused is None or node.kwargs or len(node.args) < 2 or len(node.users) != 1:
            continue
        weight = node.args[1]
        known = weight.meta.get("example_value") if isinstance(weight, fx.Node) else None
        (after,) = node.users
        activation = activation_of(after, None, node)
        if activation is None or not isinstance(known, SparseWeight):
            continue
        if fused is conv2d and len(node.args) > 6 and node.args[6] != 1:
            continue
        # Where the layer was, not where the activation is: its input may change in between.
        with graph.inserting_before(node):
            call = graph.call_function(fused, node.args[:6], {"activation": activation})
        call.meta = dict(after.meta)
        after.replace_all_uses_with(call)
        graph.erase_node(after)
        graph.erase_node(node)
    graph.lint()


_PACKED: dict[Any, Any] = {nn.functional.linear: linear, nn.functional.conv2d: conv2d}
"""What computes the same with an activation, where the weight is packed."""
