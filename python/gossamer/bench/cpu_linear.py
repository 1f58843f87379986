# SPDX-License-Identifier: BSD-3-Clause
"""Suite `cpu-linear`: layers of well-known networks, float32, on the CPU."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

import gossamer as gs
from gossamer.bench.record import Record
from gossamer.bench.subject import Subject, check, make_subject, peers
from gossamer.bench.suite import Options, now
from gossamer.bench.timing import contest

__all__ = ["SHAPES", "Case", "cases", "run"]

SHAPES: dict[str, tuple[int, int]] = {
    "minilm.query": (384, 384),
    "minilm.up": (1536, 384),
    "minilm.down": (384, 1536),
    "bert-base.query": (768, 768),
    "bert-base.up": (3072, 768),
    "bert-base.down": (768, 3072),
    "vit-b.qkv": (2304, 768),
    "llama-8b.key": (1024, 4096),
    "llama-8b.query": (4096, 4096),
    "llama-8b.up": (14336, 4096),
    "llama-8b.down": (4096, 14336),
}
"""Name to [out, in]. ViT-B's other layers have the shapes of BERT-base's."""
PATTERNS = (*(f"unstructured:{s}" for s in (0.5, 0.7, 0.8, 0.9, 0.95)), "2:4")
TOKENS = (1, 8, 32, 128, 256, 512)

QUICK_SHAPES = (
    "minilm.up",
    "bert-base.query",
    "bert-base.up",
    "bert-base.down",
    "vit-b.qkv",
    "llama-8b.key",
)
QUICK_PATTERNS = ("unstructured:0.9", "2:4")
QUICK_TOKENS = (1, 32, 256)

DECODE_TOKENS = 8
"""Up to this many tokens the weight is read from memory, as in a network larger than the cache."""


@dataclass(frozen=True)
class Case:
    """One layer with one pattern, timed at each token count.

    Attributes:
        name: network and layer.
        out: outputs.
        inputs: inputs.
        pattern: of the weight.
        tokens: counts.
    """

    name: str
    out: int
    inputs: int
    pattern: str
    tokens: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.out}x{self.inputs} {self.pattern}"


def cases(quick: bool) -> list[Case]:
    """All cases, or the few of a run of about a minute."""
    shapes = QUICK_SHAPES if quick else tuple(SHAPES)
    patterns = QUICK_PATTERNS if quick else PATTERNS
    tokens = QUICK_TOKENS if quick else TOKENS
    return [
        Case(name, *SHAPES[name], pattern, tokens)
        for name, pattern in itertools.product(shapes, patterns)
    ]


def run(options: Options, chosen: list[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command.
        chosen: other cases than those of the command.
    """
    for case in cases(options.quick) if chosen is None else chosen:
        if not options.wants(str(case)):
            continue
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        torch.manual_seed(0)
        subject = make_subject(case.out, case.inputs, case.pattern)
        for tokens in case.tokens:
            yield _measure(case, subject, tokens, options)


def _measure(case: Case, subject: Subject, tokens: int, options: Options) -> Record:
    x = torch.randn(tokens, case.inputs)
    rivals = peers(subject.dense)
    check("gossamer", subject.module, x, subject.dense)
    for name, rival in rivals.items():
        check(name, rival, x, subject.dense)
    if tokens <= DECODE_TOKENS:
        calls = _rotating(subject, x, options.cache_bytes)
    else:
        calls = {name: _call(rival, x) for name, rival in rivals.items()}
        calls["gossamer"] = _call(subject.module, x)
    times = contest(calls, options.rounds).median_ms
    # PyTorch multiplies by a CSR weight in two ways: the quicker one is the peer.
    times["torch_csr"] = min(times["torch_csr"], times.pop("torch_csr_mm"))
    machine = gs.machine()
    ms, dense_ms = times.pop("gossamer"), times["torch_dense"]
    return Record(
        suite="cpu-linear",
        kernel=subject.kernel(tokens),
        machine=machine.name,
        device="cpu",
        threads=torch.get_num_threads(),
        dtype="float32",
        pattern=case.pattern,
        sparsity=1.0 - subject.density,
        tokens=tokens,
        out=case.out,
        inputs=case.inputs,
        ms=ms,
        dense_ms=dense_ms,
        dense_impl="torch.nn.functional.linear",
        speedup=dense_ms / ms,
        peers=times,
        bytes=subject.held_bytes,
        bound_speedup=options.roofline.bound_speedup(
            tokens, case.out, case.inputs, subject.density, subject.held_bytes
        ),
        host_us=options.host_us,
        version=gs.__version__,
        date=now(),
    )


def _call(layer: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], Tensor]:
    return lambda: layer(x)


def _rotating(subject: Subject, x: Tensor, cache_bytes: int) -> dict[str, Callable[[], Tensor]]:
    """Every call takes the next of enough copies of the weight to overflow the last-level cache."""

    def turn(layers: list[Callable[[Tensor], Tensor]]) -> Callable[[], Tensor]:
        endless = itertools.cycle(layers)
        return lambda: next(endless)(x)

    def copies(held_bytes: int) -> int:
        return 2 + int(1.25 * cache_bytes) // held_bytes

    dense_bytes = subject.dense.numel() * subject.dense.element_size()
    csr_bytes = int(subject.density * subject.dense.numel()) * 8
    weights = [subject.held.clone() for _ in range(copies(subject.held_bytes))]
    calls: dict[str, Callable[[], Tensor]] = {
        "gossamer": turn([_layer(weight) for weight in weights])
    }
    for name in peers(subject.dense[:1]):
        count = copies(dense_bytes if name == "torch_dense" else csr_bytes)
        calls[name] = turn([peers(subject.dense.clone())[name] for _ in range(count)])
    return calls


def _layer(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.nn.functional.linear(x, weight)
