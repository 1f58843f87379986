# SPDX-License-Identifier: BSD-3-Clause
"""Suite `plan`: is what the plan chose the best there is?

Every layer is packed with `memory="speed"`, and then each row of the kernel table that computes it
is forced by name and timed beside the planned choice and dense, in turn. Two promises are checked
at every count of tokens:

* the planned choice takes at most 1.10 times as long as the best of all rows and dense,
* and at most dense's time / 0.97; the 3 µs of the call are forgiven.

A case that seems to break one is measured again, with more rounds, before it counts; the command
ends with status 1 where one is broken then too. `peers` of a line holds the time of every row that
is within 1.5 times of the best.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer as gs
from gossamer.bench.engines import describe
from gossamer.bench.race import kernel_at
from gossamer.bench.record import Record
from gossamer.bench.subject import Subject, make_subject
from gossamer.bench.suite import Options, measured, named, now
from gossamer.bench.timing import contest

__all__ = [
    "CALL_MS",
    "OVER_BEST",
    "PLANNED",
    "UNDER_DENSE",
    "BrokenPromiseError",
    "Case",
    "broken_promise",
    "cases",
    "run",
]

OVER_BEST = 1.10
UNDER_DENSE = 0.97
CALL_MS = 3e-3
_NEAR = 1.5
"""Rows that a first look puts so many times over the best are not timed any further."""
_DENSE = "dense"
PLANNED = "plan: "
"""Before the row that the plan chose, in the names of times."""

SHAPES = {
    "minilm.up": (1536, 384),
    "bert-base.query": (768, 768),
    "bert-base.up": (3072, 768),
    "bert-base.down": (768, 3072),
    "llama-8b.key": (1024, 4096),
}
PATTERNS = {
    "float32": (
        *(f"unstructured:{s}" for s in (0.5, 0.7, 0.8, 0.9, 0.95)),
        "2:4",
        "block:32x32:0.8",
        "block:16x1:0.8",
    ),
    "bfloat16": ("unstructured:0.8", "block:1x2:0.8"),
    "int8": ("unstructured:0.8", "unstructured:0.95", "block:1x4:0.8"),
}
TOKENS = (1, 8, 32, 128, 256, 512)


class BrokenPromiseError(Exception):
    """What the plan chose was worse than promised; the message has a line for each case."""


@dataclass(frozen=True)
class Case:
    """One layer.

    Attributes:
        name: network and layer.
        out: outputs.
        inputs: inputs.
        pattern: of the weight.
        dtype: one of `gossamer.bench.suite.DTYPES`.
        tokens: counts.
    """

    name: str
    out: int
    inputs: int
    pattern: str
    dtype: str = "float32"
    tokens: tuple[int, ...] = TOKENS

    def __str__(self) -> str:
        return f"{self.name} {self.out}x{self.inputs} {self.pattern} {self.dtype}"


def cases(extent: str, dtype: str | None = None) -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS`, of one dtype or of all."""
    names = tuple(SHAPES)[: {"quick": 2, "normal": 3}.get(extent, len(SHAPES))]
    tokens = (1, 32, 128) if extent == "quick" else TOKENS
    found = []
    for one in (dtype,) if dtype else tuple(PATTERNS):
        patterns = PATTERNS[one]
        if extent == "quick":
            patterns = patterns[1:6:2] if one == "float32" else patterns[:1]
        found += [
            Case(name, *SHAPES[name], pattern, one, tokens)
            for name in names
            for pattern in patterns
        ]
    return found


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Raises:
        BrokenPromiseError: after all cases, where one broke a promise twice.
    """
    broken = []
    for case in measured(options, partial(cases, dtype=options.dtype), chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        torch.manual_seed(0)
        quantize = case.dtype == "int8"
        dtype = torch.float32 if quantize else getattr(torch, case.dtype)
        subject = make_subject(
            case.out, case.inputs, case.pattern, dtype, quantize=quantize, memory="speed"
        )
        forced = _forced_weights(subject, case.dtype)
        for tokens in case.tokens:
            record, why = _measure(case, subject, forced, tokens, options)
            yield record
            if why:
                broken.append(f"{case}, {tokens} tokens, {record.threads} threads: {why}")
                options.note(broken[-1])
    if broken:
        raise BrokenPromiseError("\n".join(broken))


def broken_promise(times: Mapping[str, float], planned: str) -> str:
    """What is worse than promised, or "".

    Args:
        times: name to milliseconds, dense and the planned choice among them.
        planned: its name, the row's behind `PLANNED`.
    """
    ms, dense_ms = times[planned], times[_DENSE]
    others = {n: time for n, time in times.items() if planned not in (n, PLANNED + n)}
    best = min(others, key=others.__getitem__, default="")
    if ms > dense_ms / UNDER_DENSE + CALL_MS:
        return f"{planned} takes {ms:.4f} ms, dense {dense_ms:.4f}: {dense_ms / ms:.2f}x"
    # A layer that holds a dense copy pays for asking whether it is to run.
    if best and ms > others[best] * OVER_BEST + CALL_MS:
        return f"{planned} takes {ms:.4f} ms, {best} {others[best]:.4f}: {ms / others[best]:.2f}x"
    return ""


def _forced_weights(subject: Subject, dtype: str) -> dict[str, gs.SparseWeight]:
    """The layer's weight for each row that computes it here, planned to run that row alone."""
    ops = torch.ops.gossamer
    if dtype == "int8":
        formed = _quantized(subject)
    else:
        formed = gs.SparseWeight.from_dense(subject.dense, subject.pattern)
    layouts: dict[str, Tensor | None] = {}
    found = {}
    for row in gs.kernels():
        if row.operation != "linear" or row.weight_dtype != dtype or not row.runs_here:
            continue
        if row.layout not in layouts:
            try:
                layouts[row.layout] = ops.convert(formed.packed, row.layout)
            except ValueError:  # it holds other patterns
                layouts[row.layout] = None
        packed = layouts[row.layout]
        if packed is None:
            continue
        packed = ops.with_plan(packed, json.dumps([row.name] * len(formed.plan)))
        found[row.name] = formed._replace(packed)
    return found


