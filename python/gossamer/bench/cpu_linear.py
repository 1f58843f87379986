# SPDX-License-Identifier: BSD-3-Clause
"""Suite `cpu-linear`: layers of well-known networks, float32, on the CPU.

With a data folder the sparsity patterns of networks that others pruned take part too: files of the
Deep Learning Matrix Collection (Gale, Zaharia, Young, Elsen, "Sparse GPU kernels for deep
learning", SC20), whose layout `gossamer.bench.dlmc` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gossamer.bench import dlmc
from gossamer.bench.engines import engines
from gossamer.bench.race import Entry, Track, race
from gossamer.bench.record import Record
from gossamer.bench.subject import Subject, check, csr_calls, make_subject
from gossamer.bench.suite import Options, measured

__all__ = ["SHAPES", "Case", "cases", "run"]

SHAPES: dict[str, tuple[int, int]] = {
    "bert-base.up": (3072, 768),
    "bert-base.down": (768, 3072),
    "bert-base.query": (768, 768),
    "minilm.up": (1536, 384),
    "minilm.down": (384, 1536),
    "minilm.query": (384, 384),
    "vit-b.qkv": (2304, 768),
    "llama-8b.key": (1024, 4096),
    "llama-8b.query": (4096, 4096),
    "llama-8b.up": (14336, 4096),
    "llama-8b.down": (4096, 14336),
}
"""Name to [out, in]. ViT-B's other layers have the shapes of BERT-base's."""
PATTERNS = (*(f"unstructured:{s}" for s in (0.5, 0.7, 0.8, 0.9, 0.95)), "2:4")
TOKENS = (1, 8, 32, 128, 256, 512)

QUICK_SHAPES = ("minilm.up", "bert-base.query")
QUICK_PATTERNS = ("unstructured:0.9", "2:4")
QUICK_TOKENS = (1, 32, 256)
NORMAL_SHAPES = tuple(SHAPES)[:8]
NORMAL_TOKENS = (128,)


@dataclass(frozen=True)
class Case:
    """One layer with several patterns.

    Attributes:
        name: network and layer.
        out: outputs.
        inputs: inputs.
        patterns: of the weight.
        tokens: rows of the input.
    """

    name: str
    out: int
    inputs: int
    patterns: tuple[str, ...]
    tokens: int

    def __str__(self) -> str:
        return f"{self.name} {self.out}x{self.inputs} x{self.tokens}"


def cases(extent: str) -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS`, without those of a data folder."""
    names, patterns, tokens = {
        "quick": (QUICK_SHAPES, QUICK_PATTERNS, QUICK_TOKENS),
        "normal": (NORMAL_SHAPES, PATTERNS, NORMAL_TOKENS),
        "full": (tuple(SHAPES), PATTERNS, TOKENS),
    }[extent]
    return [Case(name, *SHAPES[name], patterns, count) for name in names for count in tokens]


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command.
    """
    kept: dict[tuple[str, tuple[str, ...]], list[Subject]] = {}
    for case in measured(options, cases, chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        key = (case.name, case.patterns)
        if key not in kept:
            torch.manual_seed(0)
            kept = {key: [make_subject(case.out, case.inputs, p) for p in case.patterns]}
        yield from _measure(case.name, kept[key], case.tokens, options)
    if chosen is None:
        yield from _run_collection(options)


def _run_collection(options: Options) -> Iterator[Record]:
    if options.data is None:
        options.note("no --data: the patterns of the Deep Learning Matrix Collection are left out")
        return
    matrices = dlmc.names(options.data, options.extent)
    for matrix in measured(options, lambda _: matrices, matrices):
        options.progress(f"{matrix}, {torch.get_num_threads()} threads")
        torch.manual_seed(0)
        mask = dlmc.mask(options.data, matrix)
        out, inputs = mask.shape
        subject = make_subject(out, inputs, "unstructured", mask=mask)
        yield from _measure(matrix, [subject], dlmc.TOKENS, options)


def _measure(
    name: str, subjects: Sequence[Subject], tokens: int, options: Options
) -> Iterator[Record]:
    out, inputs = subjects[0].dense.shape
    x = torch.randn(tokens, inputs)
    entries = []
    for subject in subjects:
        check("gossamer", subject.module, x, subject.dense)
        entries.append(
            Entry(
                pattern=subject.pattern,
                sparsity=1.0 - subject.density,
                call=partial(subject.module, x),
                kernel=subject.kernel(tokens),
                held_bytes=subject.held_bytes,
                bound_speedup=options.roofline.bound_speedup(
                    tokens, out, inputs, subject.density, subject.held_bytes
                ),
                peers={"torch_csr": csr_calls(subject.dense, x)},
            )
        )
    track = Track("cpu-linear", name, tokens, out, inputs)
    yield from race(options, track, _dense_peers(subjects[0].dense, x, options), entries)


def _dense_peers(weight: Tensor, x: Tensor, options: Options) -> dict[str, Callable[[], object]]:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    with torch.no_grad():
        module.weight.copy_(weight)
    check("torch_dense", lambda x: F.linear(x, weight), x, weight)
    return {
        "torch_dense": lambda: F.linear(x, weight),
        **engines(module.eval(), x, options.note),
    }
