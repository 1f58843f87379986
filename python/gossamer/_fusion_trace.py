# SPDX-License-Identifier: BSD-3-Clause
"""Reads one module's forward as a graph of calls of its children, where that is safe.

Tracing runs the forward once with stand-ins for tensors, and what Python decides on the way is
decided for good. So a forward is read only where nothing it decides can differ between calls.
"""

from __future__ import annotations

import dis
import inspect
import operator
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

__all__ = [
    "Unreadable",
    "compiled_forward",
    "does_nothing",
    "is_activation_function",
    "is_sequential",
    "named_in_code",
    "read",
]

_DECIDES = frozenset(
    (
        *("isinstance", "issubclass", "type", "hasattr", "getattr", "setattr", "callable", "id"),
        *("len", "bool", "random", "globals", "locals", "is_tensor", "is_grad_enabled", "print"),
        *("is_autocast_enabled", "is_inference_mode_enabled", "requires_grad", "is_leaf", "time"),
        *("data_ptr", "item", "tolist", "get_num_threads", "gradient_checkpointing"),
    )
)
"""Names by which a forward asks for what a stand-in answers differently, or for the outside."""
_FRESH = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
_CATCHES = ("SETUP_FINALLY", "SETUP_WITH")  # Python 3.10; later ones keep a table
_STORES = ("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME")


class Unreadable(Exception):
    """Why a forward is not read, as a clause."""


class _OneLevel(fx.Tracer):
    """Every child is a call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def read(module: nn.Module) -> fx.Graph:
    """The graph of a module's forward, all of its children leaves.

    Raises:
        Unreadable: it cannot be read, or might differ from call to call.
    """
    if "forward" in module.__dict__:
        raise Unreadable("its forward was replaced on the instance")
    forward = type(module).forward
    if not isinstance(forward, types.FunctionType):
        raise Unreadable("its forward is not a Python function")
    for parameter in list(inspect.signature(forward).parameters.values())[1:]:
        is_plain = parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if not is_plain or parameter.default is not inspect.Parameter.empty:
            raise Unreadable(f"its argument {parameter.name} may be left out or given in many ways")
    if not is_sequential(module):  # its loop over its children is known
        for code in _codes(forward, module):
            _refuse_decisions(code)
    before = set(module.__dict__) | set(module._buffers)
    try:
        graph = _OneLevel().trace(module)
    except Exception as error:  # whatever a forward does with a stand-in
        first = str(error).partition("\n")[0]
        raise Unreadable(f"torch.fx cannot trace it ({type(error).__name__}: {first})") from error
    finally:
        # Tensors that a forward makes of nothing: torch.fx leaves those of this one call behind.
        made = (set(module.__dict__) | set(module._buffers)) - before
        for name in made:
            delattr(module, name)
    if made:
        raise Unreadable("its forward makes tensors that do not follow from its arguments")
    if not is_sequential(module):
        _restore_in_place(module, graph, list(_codes(forward, module)))
    return graph


def _restore_in_place(module: nn.Module, graph: fx.Graph, codes: list[types.CodeType]) -> None:
    """Makes `y += r` of what torch.fx took for `y + r`: the former keeps the dtype of y.

    Only where every addition is one, to a tensor that a child has just made and nobody else sees.
    """
    signs = {sign for code in codes for sign in _signs(code)}
    changing = {sign for sign in signs if sign.endswith("=")}
    if not changing:
        return
    if changing != {"+="} or "+" in signs:
        raise Unreadable(f"its forward uses {' and '.join(sorted(signs))} on what may be tensors")
    for node in graph.nodes:
        if node.op != "call_function" or node.target is not operator.add:
            continue
        left = node.args[0]
        is_call = isinstance(left, fx.Node) and left.op == "call_module"
        is_fresh = is_call and isinstance(module.get_submodule(str(left.target)), _FRESH)
        if not is_fresh or len(left.users) > 1:
            raise Unreadable("its forward changes a tensor in place that others may see")
        node.target = operator.iadd


def _signs(code: types.CodeType) -> Iterator[str]:
    """The binary operators in a function: "+", "+=", ..."""
    for step in dis.get_instructions(code):
        if step.opname == "BINARY_OP":
            yield step.argrepr
        elif step.opname.startswith("INPLACE_"):  # Python 3.10
            yield "+=" if step.opname == "INPLACE_ADD" else f"{step.opname}="
        elif step.opname == "BINARY_ADD":
            yield "+"


def named_in_code(kind: type[nn.Module]) -> frozenset[str]:
    """Every name that the methods of a class use, those it inherits from torch's base left out."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        waiting = [f.__code__ for f in vars(base).values() if isinstance(f, types.FunctionType)]
        while waiting:
            code = waiting.pop()
            names.update(code.co_names)
            waiting += [one for one in code.co_consts if isinstance(one, types.CodeType)]
    return frozenset(names)


