# SPDX-License-Identifier: BSD-3-Clause
"""Targets of the GPU's kernels beside what the stored lines reach, each miss by name."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gossamer.bench.record import Record

__all__ = ["TARGETS", "Target", "target_beside_reached"]

_MEGABYTE = 1e6

Value = Callable[[Record], float | None]


@dataclass(frozen=True)
class Target:
    """A figure that was aimed at, for some of the lines.

    Attributes:
        what: the lines, in words.
        over: what is compared.
        figure: the least value, or the most where `is_most`.
        selects: whether a line counts.
        value: of a line; None where it lacks the contestant.
        form: of a value in the table.
        exact: of one that misses the figure, perhaps by little.
        is_most: the figure is not to be exceeded.
    """

    what: str
    over: str
    figure: float
    selects: Callable[[Record], bool]
    value: Value
    form: str = "{:.2f}"
    exact: str = "{:.3f}"
    is_most: bool = False

    def misses(self, value: float) -> bool:
        """Whether a value falls behind the figure."""
        return value > self.figure if self.is_most else value < self.figure


def _dense(r: Record) -> float:
    return r.speedup


def _cusparselt(r: Record) -> float | None:
    return r.peers["cusparselt"] / r.ms if "cusparselt" in r.peers else None


def _host_us(r: Record) -> float | None:
    """Microseconds of the host beyond those of the dense layer's call."""
    host = r.eager_host_us
    ours = host.get("gossamer_layer", host.get("gossamer"))
    dense = host.get("cublas", host.get("cublas_bfloat16"))
    return None if ours is None or dense is None else ours - dense


def _is_planned(r: Record) -> bool:
    return r.suite == "gpu-24" and not r.layer


def _work(r: Record) -> int:
    return r.out * r.inputs * r.tokens


def _is(dtype: str, least: int, most: int = 1 << 62) -> Callable[[Record], bool]:
    """Lines of a dtype with so many tokens."""
    return lambda r: _is_planned(r) and r.dtype == dtype and least <= r.tokens <= most


def _works(least: int, below: int = 1 << 62) -> Callable[[Record], bool]:
    """Lines in bfloat16 of so many products."""
    return lambda r: _is("bfloat16", 1)(r) and least <= _work(r) < below


def _weighs(tokens: tuple[int, int], least: float, below: float = 1e9) -> Callable[[Record], bool]:
    """Lines in bfloat16 whose dense weight has so many megabytes."""
    return lambda r: (
        _is("bfloat16", *tokens)(r) and least <= 2 * r.out * r.inputs / _MEGABYTE < below
    )


def _is_wide(r: Record) -> bool:
    return _is("bfloat16", 256, 2048)(r) and min(r.out, r.inputs) >= 4096


_LARGE, _MIDDLE = _works(8192**3), _works(4096**3, 8192**3)
_MANY = "bfloat16, 8192³ products and more"
_SOME = "bfloat16, 4096³ to 8192³ products"
_WIDE = "bfloat16, 256 to 2048 tokens, 4096 outputs and inputs or more"
_INT8 = "int8, 1024 tokens and more"

