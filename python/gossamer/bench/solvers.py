# SPDX-License-Identifier: BSD-3-Clause
"""Suite `solvers`: what pruning one layer takes.

A whole `calibrate` of a square float32 layer by SparseGPT, Wanda and ALPS at 2:4, beside a forward
pass of the same layer on the same inputs, which every calibration must run once: `speedup` is the
pass as a share of it. `transposable_mask` is beside a copy of its scores, on a CPU on one thread
whatever `--threads` says, since one thread is what its target speaks of. Every call is waited for.
Calls of a second and more run three rounds and not nine: what disturbs one is a small part of it.
`--json /dev/stdout` prints lines of JSON.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench.gpu_24 import gpu_name
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, measured, now
from gossamer.bench.timing import contest
from gossamer.prune import OneShot

__all__ = ["METHODS", "Case", "cases", "run"]

METHODS: dict[str, Callable[[str], OneShot]] = {
    "SparseGPT": gs.SparseGPT,
    "Wanda": gs.Wanda,
    "ALPS": gs.ALPS,
}
TRANSPOSABLE = "transposable_mask"
BATCHES = 4
LONG_SECONDS, LONG_ROUNDS = 1.0, 3


@dataclass(frozen=True)
class Case:
    """One solver on one layer.

    Attributes:
        what: of `METHODS`, or `TRANSPOSABLE`.
        side: outputs and inputs.
        tokens: rows of inputs, in four batches.
        device: `cpu` or `cuda`.
    """

    what: str
    side: int
    tokens: int
    device: str = "cpu"

    def __str__(self) -> str:
        return f"solvers {self.what} {self.side} {self.device}"


def cases(extent: str, device: str = "cpu") -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS` on a device.

    4096x4096 is the size that targets are set for. ALPS, whose eigenvectors and iterations take
    minutes of a CPU there, has it in `full` alone; elsewhere its layer is a quarter as wide.
    """
    names = (*METHODS, TRANSPOSABLE)
    if device == "cpu" and extent == "quick":
        return [Case(what, 512, 256, device) for what in names]
    found = [Case(what, 4096, 2048, device) for what in names]
    if device == "cpu":
        small = Case("ALPS", 1024, 512, device)
        own = [case for case in found if case.what != "ALPS"]
        found = [*own, small] if extent == "normal" else [*own, small, Case("ALPS", 4096, 2048)]
    return found


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads, but for masks on one.

    Args:
        options: of the command; its `device` says where.
        chosen: other cases than those of the command.
    """
    for case in measured(options, partial(cases, device=options.device), chosen):
        alone = case.what == TRANSPOSABLE and case.device == "cpu"
        with _threads(1 if alone else torch.get_num_threads()):
            options.progress(f"{case}, {torch.get_num_threads()} threads")
            with torch.inference_mode(False), torch.no_grad():
                record = _measure(case, options)
        yield record


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _medians(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Milliseconds of each call, in turn."""
    if max(_seconds(call) for call in calls.values()) < LONG_SECONDS:
        return contest(calls, rounds).median_ms
    turns = [{name: _seconds(call) for name, call in calls.items()} for _ in range(LONG_ROUNDS)]
    return {name: 1e3 * median(turn[name] for turn in turns) for name in calls}


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _measure(case: Case, options: Options) -> Record:
    torch.manual_seed(0)
    if case.what == TRANSPOSABLE:
        scores = torch.rand(case.side, case.side, device=case.device)
        room = torch.empty_like(scores)
        peer = "copy"
        calls: dict[str, Callable[[], object]] = {
            case.what: lambda: torch.ops.gossamer.transposable_mask(scores, 2, 4),
            peer: lambda: room.copy_(scores),
        }
    else:
        peer = "torch_dense"
        calls = _calibration(case, peer)
    times = _medians(
        {name: _finished(call, case.device) for name, call in calls.items()}, options.rounds
    )
    ms, peer_ms = times[case.what], times[peer]
    return Record(
        suite="solvers",
        kernel=case.what,
        machine=gs.machine().name if case.device == "cpu" else gpu_name(),
        device=case.device,
        threads=torch.get_num_threads(),
        dtype="float32",
        pattern="2:4",
        sparsity=0.5,
        tokens=0 if case.what == TRANSPOSABLE else case.tokens,
        out=case.side,
        inputs=case.side,
        ms=ms,
        dense_ms=peer_ms,
        dense_impl=f"torch {torch.__version__}",
        speedup=peer_ms / ms,
        peers={peer: peer_ms},
        bytes=4 * case.side**2,
        bound_speedup=1.0,
        host_us=options.host_us,
        version=gs.__version__,
        date=now(),
        layer=f"{case.what} {case.side}x{case.side}",
    )


def _calibration(case: Case, peer: str) -> dict[str, Callable[[], object]]:
    layer = nn.Linear(case.side, case.side, bias=False, device=case.device)
    mix = torch.randn(case.side // 4, case.side, device=case.device)
    hidden = torch.randn(case.tokens, case.side // 4, device=case.device)
    # Like what a ReLU gives: a few directions explain most of it.
    noise = torch.randn(case.tokens, case.side, device=case.device)
    batches = (hidden @ mix + 0.3 * noise).relu().chunk(BATCHES)
    plain = copy.deepcopy(layer)
    method = METHODS[case.what]("2:4")
    method.prepare(layer)
    weight = method.dense_weight(method.groups[0])

    def calibrate() -> None:
        weight.data.copy_(plain.weight)  # Otherwise the pruned weight is pruned again.
        method.calibrate(batches)

    def forward() -> list[Tensor]:
        return [plain(x) for x in batches]

    return {case.what: calibrate, peer: forward}


def _finished(call: Callable[[], object], device: str) -> Callable[[], object]:
    if device == "cpu":
        return call

    def waited() -> None:
        call()
        torch.cuda.synchronize()

    return waited
