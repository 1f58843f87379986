# SPDX-License-Identifier: BSD-3-Clause
"""`fuse_` lets a layer do what follows it: BatchNorm, activation, residual add."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from gossamer._fusion_activation import activation_of, with_square
from gossamer._fusion_modules import FUSED, FusedConv2d, FusedLinear, fuse_layer
from gossamer._fusion_trace import (
    Unreadable,
    compiled_forward,
    does_nothing,
    is_sequential,
    named_in_code,
    read,
)
from gossamer.weight import SparseWeight

__all__ = ["fuse_"]

_NORMS = {nn.Conv2d: nn.BatchNorm2d, nn.Linear: nn.BatchNorm1d}
_ADDITIONS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (operator.iadd, "add_", "__iadd__")


@dataclass
class _Chain:
    """A layer's call and the calls that it is to take over, in order."""

    name: str
    layer: nn.Module
    nodes: list[fx.Node]
    norm: str | None = None
    activation: str | None = None
    addition: fx.Node | None = None
    steps: list[str] = field(default_factory=list)


def fuse_(model: nn.Module) -> nn.Module:
    """Folds BatchNorm into the layer before it and gives a layer what follows it.

    An `nn.Conv2d` takes an `nn.BatchNorm2d`, then the addition of a residual, then ReLU, squared
    ReLU, GELU (by the error function or by tanh) or SiLU; an `nn.Linear` the same with an
    `nn.BatchNorm1d`, and takes [tokens, in] only from then on, because the BatchNorm has its
    channels elsewhere in inputs of three dimensions. Plain layers run torch's operators one after
    the other, packed ones all of it in one operator; call `fuse_` before or after `sparsify_`,
    before is exact to the bit of the pruning. A folded BatchNorm or an activation module that is
    left without a caller in a `nn.Sequential` becomes an `nn.Identity`. Names of parameters stay; a
    layer whose BatchNorm is folded gains a bias.

    Each module's forward is read by torch.fx, its children as single calls. It is left alone where
    what it computes could depend on more than its tensors: arguments that may be left out, tests of
    types, changes of attributes. Python numbers that it reads are those of this call. A layer is
    left alone where it has hooks, is in training mode, is used in more than one place or shares its
    weight, where its BatchNorm has no running statistics, or where what it computes is used by
    others too. `explain(model)` says of each layer what was fused, or why nothing was.

    Args:
        model: in evaluation mode; changed in place. Models that were rewritten refuse to run in
            training mode. Their state is saved as ever; a pickle of a rewritten module is not made.

    Returns:
        The model.

    Raises:
        TypeError: `model` is not a module.
        ValueError: it is in training mode.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse_: model is a {type(model).__name__}; an nn.Module is accepted")
    if model.training:
        raise ValueError(
            "fuse_: the model is in training mode, where BatchNorm has the statistics of each "
            "batch; call model.eval() first"
        )
    context = _Context(model)
    for owner in context.graphs:
        _fuse_owner(context, owner)
    for name, module in model.named_modules():
        if type(module) in FUSED and not hasattr(module, "gossamer_fusion"):
            module.gossamer_fusion = context.reason(name, module)
    return model


class _Context:
    """What is seen from outside of a layer."""

    def __init__(self, model: nn.Module) -> None:
        self.graphs: dict[str, fx.Graph] = {}
        self.unread: dict[str, str] = {}
        self.modules = dict(model.named_modules())
        self.places = Counter(
            id(module) for _, module in model.named_modules(remove_duplicate=False)
        )
        self.weights = Counter(
            id(value) for m in self.modules.values() for value in m._parameters.values()
        )
        self.calls: Counter[int] = Counter()
        self.refused: dict[str, str] = {}
        for name, module in self.modules.items():
            if not module._modules or type(module) in (nn.ModuleList, nn.ModuleDict):
                continue
            try:
                graph = read(module)
            except Unreadable as error:
                self.unread[name] = str(error)
                continue
            self.graphs[name] = graph
            for node in graph.nodes:
                if node.op == "call_module":
                    self.calls[id(module.get_submodule(node.target))] += 1
        self._drop_reached_into()

    def _drop_reached_into(self) -> None:
        """A Sequential that is not called as one may be walked over by its owner."""
        for name in list(self.graphs):
            module = self.modules[name]
            if is_sequential(module) and name and not self.calls[id(module)]:
                self.unread[name] = "no forward that could be read calls it as a whole"
                del self.graphs[name]
        for name, module in self.modules.items():
            if self.places[id(module)] > 1 and name in self.graphs:
                self.unread[name] = "it is used in more than one place"
                del self.graphs[name]

    def obstacle(self, module: nn.Module) -> str | None:
        """Why a module is not taken apart, or None."""
        if self.places[id(module)] > 1:
            return "it is used in more than one place"
        if self.calls[id(module)] > 1:
            return "it is called more than once"
        if _has_hooks(module):
            return "it has hooks"
        if "forward" in module.__dict__:
            return "its forward was replaced on the instance"
        if module.training:
            return "it is in training mode"
        return None

    def reached_into(self, owner: str, child: str) -> str | None:
        """Why a child of `owner` may be used by a module above it whose forward is not read."""
        while owner:
            owner = owner.rpartition(".")[0]
            above = self.modules.get(owner)
            if owner in self.unread and above is not None and child in named_in_code(type(above)):
                what = f"'{owner}'" if owner else "the model"
                return f"{what}, which is not read, names a '{child}' too"
        return None

    def reason(self, name: str, module: nn.Module) -> str:
        """Why nothing was fused into a layer."""
        if name in self.refused:
            return f"nothing fused: {self.refused[name]}"
        owner = name.rpartition(".")[0]
        while owner not in self.graphs and owner not in self.unread and owner:
            owner = owner.rpartition(".")[0]
        if owner in self.unread:
            what = f"'{owner}'" if owner else "the model"
            return f"nothing fused: {what} is not read: {self.unread[owner]}"
        return "nothing fused: nothing follows it that could be"


def _has_hooks(module: nn.Module) -> bool:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, table) for table in tables)


def _fuse_owner(context: _Context, name: str) -> None:
    owner, graph = context.modules[name], context.graphs[name]
    if owner.training:
        return
    chains = list(_chains(context, name, owner, graph))
    if not chains:
        return
    for chain in chains:
        if chain.norm is not None:
            _fold(chain.layer, owner.get_submodule(chain.norm))
        adds_in_place = chain.addition is not None and chain.addition.target in _IN_PLACE
        # BatchNorm1d's channels are a Linear's outputs where there are two dimensions only.
        takes_rows = chain.norm is not None and isinstance(chain.layer, nn.Linear)
        fuse_layer(chain.layer, chain.activation, adds_in_place, takes_rows)
        text = f"fused: {', '.join(chain.steps)}"
        chain.layer.gossamer_fusion = text  # type: ignore[assignment]
    guards = tuple(
        sorted({str(node.target) for chain in chains for node in chain.nodes[1:] if _is_call(node)})
    )
    if is_sequential(owner):
        for chain in chains:
            for node in chain.nodes[1:]:
                owner._modules[str(node.target)] = nn.Identity().eval()
        return
    for chain in chains:
        _rewrite(graph, chain)
        if chain.norm is not None:  # or a state of before would be loaded as if it were still there
            owner._modules[chain.norm] = nn.Identity().eval()
    compiled_forward(owner, graph, guards)


def _is_read(graph: fx.Graph, name: str) -> bool:
    """Whether a forward takes a child's parameters or buffers by name."""
    return any(n.op == "get_attr" and str(n.target).startswith(f"{name}.") for n in graph.nodes)


