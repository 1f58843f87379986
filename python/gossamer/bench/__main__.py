# SPDX-License-Identifier: BSD-3-Clause
"""`python -m gossamer.bench SUITE [--quick|--full] [--dtype D] [--json OUT] [--data DIR] …`."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

import gossamer as gs
from gossamer._roofline import measure_roofline
from gossamer.bench import (
    convert,
    cpu_conv,
    cpu_decode,
    cpu_linear,
    cpu_model,
    gpu_24,
    gpu_24_8bit,
    gpu_model,
    gpu_more,
    host,
    plan,
    solvers,
)
from gossamer.bench.record import Record, append
from gossamer.bench.suite import DTYPES, Options


def _gpu_24(options: Options) -> Iterator[Record]:
    """16 bits, then 8."""
    yield from gpu_24.run(options)
    yield from gpu_24_8bit.run(options)


SUITES: dict[str, Callable[[Options], Iterator[Record]]] = {
    "convert": convert.run,
    "cpu-conv": cpu_conv.run,
    "cpu-decode": cpu_decode.run,
    "cpu-linear": cpu_linear.run,
    "cpu-model": cpu_model.run_models,
    "cpu-stacks": cpu_model.run_stacks,
    "gpu-24": _gpu_24,
    "gpu-24-more": gpu_more.run,
    "gpu-model": gpu_model.run,
    "host": host.run,
    "plan": plan.run,
    "solvers": solvers.run,
}
"""Name to what yields its records."""

DEVICE_SUITES = ("convert", "solvers")
"""Suites that measure on the device that they are told."""

DTYPE_SUITES = ("cpu-decode", "cpu-linear", "plan")
"""Suites that measure in the dtype that they are told."""

SECONDS = {
    "cpu-linear": 230,
    "cpu-conv": 150,
    "cpu-decode": 110,
    "cpu-model": 100,
    "cpu-stacks": 90,
}
"""What a normal run may take, all thread counts together; others take what they need."""
QUICK_SECONDS = 45

_DEFAULT_CACHE = 32 << 20
_COLUMNS = (
    ("layer", 36),
    ("pattern", 17),
    ("tokens", 6),
    ("threads", 7),
    ("kernel", 30),
    ("ms", 9),
    ("dense ms", 9),
    ("csr ms", 9),
    ("speed-up", 8),
    ("bound", 6),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status is 1 for a broken promise of the plan, 2 for bad usage."""
    arguments = _parse(argv)
    counts = _thread_counts(arguments.threads)
    written: dict[Path, None] = {}
    # Plans are made anew: an old verdict would be measured, not this build's.
    os.environ.setdefault("GOSSAMER_CACHE", "off")
    begin = time.monotonic()
    print(_line([name for name, _ in _COLUMNS]), flush=True)
    before = torch.get_num_threads()
    broken: list[str] = []
    try:
        for turn, count in enumerate(counts, 1):
            torch.set_num_threads(count)
            deadline = begin + _seconds(arguments) * turn / len(counts)
            with torch.inference_mode():
                try:
                    for record in SUITES[arguments.suite](_options(arguments, deadline)):
                        if arguments.json is not None:
                            target = _target(arguments.json, record)
                            append(record, target)
                            written[target] = None
                        _clear()
                        print(_line(_cells(record)), flush=True)
                except plan.BrokenPromiseError as error:
                    broken += str(error).splitlines()
    finally:
        torch.set_num_threads(before)
        _clear()
    for target in written:
        print(f"written to {target}")
    if broken:
        print("broken promises, each measured twice:", *broken, sep="\n  ")
    return 1 if broken else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gossamer.bench", description=__doc__)
    parser.add_argument("suite", choices=sorted(SUITES))
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="few cases, less than a minute")
    extent.add_argument("--full", action="store_true", help="every case, as long as it takes")
    parser.add_argument(
        "--seconds", type=float, help="no case begins later; the normal form has a limit of its own"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("GOSSAMER_DATA") or None,
        help="folder with resnet_cifar10/ and dlmc_subset.tar.gz (GOSSAMER_DATA)",
    )
    parser.add_argument(
        "--json",
        metavar="OUT",
        help="append to OUT; 'auto' is bench/results/<processor or GPU>.jsonl",
    )
    parser.add_argument(
        "--threads", default="", help="comma-separated, e.g. 1,all; quick runs take all by default"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"of {' and '.join(DTYPE_SUITES)}; int8 quantizes float32 layers",
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help=f"of {' and '.join(DEVICE_SUITES)}; the GPU where there is one by default",
    )
    parser.add_argument("--filter", default="", help="only cases whose name holds this text")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant, 9 or more")
    arguments = parser.parse_args(argv)
    if arguments.dtype is not None and arguments.suite not in DTYPE_SUITES:
        parser.error(f"--dtype {arguments.dtype}: {arguments.suite} has no choice of dtype")
    if arguments.device is not None and arguments.suite not in DEVICE_SUITES:
        parser.error(f"--device {arguments.device}: {arguments.suite} has no choice of device")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU; --device cpu measures the processor")
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.rounds < 9:
        parser.error(f"--rounds {arguments.rounds}: at least 9 are accepted")
    if arguments.data is not None and not arguments.data.is_dir():
        parser.error(f"--data {arguments.data}: no such folder")
    arguments.threads = arguments.threads or ("all" if arguments.quick else "1,all")
    try:
        _thread_counts(arguments.threads)
    except ValueError:
        parser.error(
            f"--threads {arguments.threads}: numbers from 1, or 'all', separated by commas"
        )
    return arguments


