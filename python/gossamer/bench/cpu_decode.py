# SPDX-License-Identifier: BSD-3-Clause
"""Suite `cpu-decode`: 1 to 8 tokens, where reading the weights takes the time.

Every call takes the next of enough copies of the weight to overflow the last-level cache several
times, as in a network that is larger than the cache. Beside the times stands what the machine reads
from memory with the same threads: `bytes / ms` over `read_gbs` is the share that a kernel reaches.

Layers are packed with `memory="speed"`: where dense is faster at hundreds of tokens, in bfloat16
above all, a layer would otherwise stay dense at a few too. The dense copy that such a layer keeps
is not read here and not counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.bench.race import Entry, Track, race
from gossamer.bench.record import Record
from gossamer.bench.subject import (
    Subject,
    csr_calls,
    int8_calls,
    make_subject,
)
from gossamer.bench.suite import DTYPES, Options, measured, named

__all__ = ["SHAPES", "Case", "cases", "rotation", "run"]

SHAPES: dict[str, tuple[int, int]] = {
    "llama-8b.query": (4096, 4096),
    "bert-base.up": (3072, 768),
    "llama-8b.key": (1024, 4096),
    "llama-8b.down": (4096, 14336),
    "llama-8b.up": (14336, 4096),
}
"""Name to [out, in]."""
SPARSITIES = (0.5, 0.7, 0.8, 0.9)
TOKENS = (1, 2, 4, 8)
_CACHES = 4
"""The copies of a weight are together so many times larger than the last-level cache."""


@dataclass(frozen=True)
class Case:
    """One layer at several sparsities.

    Attributes:
        name: network and layer.
        out: outputs.
        inputs: inputs.
        dtype: one of `gossamer.bench.suite.DTYPES`.
        sparsities: of the weight, unstructured.
        tokens: counts.
    """

    name: str
    out: int
    inputs: int
    dtype: str
    sparsities: tuple[float, ...]
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.out}x{self.inputs} {self.dtype}"


def cases(extent: str, dtype: str | None = None) -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS`, of one dtype or of all."""
    if extent == "quick":
        return [Case("bert-base.up", 3072, 768, dtype or "float32", (0.5, 0.7), (1, 8))]
    names = ("llama-8b.query", "bert-base.up") if extent == "normal" else tuple(SHAPES)
    tokens = (1, 8) if extent == "normal" else TOKENS
    return [
        Case(name, *SHAPES[name], one, SPARSITIES, tokens)
        for name in names
        for one in ((dtype,) if dtype else DTYPES)
    ]


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command.
    """
    for case in measured(options, partial(cases, dtype=options.dtype), chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        torch.manual_seed(0)
        quantize = case.dtype == "int8"
        dtype = torch.float32 if quantize else getattr(torch, case.dtype)
        subjects = [
            make_subject(
                case.out,
                case.inputs,
                f"unstructured:{s:g}",
                dtype,
                quantize=quantize,
                memory="speed",
            )
            for s in case.sparsities
        ]
        for tokens in case.tokens:
            yield from _measure(case, subjects, tokens, options)


def rotation(weight: Tensor, held_bytes: int, cache_bytes: int, x: Tensor) -> Callable[[], Tensor]:
    """`F.linear(x, weight)`; every call takes the next of many copies of the weight.

    Args:
        weight: plain or packed.
        held_bytes: of one copy.
        cache_bytes: of the last-level cache.
        x: [tokens, in].
    """
    count = _copies(held_bytes, cache_bytes)
    endless = itertools.cycle([weight.clone() for _ in range(count)])
    return lambda: F.linear(x, next(endless))


def _copies(held_bytes: int, cache_bytes: int) -> int:
    return 2 + _CACHES * cache_bytes // held_bytes


def _measure(
    case: Case, subjects: Sequence[Subject], tokens: int, options: Options
) -> Iterator[Record]:
    x = torch.randn(tokens, case.inputs).to(subjects[0].dense.dtype)
    entries = []
    for subject in subjects:
        subject.check(x)
        entries.append(_entry(subject, x, options))
    dense = subjects[0].dense
    held_bytes = dense.numel() * dense.element_size()
    track = Track(
        suite="cpu-decode",
        layer=named(case.name),
        tokens=tokens,
        out=case.out,
        inputs=case.inputs,
        dtype=case.dtype,
        read_gbs=options.roofline.bandwidth / 1e9,
    )
    peers: dict[str, Callable[[], object]] = {
        "torch_dense": rotation(dense, held_bytes, options.cache_bytes, x)
    }
    if case.dtype == "int8":
        peers |= int8_calls(dense, x, _copies(dense.numel(), options.cache_bytes))
    yield from race(options, track, peers, entries)


def _entry(subject: Subject, x: Tensor, options: Options) -> Entry:
    # MKL's CSR is measured where it is at its best, without copies: with all of L3 to itself.
    width = subject.dense.element_size()
    out, inputs = subject.dense.shape
    moved = width * len(x) * (out + inputs)
    flops = 2.0 * len(x) * out * inputs
    # Reading bounds these calls; the arithmetic of both sides is that of float32.
    least = options.roofline.seconds(flops, width * out * inputs + moved)
    sparse = options.roofline.seconds(flops * subject.density, subject.held_bytes + moved)
    return Entry(
        pattern=subject.pattern,
        sparsity=1.0 - subject.density,
        call=rotation(subject.held, subject.held_bytes, options.cache_bytes, x),
        kernel=subject.kernel(len(x)),
        held_bytes=subject.held_bytes,
        bound_speedup=least / sparse,
        peers={"torch_csr": csr_calls(subject.dense, x)}
        if width == 4 and not subject.is_quantized
        else {},
    )
