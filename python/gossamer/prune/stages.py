# SPDX-License-Identifier: BSD-3-Clause
"""Blocks of a model that can be run by themselves, found by watching it run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "Call",
    "Stage",
    "StageWatch",
    "advance",
    "find_stages",
    "input_of",
    "output_of",
    "replay",
    "version_of",
]

Call: TypeAlias = "tuple[tuple[Any, ...], dict[str, Any]]"
"""Positional and keyword arguments of a module's call."""


@dataclass
class Stage:
    """A module that runs once in every forward pass and whose arguments can be kept.

    Attributes:
        module: the block.
        follows: the stage whose output it takes, with the same other arguments; None where
            something else comes between.
        writes_input: whether it changes its input in place.
    """

    module: nn.Module
    follows: Stage | None = None
    writes_input: bool = False


def replay(stage: Stage, call: Call) -> Any:
    """Runs a stage on kept arguments, which stay as they are."""
    args, kwargs = call
    if stage.writes_input:
        args, kwargs = _with_input(call, input_of(call).clone())
    return stage.module(*args, **kwargs)


def advance(stage: Stage, call: Call) -> Call:
    """Runs a stage; the arguments of the one that follows it."""
    return _with_input(call, output_of(stage, call))


def output_of(stage: Stage, call: Call) -> Tensor:
    """Runs a stage; its output, the first of them where it gives several."""
    output = replay(stage, call)
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def version_of(x: Tensor) -> int | None:
    """How often a tensor was written to; None where that is not known (torch.inference_mode)."""
    return None if x.is_inference() else x._version


def find_stages(model: nn.Module, layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Modules that may be stages: members of lists and sequences, the outermost of them.

    A list counts where at least two of its members hold layers that are pruned.
    """
    wanted = {id(layer) for layer in layers}
    found: list[nn.Module] = []

    def holds(module: nn.Module) -> bool:
        return any(id(part) in wanted for part in module.modules())

    def visit(module: nn.Module, *, inside: bool) -> None:
        members = list(module.children())
        is_list = isinstance(module, nn.Sequential | nn.ModuleList)
        if not is_list or not (inside or sum(holds(member) for member in members) >= 2):
            for member in members:
                visit(member, inside=False)
            return
        for member in members:
            if isinstance(member, nn.Sequential | nn.ModuleList):
                visit(member, inside=True)
            elif not isinstance(member, torch.jit.ScriptModule):  # Those take no hooks.
                found.append(member)

    visit(model, inside=False)
    unique = {id(module): module for module in found}
    return list(unique.values())


@dataclass
class _Run:
    """One call of a candidate: what went in and what came out, while the pass lasts."""

    module: nn.Module
    call: Call
    version: int
    output: Any = None
    output_version: int | None = None


@dataclass
class StageWatch:
    """Watches candidates over all batches and says which are stages.

    Attributes:
        candidates: modules that may be stages.
        refused: why a candidate is none, by its `id`.
    """

    candidates: Sequence[nn.Module]
    refused: dict[int, str] = field(default_factory=dict)
    _stages: dict[int, Stage] = field(default_factory=dict)
    _links: dict[int, int | None] = field(default_factory=dict)

    @contextlib.contextmanager
    def batch(self, picked: Callable[[Tensor], bool] = lambda _: False) -> Iterator[None]:
        """Watches one forward pass.

        Args:
            picked: whether the rows of an input are such as a router picked, which has no pairs in
                another model.
        """
        runs: list[_Run] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = (args, kwargs)
            x = input_of(call)
            version = version_of(x) if isinstance(x, Tensor) else None
            why = _obstacle(call)
            if why is None and picked(x):
                why = "a router picks the rows of its input"
            if why or version is None:
                self.refused.setdefault(id(module), why or "its input counts no changes")
                return
            if runs:
                self._link(runs[-1], module, call)
            else:
                self._links[id(module)] = None
            runs.append(_Run(module, call, version))

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            run = next((run for run in reversed(runs) if run.module is module), None)
            if run is None:
                return
            first = output if isinstance(output, Tensor) else _first_of(output)
            run.output = first
            run.output_version = version_of(first) if isinstance(first, Tensor) else None
            stage = self._stages.setdefault(id(module), Stage(module))
            stage.writes_input |= version_of(input_of(run.call)) != run.version

        handles = []
        for module in self.candidates:
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        called = [id(run.module) for run in runs]
        for module in self.candidates:
            count = called.count(id(module))
            if count != 1:
                self.refused.setdefault(id(module), f"a batch calls it {count} times")

    def refuse(self, refused: Iterable[Mapping[int, str]]) -> None:
        """Takes over what other processes refused, by the candidates' places in the list."""
        for reasons in refused:
            for index, why in reasons.items():
                self.refused.setdefault(id(self.candidates[index]), why)

    def refusals(self) -> dict[int, str]:
        """What was refused, by the candidates' places in the list."""
        found = ((index, id(module)) for index, module in enumerate(self.candidates))
        return {index: self.refused[key] for index, key in found if key in self.refused}

    def stages(self) -> list[Stage]:
        """The candidates that were called exactly once in every pass, with what they follow."""
        good = {key: stage for key, stage in self._stages.items() if key not in self.refused}
        for key, stage in good.items():
            link = self._links.get(key)
            stage.follows = good.get(link) if link is not None else None
        return list(good.values())

    def not_alone(self, model: nn.Module, layers: Sequence[nn.Module]) -> dict[str, str]:
        """The names of candidates that hold some of the layers and are no stages, with reasons."""
        wanted = {id(layer) for layer in layers}
        refused = {
            id(module): self.refused[id(module)]
            for module in self.candidates
            if id(module) in self.refused and any(id(part) in wanted for part in module.modules())
        }
        return {
            name: refused[id(module)]
            for name, module in model.named_modules()
            if id(module) in refused
        }

    def _link(self, last: _Run, module: nn.Module, call: Call) -> None:
        x = input_of(call)
        linked = (
            last.output is x
            and last.output_version == version_of(x)
            and _same_rest(last.call, call)
            and self._links.get(id(module), id(last.module)) == id(last.module)
        )
        self._links[id(module)] = id(last.module) if linked else None


def _first_of(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) and output else None


def input_of(call: Call) -> Any:
    """The first argument, which is what the stage before gave; None where there is none."""
    args, kwargs = call
    return args[0] if args else next(iter(kwargs.values()), None)


def _with_input(call: Call, x: Tensor) -> Call:
    args, kwargs = call
    if args:
        return (x, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): x}


