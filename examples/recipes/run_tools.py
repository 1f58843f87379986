# SPDX-License-Identifier: BSD-3-Clause
"""What the recipes share: options, progress on a terminal, results on disk, the table."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


class InputError(ValueError):
    """An option that cannot be; its message is all that the user needs."""


def start(main: Callable[[], None]) -> None:
    """Runs a recipe; what is wrong with its options, files or packages ends it with one line."""
    try:
        main()
    except (InputError, FileNotFoundError, ModuleNotFoundError) as error:
        progress("")
        sys.exit(f"{Path(sys.argv[0]).name}: error: {error}")


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every recipe takes: data, device, methods, patterns."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", help="folder with the data (default: GOSSAMER_DATA)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--methods", help="some of the methods, separated by semicolons")
    parser.add_argument("--patterns", help="some of the table's columns, separated by semicolons")
    return parser


def pick_device(name: str, *, runs: bool = True) -> torch.device:
    """The device with that name; what runs there is full float32 unless autocast says otherwise.

    Args:
        name: cpu, cuda or cuda:N.
        runs: whether anything is to run there. A device that only names the run of a record need
            not be in this machine.

    Raises:
        InputError: torch knows no such device, or has none here.
    """
    try:
        device = torch.device(name)
        if runs:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--device {name}: {reason}; cpu, cuda or cuda:N is accepted") from None
    torch.backends.cudnn.allow_tf32 = False
    return device


def autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bfloat16 for the matrix products of training on a GPU; nothing on a CPU."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.autocast("cuda", dtype=torch.bfloat16)


def text_file(data: str | None, name: str) -> Path:
    """A file of the data folder's `text`.

    Raises:
        FileNotFoundError: it is not there; the message says what is expected.
    """
    path = Path(data or os.environ.get("GOSSAMER_DATA", "")) / "text" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; pass --data or set GOSSAMER_DATA to the folder with "
            f"text/{name}"
        )
    return path


def chosen(asked: str | None, known: Sequence[str], default: Iterable[str]) -> list[str]:
    """The methods (or patterns) that were asked for, or the default.

    Raises:
        InputError: one of them is not known, or there is none.
    """
    if asked is None:
        return list(default)
    names = [name.strip() for name in asked.split(";") if name.strip()]
    for name in names or [asked]:
        if name not in known:
            raise InputError(f"{name!r}: one of {list(known)} is accepted")
    return names


class Seeds(argparse.Action):
    """Whole numbers, separated by commas or spaces: `--seeds 0,1,2` or `--seeds 0 1 2`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option: str | None = None,
    ) -> None:
        """Puts a list of them into the namespace."""
        words = [word for text in values for word in text.split(",")]
        if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
            parser.error(
                f"argument {option}: {' '.join(values)!r}: different whole numbers are accepted, "
                "e.g. 0,1,2"
            )
        setattr(namespace, self.dest, [int(word) for word in words])


class Record:
    """The results of a run, cell by cell: in memory, and in a file where one is named.

    A run that is started again goes on behind the last cell. Runs side by side, of a seed each say,
    may share a file.

    Args:
        path: lines of JSON, made where it does not exist; None keeps nothing.
        run: all that results depend on but seed, method and column. Lines of other runs are left.
    """

    def __init__(self, path: Path | None, run: str) -> None:
        self._path, self._run = path, run
        self._found: dict[tuple[int, str, str], tuple[float, ...]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
                cell = (int(entry["seed"]), str(entry["method"]), str(entry["column"]))
                found = entry["result"]
                values = tuple(map(float, found if isinstance(found, list) else [found]))
                if entry["run"] == run:
                    self._found[cell] = values
            except (ValueError, KeyError, TypeError):
                raise InputError(
                    f"--record {path}, line {number}: {line!r} is no result; name a file that "
                    "this option wrote, or one that does not exist"
                ) from None

    def missing(self, seed: int, cells: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of the cells (method and column) that have no result yet."""
        return [cell for cell in cells if (seed, *cell) not in self._found]

    def get(self, method: str, column: str, seed: int = 0) -> tuple[float, ...] | None:
        """The numbers of a result; None where it is missing."""
        return self._found.get((seed, method, column))

    def add(self, seed: int, method: str, column: str, *result: float) -> None:
        """Keeps a result, one number or several."""
        self._found[seed, method, column] = result
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"run": self._run, "seed": seed, "method": method, "column": column}
            values = result[0] if len(result) == 1 else list(result)
            line = json.dumps({**entry, "result": values}, ensure_ascii=False)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def rows(
        self, seeds: Sequence[int], cells: Iterable[tuple[str, str]]
    ) -> dict[str, dict[str, list[float]]]:
        """Results by method and column, the first number of each seed."""
        rows: dict[str, dict[str, list[float]]] = {}
        for method, column in cells:
            found = [self._found[seed, method, column][0] for seed in seeds]
            rows.setdefault(method, {})[column] = found
        return rows


def progress(text: str) -> None:
    """Shows what is going on, in the last line of a terminal; nothing where there is none."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def done(text: str, begin: float) -> None:
    """Says what has ended, with the seconds since `begin`: what is left of a run cut short.

    Progress on a terminal, a line on the standard error output where there is none.

    Args:
        text: what has ended.
        begin: of `time.perf_counter`.
    """
    line = f"{text}  [{time.perf_counter() - begin:.0f} s]"
    if sys.stderr.isatty():
        progress(line)
    else:
        print(line, file=sys.stderr, flush=True)


def cell(values: Sequence[float], digits: int) -> str:
    """The mean, and the standard deviation where there are several; a dash where there are none."""
    if not values:
        return "–"
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def print_table(
    rows: Mapping[str, Mapping[str, Sequence[float]]], columns: Sequence[str], digits: int
) -> None:
    """A table in Markdown: a row for each method, the mean over seeds in each cell."""
    progress("")
    print(f"| method | {' | '.join(columns)} |")
    print("|" + "---|" * (len(columns) + 1))
    for name, found in rows.items():
        cells = [cell(found.get(column, ()), digits) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |")