def _is_call(node: fx.Node) -> bool:
    return node.op == "call_module"


def _chains(context: _Context, name: str, owner: nn.Module, graph: fx.Graph) -> Iterator[_Chain]:
    taken: set[fx.Node] = set()
    for node in graph.nodes:
        if not _is_call(node) or len(node.args) != 1 or node.kwargs:
            continue
        layer = owner.get_submodule(str(node.target))
        if type(layer) not in FUSED:
            continue
        full = f"{name}.{node.target}".lstrip(".")
        why = _layer_obstacle(context, node, layer) or context.reached_into(name, str(node.target))
        if why is None and _is_read(graph, str(node.target)):
            why = "its owner's forward uses its parameters itself"
        if why is not None:
            context.refused[full] = why
            continue
        chain = _grow(context, owner, _Chain(str(node.target), layer, [node]), taken)
        taken.update(chain.nodes)
        if chain.steps:
            yield chain
        elif len(node.users) > 1:
            context.refused[full] = "its result is used more than once"


def _layer_obstacle(context: _Context, node: fx.Node, layer: nn.Module) -> str | None:
    if "." in str(node.target):
        return "it is called by a module that is not its owner"
    why = context.obstacle(layer)
    if why is not None:
        return why
    weight = layer._parameters.get("weight")
    if weight is None or hasattr(layer, "parametrizations"):
        return "its weight is computed on every call"
    if context.weights[id(weight)] > 1:
        return "its weight is shared"
    return None


