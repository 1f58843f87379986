# SPDX-License-Identifier: BSD-3-Clause
"""Suite `solvers`: what pruning one layer takes, on a GPU where there is one.

A whole `calibrate` of a square float32 layer by SparseGPT, Wanda and ALPS at 2:4, beside a forward
pass of the same layer on the same inputs, which every calibration must run once: `speedup` is the
pass as a share of it. `transposable_mask` is beside a copy of its scores. Every call is waited for.
The conversions between dense and packed that training with masks makes come last, as in the suite
`convert`. `--json /dev/stdout` prints lines of JSON.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench import convert
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


def cases(extent: str) -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS`: 4096 on a GPU, 512 or 1024 on a CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = 4096 if device == "cuda" else 512 if extent == "quick" else 1024
    return [Case(what, side, side // 2, device) for what in (*METHODS, TRANSPOSABLE)]


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command, and no conversions.
    """
    for case in measured(options, cases, chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        with torch.inference_mode(False), torch.no_grad():
            record = _measure(case, options)
        yield record
    if chosen is None:
        yield from convert.run(options)


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
    times = contest(
        {name: _finished(call, case.device) for name, call in calls.items()}, options.rounds
    ).median_ms
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