def is_sequential(module: nn.Module) -> bool:
    """Whether a module calls its children one after the other, and nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _codes(forward: types.FunctionType, module: nn.Module) -> Iterator[types.CodeType]:
    """The code of a forward and of the Python functions outside of torch that it calls by name."""
    waiting, seen = [forward], set()
    while waiting:
        function = waiting.pop()
        if function.__code__ in seen:
            continue
        seen.add(function.__code__)
        inner = [function.__code__]
        while inner:
            code = inner.pop()
            inner += [one for one in code.co_consts if isinstance(one, types.CodeType)]
            yield code
            for name in code.co_names:
                found = function.__globals__.get(name, getattr(module, name, None))
                found = getattr(found, "__func__", found)
                if not isinstance(found, types.FunctionType):
                    continue
                if not (found.__module__ or "").startswith("torch."):
                    waiting.append(found)


def _refuse_decisions(code: types.CodeType) -> None:
    bad = _DECIDES.intersection(code.co_names)
    if bad:
        raise Unreadable(f"its forward uses {', '.join(sorted(bad))}, which may change")
    for step in dis.get_instructions(code):
        if step.opname in _STORES:
            raise Unreadable(f"its forward changes {step.argval}, which is more than its result")
    catches = any(step.opname in _CATCHES for step in dis.get_instructions(code))
    if catches or bool(getattr(code, "co_exceptiontable", None)) or code.co_freevars:
        raise Unreadable("its forward catches exceptions or closes over other variables")


def compiled_forward(module: nn.Module, graph: fx.Graph, guards: tuple[str, ...]) -> None:
    """Puts a graph in the place of a module's forward.

    Copies (`copy.deepcopy`) have it too. A call in training mode, of the module or of what
    `guards` names, is refused: the graph is that of evaluation.
    """
    graph.lint()
    source = graph.python_code("self")
    scope: dict[str, Any] = dict(source.globals)
    exec(compile(source.src, f"<fused {type(module).__name__}>", "exec"), scope)
    run = scope["forward"]

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.training or any(self.get_submodule(name).training for name in guards):
            raise RuntimeError(
                f"this {type(self).__name__} was fused for evaluation (gossamer.fuse_) and is in "
                "training mode; call model.eval(), or train the model as it was before fuse_"
            )
        if any(value is None for value in (*args, *kwargs.values())):
            raise RuntimeError(
                f"this {type(self).__name__} was fused (gossamer.fuse_) for tensors, and an "
                "argument is None; use the model as it was before fuse_"
            )
        return run(self, *args, **kwargs)

    # A bound method is copied with its module; torch.compile follows it.
    module.forward = types.MethodType(forward, module)


_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def does_nothing(node: fx.Node, module: nn.Module | None, last: fx.Node, sequential: bool) -> bool:
    """Whether a call gives what it gets: an Identity, a Dropout in evaluation mode.

    A Sequential has no forward of ours that would refuse training mode: its Dropouts stay.
    """
    if type(module) is nn.Identity:
        return True
    if type(module) in _DROPOUTS:
        return not sequential
    if node.op != "call_function" or node.target is not nn.functional.dropout:
        return False
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
    given = node.args[0] if node.args else node.kwargs.get("input")
    return training is False and given is last


def is_activation_function(target: Any, kwargs: dict[str, Any]) -> str | None:
    """The epilogue that a function of torch is, None where it is none."""
    functional = nn.functional
    if target in (functional.relu, torch.relu, functional.relu_, torch.relu_):
        return "relu"
    if target is functional.silu:
        return "silu"
    if target in (functional.gelu, torch._C._nn.gelu):
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(kwargs.get("approximate", "none"))
    return None
