# SPDX-License-Identifier: BSD-3-Clause
"""Fingerprints of models, data and methods by what they hold, the same in every process."""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import logging
import sys
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["digest"]

_LIBRARIES = {"gossamer", "numpy", "torch", *sys.stdlib_module_names} - {"__main__"}
_PLAIN = (bool, int, float, complex, str, bytes, PurePath, torch.dtype, torch.device, range, slice)
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: classes of Python, and few of extensions.


def digest(value: Any, name: str) -> str:
    """A fingerprint of a value's contents.

    Tensors and arrays count by their bytes; modules by classes, plain attributes, parameters and
    buffers; functions by their code, defaults, closure and the globals that they read; objects by
    class and attributes; what libraries define by name.

    Args:
        value: anything of these, in dicts, sequences and sets.
        name: what it is, for messages.

    Raises:
        TypeError: something in it has no contents to compare, such as a generator or a file.
    """
    feed = _Feed()
    feed.value(value, name)
    return feed.state.hexdigest()


class _Feed:
    """Goes through a value; objects that hold themselves are fed once."""

    def __init__(self) -> None:
        self.state = hashlib.sha256()
        self._open: list[int] = []
        self._known: dict[int, tuple[int, Any]] = {}  # Functions and classes, kept alive.

    def text(self, *words: Any) -> None:
        """Feeds words so that none runs into the next."""
        for word in words:
            raw = word if isinstance(word, bytes) else str(word).encode()
            self.state.update(f"{len(raw)}:".encode())
            self.state.update(raw)

    def value(self, value: Any, path: str) -> None:
        """Feeds anything."""
        if value is None or value is ... or isinstance(value, _PLAIN):
            self.text(type(value).__qualname__, repr(value))
        elif isinstance(value, Tensor):
            self._tensor(value, path)
        elif _is_array(value):
            self._array(value, path)
        elif isinstance(value, logging.Logger):  # a global of much code; it computes nothing
            self.text("logger", value.name)
        elif isinstance(value, type):
            self._once(value, self._class, path)
        elif isinstance(value, FunctionType):
            self._once(value, self._function, path)
        elif isinstance(value, BuiltinFunctionType | ModuleType) or _is_operator(value):
            self.text("name", getattr(value, "__module__", ""), _name_of(value))
        elif id(value) in self._open:
            self.text("itself", len(self._open) - self._open.index(id(value)))
        else:
            self._open.append(id(value))
            try:
                self._compound(value, path)
            finally:
                self._open.pop()

    def _compound(self, value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            self._mapping(value, path)
        elif isinstance(value, list | tuple):
            self._sequence(type(value).__qualname__, value, path)
        elif isinstance(value, AbstractSet):
            self._sequence(
                "set", sorted(digest(item, f"an item of {path}") for item in value), path
            )
        elif isinstance(value, nn.Module):
            self._module(value, path)
        elif isinstance(value, functools.partial):
            self.text("partial")
            self._sequence("of", (value.func, value.args, value.keywords), path)
        elif isinstance(value, MethodType):
            self.text("method")
            self._sequence("of", (value.__func__, value.__self__), path)
        elif isinstance(value, enum.Enum):
            self.text("enum", _name_of(type(value)), value.name)
        elif isinstance(value, CodeType):
            self._code(value, path)
        else:
            self._object(value, path)

    def _once(self, value: Any, feed: Callable[[Any, str], None], path: str) -> None:
        if id(value) in self._known:
            self.text("known", self._known[id(value)][0])
            return
        self._known[id(value)] = len(self._known), value
        feed(value, path)

    # --- Data -------------------------------------------------------------------------------------

    def _tensor(self, value: Tensor, path: str) -> None:
        self.text("tensor", value.dtype, list(value.shape))
        try:
            dense = value.detach()
            dense = dense if dense.layout == torch.strided else dense.to_dense()
            raw = dense.cpu().contiguous().flatten().view(torch.uint8).numpy()
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            raise _refusal(path, value) from error
        self.state.update(raw.data)

    def _array(self, value: Any, path: str) -> None:
        self.text("array", value.dtype, list(value.shape))
        if value.dtype.hasobject:
            self._sequence("objects", value.ravel().tolist(), path)
        else:
            self.state.update(value.tobytes())

    def _mapping(self, value: Mapping[Any, Any], path: str) -> None:
        self.text("mapping", len(value))
        for key, item in value.items():
            self.value(key, f"a key of {path}")
            self.value(item, f"{path}[{key!r}]")

    def _sequence(self, kind: str, items: Iterable[Any], path: str) -> None:
        held = list(items)
        self.text(kind, len(held))
        for index, item in enumerate(held):
            self.value(item, f"{path}[{index}]")

    # --- Objects ----------------------------------------------------------------------------------

    def _object(self, value: Any, path: str) -> None:
        kind = type(value)
        slots = [name for base in kind.__mro__ for name in _slots(base) if hasattr(value, name)]
        by_python = all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
        if not by_python or not (hasattr(value, "__dict__") or slots):
            raise _refusal(path, value)
        self.text("object")
        self.value(kind, f"the class of {path}")
        own = {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}
        self.text(len(own))
        for name, item in own.items():
            self.text(name)
            self.value(item, f"{path}.{name}")

    def _module(self, value: nn.Module, path: str) -> None:
        for name, module in value.named_modules():
            own = f"{path}.{name}" if name else path
            self.text("module", name)
            self.value(type(module), f"the class of {own}")
            for key, item in vars(module).items():
                if key != "training" and not key.startswith("_") and _is_plain(item):
                    self.text(key)
                    self.value(item, f"{own}.{key}")
        for kind in (value.named_parameters(), value.named_buffers()):
            for name, tensor in kind:
                self.text(name)
                self._tensor(tensor, f"{path}.{name}")

    # --- Code -------------------------------------------------------------------------------------

    def _class(self, value: type, path: str) -> None:
        self.text("class", _name_of(value))
        for base in value.__mro__:
            if _of_library(base):
                continue
            for name, item in vars(base).items():
                function = getattr(item, "__func__", getattr(item, "fget", item))
                if isinstance(function, FunctionType):
                    self.text(name)
                    self.value(function, f"{path}.{name}")
                elif not name.startswith("__") and _is_plain(item):
                    self.text(name)
                    self.value(item, f"{path}.{name}")

    def _function(self, value: FunctionType, path: str) -> None:
        self.text("function", _name_of(value))
        if _of_library(value):
            return
        self._code(value.__code__, path)
        self.value(value.__defaults__, f"the defaults of {path}")
        self.value(value.__kwdefaults__, f"the defaults of {path}")
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        for name, cell in cells:
            self.text(name)
            try:
                held = cell.cell_contents
            except ValueError:  # Not assigned yet.
                continue
            self.value(held, f"'{name}', which {path} reads,")
        for name in _globals_read(value.__code__):
            if name in value.__globals__:
                self.text(name)
                self.value(value.__globals__[name], f"'{name}', which {path} reads,")

    def _code(self, value: CodeType, path: str) -> None:
        self.text("code", value.co_code, *value.co_names)
        self._sequence("constants", value.co_consts, path)


def _globals_read(code: CodeType) -> list[str]:
    """The names of globals that some code reads, in functions inside of it too."""
    found = {
        str(step.argval): None
        for step in dis.get_instructions(code)
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")
    }
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found.update(dict.fromkeys(_globals_read(inner)))
    return list(found)


def _of_library(value: Any) -> bool:
    """Whether installed code defines a class or function, which its name stands for."""
    module = str(getattr(value, "__module__", "") or "")
    if module.partition(".")[0] in _LIBRARIES:
        return True
    file = str(getattr(sys.modules.get(module), "__file__", "") or "")
    return "site-packages" in file or "dist-packages" in file


def _is_array(value: Any) -> bool:
    """Whether it is an array or a number of NumPy, which need not be installed."""
    return hasattr(value, "__array_interface__") and hasattr(value, "tobytes")


def _is_operator(value: Any) -> bool:
    """Whether it is an operator of torch, a method of a built-in class or the like."""
    kind = type(value)
    is_c = callable(value) and not kind.__flags__ & _HEAP_TYPE and not hasattr(value, "__dict__")
    return is_c or kind.__module__ == "torch._ops"


def _is_plain(value: Any) -> bool:
    """Whether an attribute of a module is a setting: a value, several, or a function."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (*_PLAIN, FunctionType, BuiltinFunctionType))


def _slots(kind: type) -> Iterable[str]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else slots
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _name_of(value: Any) -> str:
    name = getattr(value, "__qualname__", getattr(value, "__name__", str(value)))
    return f"{getattr(value, '__module__', '')}.{name}"


def _refusal(path: str, value: Any) -> TypeError:
    return TypeError(
        f"calibrate: resume= compares all that a result depends on, and {path} is a "
        f"{type(value).__module__}.{type(value).__qualname__}, whose contents cannot be compared; "
        "hold plain values, tensors, arrays or dataclasses instead, or leave resume= out"
    )