TARGETS: tuple[Target, ...] = (
    Target(_MANY, "cuBLAS", 1.5, _LARGE, _dense),
    Target(_MANY, "cuSPARSELt", 1.0, _LARGE, _cusparselt),
    Target(_SOME, "cuBLAS", 1.4, _MIDDLE, _dense),
    Target(_SOME, "cuSPARSELt", 1.0, _MIDDLE, _cusparselt),
    Target(_WIDE, "cuBLAS", 1.35, _is_wide, _dense),
    Target(_WIDE, "cuSPARSELt", 1.0, _is_wide, _cusparselt),
    Target(
        "bfloat16, 1 to 64 tokens, 200 MB and more", "cuBLAS", 1.75, _weighs((1, 64), 200), _dense
    ),
    Target(
        "bfloat16, 1 to 64 tokens, 100 to 200 MB", "cuBLAS", 1.6, _weighs((1, 64), 100, 200), _dense
    ),
    Target(
        "bfloat16, 1 to 64 tokens, 50 to 100 MB", "cuBLAS", 1.35, _weighs((1, 64), 50, 100), _dense
    ),
    Target("bfloat16, 1 to 64 tokens, below 50 MB", "cuBLAS", 1.0, _weighs((1, 64), 0, 50), _dense),
    Target(
        "bfloat16, 128 tokens, 100 MB and more", "cuBLAS", 1.4, _weighs((128, 128), 100), _dense
    ),
    Target(
        "float8, 4096 tokens and more", "torch._scaled_mm", 1.5, _is("float8_e4m3", 4096), _dense
    ),
    Target("float8, 1 to 64 tokens", "torch._scaled_mm", 1.4, _is("float8_e4m3", 1, 64), _dense),
    Target(_INT8, "torch._int_mm", 2.3, _is("int8", 1024), _dense),
    Target(_INT8, "cuSPARSELt", 1.05, _is("int8", 1024), _cusparselt),
    Target(
        "every shape",
        "dense",
        0.97,
        lambda r: r.suite in ("gpu-24", "gpu-model"),
        _dense,
    ),
    Target(
        "pack_24 of 8192x8192 in bfloat16, verified",
        "a device copy's bandwidth",
        0.7,
        lambda r: r.suite == "convert" and r.layer == "pack_24 8192x8192" and r.dtype == "bfloat16",
        _dense,
        "{:.0%}",
    ),
    Target(
        "eager call, 16 bits: host time beyond F.linear's",
        "µs at most",
        3.0,
        lambda r: _is_planned(r) and r.dtype in ("bfloat16", "float16"),
        _host_us,
        "{:+.1f}",
        "{:+.1f}",
        is_most=True,
    ),
    Target(
        "eager call, 8 bits, X quantized in it: the same",
        "µs at most",
        3.0,
        lambda r: _is_planned(r) and r.dtype in ("float8_e4m3", "int8"),
        _host_us,
        "{:+.1f}",
        "{:+.1f}",
        is_most=True,
    ),
)
"""In the order of the table. A dense weight of 2 · outputs · inputs bytes is meant by MB, 1e6."""


def target_beside_reached(records: Sequence[Record], where: str) -> str:
    """The table, and a list of what was missed.

    Args:
        records: of one GPU.
        where: machine and dates, for the heading.
    """
    lines = [
        f"### Target beside reached on {where}\n",
        "Times of CUDA graphs in the same run. Lines in 8 bits are products alone, of X that is "
        'quantized already. What bounds the misses is said above, under "GPUs".\n',
        "| lines | over | target | least | median | most | lines that miss it |",
        "|---|---|---|---|---|---|---|",
    ]
    missed = []
    for target in TARGETS:
        found = [
            (value, r)
            for r in records
            if target.selects(r) and (value := target.value(r)) is not None
        ]
        if not found:
            continue
        values = [value for value, _ in found]
        misses = [(value, r) for value, r in found if target.misses(value)]
        cells = [target.figure, min(values), statistics.median(values), max(values)]
        numbers = " | ".join(target.form.format(number) for number in cells)
        lines.append(
            f"| {target.what} | {target.over} | {numbers} | {len(misses)} of {len(found)} |"
        )
        if misses:
            missed.append(f"* {target.what}, {target.over}: {_by_layer(misses, target.exact)}")
    return "\n".join([*lines, "\nMissed, tokens before each value:\n", *missed]) + "\n"


def _by_layer(misses: Sequence[tuple[float, Record]], form: str) -> str:
    """Each layer once, the tokens and values of its lines behind it."""
    layers: dict[str, list[str]] = {}
    for value, r in misses:
        name = r.layer or f"{r.out}x{r.inputs}"
        if r.dtype != "bfloat16":
            name += f" {r.dtype}"
        dense = " dense" if r.kernel == "dense" else ""
        layers.setdefault(name, []).append(f"{r.tokens}: {form.format(value)}{dense}")
    return "; ".join(f"{name} ({', '.join(values)})" for name, values in layers.items())
