# SPDX-License-Identifier: BSD-3-Clause
"""Running a model for the inputs of its layers: by hooks, without tracing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from gossamer._errors import first_line
from gossamer.prune.attention import (
    inputs_of_output,
    outputs_of_attention,
    without_fused_attention,
)
from gossamer.prune.batches import Forward, first_pass
from gossamer.prune.key_caches import without_key_caches
from gossamer.prune.routing import RoutingWatch
from gossamer.prune.stages import Call, StageWatch, version_of

__all__ = [
    "Layers",
    "Order",
    "capture_call",
    "capture_inputs",
    "common_order",
    "evaluating",
    "find_order",
    "watch_inputs",
]

Layers: TypeAlias = "Mapping[str, nn.Module]"
"""Layers by the full name of their weight."""


class _ReachedError(Exception):
    """Ends a forward pass whose rest is not needed."""


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients and key caches; each module's own mode comes back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), without_fused_attention(), without_key_caches(model):
            yield
    finally:
        for module, training in modes:
            module.training = training


@dataclass
class Order:
    """When layers are called.

    Attributes:
        groups: layers in the order of their first call; those that always get the same input
            together.
        calls: how often each was called, for each batch.
        samples: how many numbers each was given, over all batches.
        routed: those that were given rows which a router picked.
        rare: those that some batch never calls.
        unwatched: why routers could not be watched; None where they were.
    """

    groups: list[list[str]] = field(default_factory=list)
    calls: dict[str, list[int]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    routed: set[str] = field(default_factory=set)
    rare: set[str] = field(default_factory=set)
    unwatched: str | None = None

    def now_and_then(self, name: str) -> bool:
        """Whether what the batches hold decides if a layer sees anything, as for an expert."""
        return name in self.routed or name in self.rare

    def expected(self, name: str) -> list[int | None]:
        """The calls of a layer in each batch; None where other weights may lead to others."""
        calls = self.calls[name]
        return [None] * len(calls) if self.now_and_then(name) else list(calls)


@dataclass(frozen=True)
class _Seen:
    """One call of a layer.

    Attributes:
        name: the layer's.
        samples: how many numbers it was given.
        picked: whether a router picked its rows.
        before: the layer that was called with the very same input just before; None for none.
    """

    name: str
    samples: int
    picked: bool
    before: str | None


def common_order(orders: Sequence[Order], own: int) -> Order:
    """One order of what several processes saw, each in batches of its own.

    Layers that any of them groups otherwise are apart.

    Args:
        orders: of all processes.
        own: which is this one's, whose calls stay those of its batches.
    """
    sequence: list[str] = []
    firsts: list[dict[str, str]] = []
    merged = Order(calls=orders[own].calls, samples=dict.fromkeys(orders[own].samples, 0))
    for order in orders:
        _merge(sequence, [name for group in order.groups for name in group])
        firsts.append({name: group[0] for group in order.groups for name in group})
        merged.routed |= order.routed
        merged.rare |= order.rare
        merged.unwatched = merged.unwatched or order.unwatched
        for name, count in order.samples.items():
            merged.samples[name] += count
    for name in sequence:
        last = merged.groups[-1][0] if merged.groups else name
        if name != last and all(first.get(name) == first.get(last) for first in firsts):
            merged.groups[-1].append(name)
        else:
            merged.groups.append([name])
    return merged


def find_order(
    model: nn.Module,
    layers: Layers,
    batches: Sequence[Any],
    forward: Forward,
    watch: StageWatch,
) -> Order:
    """Runs all batches once to see in which order layers are called.

    Layers of one shape of inputs that are called one after the other with the very same tensor, in
    every batch, form a group: their inputs are captured once.
    """
    order = Order(
        calls={name: [0] * len(batches) for name in layers}, samples=dict.fromkeys(layers, 0)
    )
    routing = RoutingWatch(model)
    sequence: list[str] = []
    together: dict[str, str] = {}
    apart: set[str] = set()

    def run(index: int, *, watched: bool) -> list[_Seen]:
        seen: list[_Seen] = []
        last: tuple[str, Tensor, int | None] | None = None

        def record(name: str, x: Tensor) -> None:
            nonlocal last
            version = version_of(x)
            same = last is not None and last[1] is x and last[2] == version is not None
            before = last[0] if last is not None and same else None
            seen.append(_Seen(name, x.numel(), routing.picked(x), before))
            last = (name, x, version)

        with contextlib.ExitStack() as stack:
            if watched:
                stack.enter_context(routing.batch())
            stack.enter_context(watch_inputs(model, layers, record))
            stack.enter_context(watch.batch(routing.picked))
            first_pass(model, batches[index], forward, index)
        return seen

    for index in range(len(batches)):
        try:
            seen = run(index, watched=order.unwatched is None)
        except Exception as error:
            if order.unwatched is not None:
                raise
            # Some operators refuse to be watched, those that compile themselves for one.
            seen = run(index, watched=False)
            order.unwatched = first_line(error)
        for own in seen:
            order.calls[own.name][index] += 1
            order.samples[own.name] += own.samples
            if own.picked:
                order.routed.add(own.name)
            is_linear = isinstance(layers[own.name], nn.Linear)
            before = own.before if is_linear else None
            if before is None or together.setdefault(own.name, before) != before:
                apart.add(own.name)
        _merge(sequence, [own.name for own in seen])
    order.rare = {name for name, calls in order.calls.items() if not all(calls)}
    groups = order.groups
    for name in sequence:
        joins = name not in apart and groups and groups[-1][-1] == together.get(name)
        if joins and isinstance(layers[groups[-1][0]], nn.Linear):
            groups[-1].append(name)
        else:
            groups.append([name])
    return order


def capture_inputs(
    model: nn.Module,
    layer: nn.Module,
    batch: Any,
    forward: Forward,
    calls: int | None,
) -> list[Tensor]:
    """What a layer is called with during one forward pass, which ends at its last call.

    Args:
        model: whose forward pass it is.
        layer: one of its modules.
        batch: what the model is called with.
        forward: how.
        calls: how many calls of the layer the pass makes; None where that is not known.
    """
    seen: list[Tensor] = []

    def record(name: str, x: Tensor) -> None:
        # A later layer may write into its input.
        seen.append(x if len(seen) + 1 == calls else x.clone())
        if len(seen) == calls:
            raise _ReachedError

    if calls != 0:
        with watch_inputs(model, {"": layer}, record), contextlib.suppress(_ReachedError):
            forward(model, batch)
    return seen


def capture_call(model: nn.Module, block: nn.Module, batch: Any, forward: Forward) -> Call:
    """The arguments of the one call of a block, where the forward pass ends."""
    seen: list[Call] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _ReachedError

    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with contextlib.suppress(_ReachedError):
            forward(model, batch)
    finally:
        handle.remove()
    (call,) = seen
    return call


@contextlib.contextmanager
def watch_inputs(
    model: nn.Module | None, layers: Layers, record: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Tells `record` of each call of the layers, before it is made.

    The output layer of an nn.MultiheadAttention, which is never called, counts as called with it.

    Args:
        model: holds the layers; None to watch only those that are called themselves.
        layers: what is watched.
        record: called with a layer's name and its inputs.
    """
    attentions = {} if model is None else outputs_of_attention(model)

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"'{name}' is called with a {type(x).__name__}: a tensor is accepted; make "
                    "batches of tensors (torch.as_tensor of arrays, a tokenizer's output of texts) "
                    "or pass a forward that does"
                )
            record(name, x)

        def hook_of_attention(
            module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            record(name, inputs_of_output(module, args, kwargs))

        return hook_of_attention if id(layers[name]) in attentions else hook

    handles = [
        attentions.get(id(layer), layer).register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _merge(sequence: list[str], found: Sequence[str]) -> None:
    """Adds names that are new to a sequence, each after the one it was called after."""
    last = -1
    for name in dict.fromkeys(found):
        if name in sequence:
            last = sequence.index(name)
        else:
            last += 1
            sequence.insert(last, name)
