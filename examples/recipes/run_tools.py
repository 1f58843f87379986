# SPDX-License-Identifier: BSD-3-Clause
"""What the recipes share: the device, progress on a terminal, the table at the end."""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch


def new_parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every recipe takes: data, device, methods, patterns."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", help="folder with the data (default: GOSSAMER_DATA)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--methods", help="some of the methods, separated by semicolons")
    parser.add_argument("--patterns", help="some of the table's columns, separated by semicolons")
    return parser


def pick_device(name: str) -> torch.device:
    """The device with that name; what runs there is full float32 unless autocast says otherwise.

    Raises:
        ValueError: torch knows no such device, or has none here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name}: {reason}; cpu, cuda or cuda:N is accepted") from None
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
        ValueError: one of them is not known.
    """
    if asked is None:
        return list(default)
    names = [name.strip() for name in asked.split(";") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r}: one of {list(known)} is accepted")
    return names


def seeds_of(text: str) -> list[int]:
    """Seeds separated by commas."""
    return [int(seed) for seed in text.split(",")]


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
    """The mean, and the standard deviation where there are several; empty where there are none."""
    if not values:
        return ""
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