def _obstacle(call: Call) -> str | None:
    """Why a call cannot be made again with the same arguments; None where it can."""
    args, kwargs = call
    named = {**{f"argument {index}": value for index, value in enumerate(args)}, **kwargs}
    for name, value in named.items():
        odd = _odd(value)
        if odd is not None:
            own = name if name.startswith("argument ") else f"argument '{name}'"
            return f"its {own} holds a {type(odd).__name__}, which cannot be passed twice"
    x = input_of(call)
    if not isinstance(x, Tensor):
        return f"its input is a {type(x).__name__}, not a tensor"
    return None


def _odd(value: Any) -> Any:
    """What of a value cannot be passed twice, as a cache that blocks append to; None of a plain."""
    if isinstance(value, tuple | list | dict):
        items = value.values() if isinstance(value, dict) else value
        return next((odd for odd in map(_odd, items) if odd is not None), None)
    is_plain = isinstance(value, Tensor | bool | int | float | str | torch.dtype | torch.device)
    return None if value is None or is_plain else value


def _same_rest(call: Call, other: Call) -> bool:
    """Whether two calls differ in their input alone."""
    blank = torch.empty(0)
    return _same(_with_input(call, blank), _with_input(other, blank))


def _same(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor) or isinstance(other, Tensor):
        return value is other
    if isinstance(value, tuple | list) and isinstance(other, tuple | list):
        pairs = zip(value, other, strict=False)
        return len(value) == len(other) and all(_same(a, b) for a, b in pairs)
    if isinstance(value, dict) and isinstance(other, dict):
        return list(value) == list(other) and all(_same(value[k], other[k]) for k in value)
    return bool(value == other)
