# SPDX-License-Identifier: BSD-3-Clause
"""Suite `cpu-linear`: layers of well-known networks, on the CPU, in float32 or another dtype.

Without `--dtype` all dtypes are measured, each for its share of the time (with `--quick` float32
alone). bfloat16 is beside
torch's dense product in bfloat16: with AMX where the machine has it, without where the environment
says `ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16`. int8 quantizes float32 layers; torch's dense layer of
eight bits (`quantize_dynamic`) takes part, and ONNX Runtime's where it is installed.

Layers are packed with `memory="speed"`: a dense layer that the L2 caches hold is quicker at a few
tokens, and would leave it dense at hundreds too; so would dense products in bfloat16. The dense
copy that such a layer keeps is not read here and not counted.

With a data folder the sparsity patterns of networks that others pruned take part too: files of the
Deep Learning Matrix Collection (Gale, Zaharia, Young, Elsen, "Sparse GPU kernels for deep
learning", SC20), whose layout `gossamer.bench.dlmc` reads.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gossamer.bench import dlmc
from gossamer.bench.engines import engines, int8_engines
from gossamer.bench.race import Entry, Track, race
from gossamer.bench.record import Record
from gossamer.bench.subject import (
    Subject,
    check,
    check_int8,
    csr_calls,
    int8_calls,
    make_subject,
)
from gossamer.bench.suite import DTYPES, Options, measured, named

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
BLOCKS: dict[str, tuple[str, ...]] = {
    "float32": (),
    "bfloat16": ("block:1x2", "block:32x32"),
    "int8": ("block:1x4",),
}
"""Patterns whose blocks one instruction takes: of dot products, and of AMX tiles."""
TOKENS = (1, 8, 32, 128, 256, 512)

QUICK_SHAPES = ("minilm.up", "bert-base.query")
QUICK_PATTERNS = ("unstructured:0.9", "2:4")
QUICK_TOKENS = (1, 32, 256)
NORMAL_SHAPES = tuple(SHAPES)[:8]
NORMAL_TOKENS = (128,)
OTHER_SHAPES = ("bert-base.up", "bert-base.query", "minilm.up")
"""Of dtypes other than float32 in a normal run."""
SHARES = {"float32": 0.5, "bfloat16": 0.75, "int8": 1.0}
"""The part of a run's time that is over when a dtype's turn ends, in a run of all."""


@dataclass(frozen=True)
class Case:
    """One layer with several patterns.

    Attributes:
        name: network and layer.
        out: outputs.
        inputs: inputs.
        patterns: of the weight.
        tokens: rows of the input.
        dtype: one of `gossamer.bench.suite.DTYPES`.
    """

    name: str
    out: int
    inputs: int
    patterns: tuple[str, ...]
    tokens: int
    dtype: str = "float32"

    def __str__(self) -> str:
        kind = "" if self.dtype == "float32" else f" {self.dtype}"
        return f"{self.name} {self.out}x{self.inputs} x{self.tokens}{kind}"


def cases(extent: str, dtype: str = "float32") -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS`, without those of a data folder."""
    names, patterns, tokens = {
        "quick": (QUICK_SHAPES, QUICK_PATTERNS, QUICK_TOKENS),
        "normal": (
            NORMAL_SHAPES if dtype == "float32" else OTHER_SHAPES,
            PATTERNS,
            NORMAL_TOKENS,
        ),
        "full": (tuple(SHAPES), PATTERNS, TOKENS),
    }[extent]
    if blocks := BLOCKS[dtype]:
        one_by_one = [p for p in patterns if p.startswith("unstructured")]
        patterns = (
            *one_by_one,
            *(p.replace("unstructured", block) for block in blocks for p in one_by_one),
        )
    return [Case(name, *SHAPES[name], patterns, count, dtype) for name in names for count in tokens]


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command.
    """
    if options.dtype is None and chosen is None and not options.quick:
        begin = time.monotonic()
        for one in DTYPES:
            share = begin + (options.deadline - begin) * SHARES[one]
            yield from run(dataclasses.replace(options, dtype=one, deadline=share))
        return
    dtype = options.dtype or "float32"
    kept: dict[tuple[str, tuple[str, ...]], list[Subject]] = {}
    for case in measured(options, partial(cases, dtype=dtype), chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        key = (case.name, case.patterns)
        if key not in kept:
            torch.manual_seed(0)
            kept = {key: [_subject(case, pattern) for pattern in case.patterns]}
        yield from _measure(case.name, kept[key], case.tokens, options, case.dtype)
    if chosen is None and dtype == "float32":
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
        subject = make_subject(out, inputs, "unstructured", mask=mask, memory="speed")
        yield from _measure(matrix, [subject], dlmc.TOKENS, options)


def _subject(case: Case, pattern: str) -> Subject:
    quantize = case.dtype == "int8"
    dtype = torch.float32 if quantize else getattr(torch, case.dtype)
    return make_subject(case.out, case.inputs, pattern, dtype, quantize=quantize, memory="speed")


def _measure(
    name: str,
    subjects: Sequence[Subject],
    tokens: int,
    options: Options,
    dtype: str = "float32",
) -> Iterator[Record]:
    out, inputs = subjects[0].dense.shape
    x = torch.randn(tokens, inputs).to(subjects[0].dense.dtype)
    width = 1 if dtype == "int8" else x.element_size()
    entries = []
    for subject in subjects:
        subject.check(x)
        entries.append(
            Entry(
                pattern=subject.pattern,
                sparsity=1.0 - subject.density,
                call=partial(subject.module, x),
                kernel=subject.kernel(tokens),
                held_bytes=subject.held_bytes,
                bound_speedup=options.roofline.bound_speedup(
                    tokens,
                    out,
                    inputs,
                    subject.density,
                    subject.held_bytes,
                    width,
                    x.element_size(),
                ),
                peers={"torch_csr": csr_calls(subject.dense, x)} if dtype == "float32" else {},
            )
        )
    track = Track("cpu-linear", named(name), tokens, out, inputs, dtype)
    yield from race(options, track, _dense_peers(subjects[0].dense, x, options, dtype), entries)


def _dense_peers(
    weight: Tensor, x: Tensor, options: Options, dtype: str
) -> dict[str, Callable[[], object]]:
    # The layer as it was before `sparsify_`: a call of a module costs a small layer some percent.
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype).eval()
    with torch.no_grad():
        module.weight.copy_(weight)
    check("torch_dense", module, x, weight)
    dense: dict[str, Callable[[], object]] = {"torch_dense": partial(module, x)}
    if dtype == "bfloat16":
        return dense
    if dtype == "float32":
        return {**dense, **engines(module, x, options.note)}
    others = int8_engines(module, x, options.note)
    for name, call in others.items():
        check_int8(name, partial(_without_input, call), x, weight, coarse=True)
    return {**dense, **int8_calls(weight, x), **others}


def _without_input(call: Callable[[], Tensor], x: Tensor) -> Tensor:
    """An engine holds its input."""
    return call()