def _thread_counts(text: str) -> list[int]:
    counts = []
    for part in text.split(","):
        count = torch.get_num_threads() if part.strip() == "all" else int(part)
        if count < 1:
            raise ValueError(part)
        if count not in counts:
            counts.append(count)
    return counts


def _target(text: str, record: Record) -> Path:
    """The file of a line: a suite may measure a processor or a GPU, whose lines lie apart."""
    return Path("bench/results") / f"{record.machine}.jsonl" if text == "auto" else Path(text)


def _seconds(arguments: argparse.Namespace) -> float:
    if arguments.seconds is not None:
        return float(arguments.seconds)
    if arguments.full:
        return math.inf
    return QUICK_SECONDS if arguments.quick else SECONDS.get(arguments.suite, math.inf)


def _options(arguments: argparse.Namespace, deadline: float) -> Options:
    cache_bytes = gs.machine().l3_bytes or _DEFAULT_CACHE
    overhead = host.call_overhead(*host.tiny(host.PATTERNS[0]), arguments.rounds)
    return Options(
        extent="quick" if arguments.quick else "full" if arguments.full else "normal",
        rounds=arguments.rounds,
        filter=arguments.filter,
        cache_bytes=cache_bytes,
        roofline=measure_roofline(cache_bytes),
        host_us=1e3 * overhead.median_ms["gossamer"],
        progress=_progress,
        note=_note,
        data=arguments.data,
        deadline=deadline,
        dtype=arguments.dtype,
        device=arguments.device,
    )


def _cells(record: Record) -> list[str]:
    csr = record.peers.get("torch_csr")
    return [
        (record.layer or f"{record.out}x{record.inputs}")[-36:],
        record.pattern,
        str(record.tokens),
        str(record.threads),
        record.kernel,
        f"{record.ms:.4f}",
        f"{record.dense_ms:.4f}",
        "-" if csr is None else f"{csr:.4f}",
        f"{record.speedup:.2f}x",
        "-" if record.bound_speedup is None else f"{record.bound_speedup:.1f}x",
    ]


def _line(cells: Sequence[str]) -> str:
    left = {"layer", "pattern", "kernel"}
    return "  ".join(
        cell.ljust(width) if name in left else cell.rjust(width)
        for cell, (name, width) in zip(cells, _COLUMNS, strict=True)
    )


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _note(text: str) -> None:
    _clear()
    print(f"note, {torch.get_num_threads()} threads: {text}", flush=True)


def _clear() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