def _quantized(subject: Subject) -> gs.SparseWeight:
    """In its format, whatever the plan thought of it."""
    out, inputs = subject.dense.shape
    layer = torch.nn.Linear(inputs, out, bias=False)
    with torch.no_grad():
        layer.weight.copy_(subject.dense)
    config = gs.Int8DynamicActivationSparseWeightConfig(subject.pattern)
    gs.sparsify_(layer, config, layout="format")
    assert isinstance(layer.weight, gs.SparseWeight)
    return layer.weight


def _calls(
    subject: Subject, forced: Mapping[str, gs.SparseWeight], x: Tensor
) -> dict[str, Callable[[], object]]:
    calls: dict[str, Callable[[], object]] = {
        name: partial(F.linear, x, weight) for name, weight in forced.items()
    }
    calls[_DENSE] = partial(F.linear, x, subject.dense)
    return calls


def _measure(
    case: Case,
    subject: Subject,
    forced: Mapping[str, gs.SparseWeight],
    tokens: int,
    options: Options,
) -> tuple[Record, str]:
    x = torch.randn(tokens, case.inputs).to(subject.dense.dtype)
    kernel = kernel_at(subject.report, tokens)
    planned = PLANNED + kernel
    calls: dict[str, Callable[[], object]] = {planned: partial(F.linear, x, subject.held)}
    calls |= _calls(subject, forced, x)
    first = contest(calls, 2).least_ms
    near = _NEAR * min(first.values())
    calls = {n: c for n, c in calls.items() if first[n] <= near or n in (planned, _DENSE)}
    times = contest(calls, options.rounds).median_ms
    why = broken_promise(times, planned)
    if why:
        best = min(times, key=times.__getitem__)
        again = {name: calls[name] for name in {planned, best, _DENSE}}
        times |= contest(again, 3 * options.rounds).median_ms
        why = broken_promise({name: times[name] for name in again}, planned)
    peers = {name: ms for name, ms in times.items() if name != planned}
    record = Record(
        suite="plan",
        kernel=kernel,
        machine=gs.machine().name,
        device="cpu",
        threads=torch.get_num_threads(),
        dtype=case.dtype,
        pattern=case.pattern,
        sparsity=1.0 - subject.density,
        tokens=tokens,
        out=case.out,
        inputs=case.inputs,
        ms=times[planned],
        dense_ms=times[_DENSE],
        dense_impl=describe("torch_dense"),
        speedup=times[_DENSE] / times[planned],
        peers=peers,
        bytes=subject.held_bytes,
        bound_speedup=max(times[_DENSE] / min(times.values()), 1.0),
        host_us=options.host_us,
        version=gs.__version__,
        date=now(),
        layer=named(case.name),
    )
    return record, why