def _grow(context: _Context, owner: nn.Module, chain: _Chain, taken: set[fx.Node]) -> _Chain:
    """Takes one step after another while each is the only user of the one before."""
    sequential = is_sequential(owner)
    while len(chain.nodes[-1].users) == 1:
        last = chain.nodes[-1]
        (node,) = last.users
        if node in taken:  # the sum of two layers: the first has it
            break
        module = owner.get_submodule(str(node.target)) if _is_call(node) else None
        if module is not None and (node.args != (last,) or node.kwargs):
            break
        if module is not None and sequential and context.obstacle(module) is not None:
            break
        if module is not None and (_has_hooks(module) or module.training):
            break
        if does_nothing(node, module, last, sequential):
            chain.nodes.append(node)
            continue
        if module is not None and _norm_fits(context, chain, node, module):
            chain.norm = str(node.target)
            chain.steps.append(f"BatchNorm '{node.target}'")
        elif module is None and _residual(chain, node, last) is not None:
            chain.addition = node
            chain.steps.append("residual")
        elif (activation := activation_of(node, module, last)) is not None:
            name, nodes = with_square(activation, node)
            chain.nodes += nodes
            chain.activation = name
            chain.steps.append(name)
            break
        else:
            break
        chain.nodes.append(node)
    if chain.addition is not None and not _may_move(owner, chain):
        fresh = _Chain(chain.name, chain.layer, chain.nodes[:1])
        return _grow(context, owner, fresh, taken | {chain.addition})
    if not _may_move(owner, chain):
        return _Chain(chain.name, chain.layer, chain.nodes[:1])
    return chain


def _norm_fits(context: _Context, chain: _Chain, node: fx.Node, norm: nn.Module) -> bool:
    layer, graph, target = chain.layer, node.graph, str(node.target)
    if chain.norm or chain.addition or type(norm) is not _NORMS[type(layer)]:
        return False
    why = context.obstacle(norm)
    if norm.running_mean is None or norm.running_var is None:
        why = "its BatchNorm has no running statistics"
    weight = layer.weight
    rows = weight.shape[0]  # type: ignore[index]
    if isinstance(weight, SparseWeight) and (weight.scale is not None or weight.transposed):
        why = "its packed weight is quantized; fold before packing"
    if "." in target or _is_read(graph, target):
        why = "its BatchNorm belongs to another module, or its owner uses its parameters itself"
    if norm.num_features != rows:
        why = "its BatchNorm has another number of channels"
    if why is not None:
        context.refused[_name_of(context, layer)] = why
    return why is None


def _name_of(context: _Context, module: nn.Module) -> str:
    return next(name for name, other in context.modules.items() if other is module)


def _residual(chain: _Chain, node: fx.Node, last: fx.Node) -> fx.Node | None:
    if chain.addition is not None or node.kwargs or len(node.args) != 2:
        return None
    is_method = node.op == "call_method" and node.target in ("add", "add_", "__add__", "__iadd__")
    if not is_method and not (node.op == "call_function" and node.target in _ADDITIONS):
        return None
    left, right = node.args
    if left is last:
        other = right
    elif right is last and node.target not in _IN_PLACE:
        other = left
    else:
        return None
    return other if isinstance(other, fx.Node) and other is not last else None


def _may_move(owner: nn.Module, chain: _Chain) -> bool:
    """Whether the layer may run where its last step does: nothing between changes its input."""
    taken = set(chain.nodes)
    node = chain.nodes[0]
    while node is not chain.nodes[-1]:
        if node not in taken and not (_is_call(node) and _is_pure(owner, node)):
            return False
        node = node.next
    return True


_PURE = (
    nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d, nn.Identity, nn.AvgPool2d, nn.MaxPool2d,
    nn.LayerNorm, FusedConv2d, FusedLinear,
)  # fmt: skip


def _is_pure(owner: nn.Module, node: fx.Node) -> bool:
    module = owner.get_submodule(str(node.target))
    parts = list(module.children()) if type(module) is nn.Sequential else [module]
    is_known = all(type(part) in _PURE and not _has_hooks(part) for part in parts)
    return is_known and not _has_hooks(module) and "forward" not in module.__dict__


def _fold(layer: nn.Module, norm: Any) -> None:
    """W·s and (bias - mean)·s + beta with s = gamma / sqrt(var + eps), in float64."""
    with torch.no_grad():
        weight: Tensor = layer.weight  # type: ignore[assignment]
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        bias = -norm.running_mean.double()
        if layer.bias is not None:
            bias = bias + layer.bias.double()
        bias = bias * scale
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        values = weight.to_dense() if isinstance(weight, SparseWeight) else weight
        rows = scale.reshape(-1, *[1] * (values.dim() - 1))
        weight.copy_((values.double() * rows).to(values.dtype))
        needs_grad = layer.bias.requires_grad if layer.bias is not None else weight.requires_grad
        layer.bias = nn.Parameter(bias.to(values.dtype), requires_grad=bool(needs_grad))


def _rewrite(graph: fx.Graph, chain: _Chain) -> None:
    first, last = chain.nodes[0], chain.nodes[-1]
    operands = list(first.args)
    if chain.addition is not None:  # asked of the graph as it is: others are rewritten before
        operands += [one for one in chain.addition.args if one not in chain.nodes]
    with graph.inserting_after(last):
        fused = graph.call_module(chain.name, tuple(operands))
    last.replace_all_uses_with(fused)
    for node in reversed(chain.nodes):
        graph.erase_node(node)
