# SPDX-License-Identifier: BSD-3-Clause
"""Reads `bench/results/*.jsonl`; a line that is not a record is refused, with its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from gossamer.bench.record import DERIVED, Record

__all__ = ["newest", "read"]

_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "dict[str, float]": (dict,),
}


def read(folder: Path) -> list[Record]:
    """All records of a folder's files, file by file in the order of their names.

    Raises:
        ValueError: a line is not a record; the message names file, line and field.
    """
    return [
        _record(text, f"{path.name}, line {number}")
        for path in sorted(folder.glob("*.jsonl"))
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
    ]


def newest(records: Iterable[Record]) -> list[Record]:
    """Of records of the same case the newest, the last of those of the same second.

    They come in the order of the cases' first records.
    """
    kept: dict[tuple[object, ...], Record] = {}
    for r in records:
        # On a GPU the threads of the host change nothing but who measured.
        threads = r.threads if r.device == "cpu" else 0
        case = (r.machine, r.suite, r.layer, r.out, r.inputs, r.dtype, r.pattern, r.tokens, threads)
        # Lines of several hosts may stand in any order.
        if case not in kept or r.date >= kept[case].date:
            kept[case] = r
    return list(kept.values())


def _record(text: str, place: str) -> Record:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error}); remove the line or repair it") from error
    if not isinstance(values, dict):
        raise ValueError(f"{place}: a {type(values).__name__}; an object with fields is accepted")
    if "in" in values:
        values["inputs"] = values.pop("in")
    for name in DERIVED:
        values.pop(name, None)
    known = {field.name: field for field in fields(Record)}
    for name in values:
        if name not in known:
            raise ValueError(f"{place}: field '{name}' is not known")
    for name, field in known.items():
        key = "in" if name == "inputs" else name
        if name not in values:
            if field.default is MISSING and field.default_factory is MISSING:
                raise ValueError(f"{place}: field '{key}' is missing")
            continue
        _check(values[name], str(field.type), f"{place}: field '{key}'")
    record = Record(**values)
    if record.ms <= 0 or record.dense_ms <= 0:
        raise ValueError(
            f"{place}: {record.ms} and {record.dense_ms} ms; times greater than 0 are accepted"
        )
    return record


def _check(value: Any, kind: str, what: str) -> None:
    right = isinstance(value, _KINDS[kind]) and not isinstance(value, bool)
    if right and isinstance(value, float):
        right = math.isfinite(value)
    if not right:
        raise ValueError(f"{what} is {value!r}; {kind} is accepted")
