# SPDX-License-Identifier: BSD-3-Clause
"""The tables of docs/performance.md: one row a layer, one column a pattern or token count."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

from gossamer.bench.record import Record

__all__ = ["EAGER", "PROMISE", "read_rate", "tables"]

PROMISE = 0.97
"""The least speed-up that a plan promises, beyond the microseconds of the call."""
CALL_MILLISECONDS = 3e-3

_EAGER_LAYERS = ("gossamer_layer", "gossamer")
_EAGER_DENSE = ("cublas", "cublas_bfloat16", "torch_dense")
EAGER = (*_EAGER_LAYERS[::-1], *_EAGER_DENSE, "torch_semi_structured")
"""Contestants of eager calls that the tables show, in their order; the lines hold more."""

FORCED = "gpu-24-forced"
"""Its lines are of rows that no plan took, so that they break no promise."""
_NAMED = 5

Key = TypeVar("Key", bound=Hashable)


def tables(records: Sequence[Record], suite: str) -> str:
    """Markdown of one suite's records of one machine, for each dtype and thread count a table."""
    if suite == "convert":
        return _beside_peers(records, "Share of the bandwidth of a copy that moves as many bytes")
    if suite == "solvers":
        return _beside_peers(records, "A dense forward pass, or a copy, as a share of what is done")
    parts = []
    for dtype in _in_order(records, lambda r: r.dtype):
        if suite.startswith("gpu"):
            part = [r for r in records if r.dtype == dtype]
            parts.append(f"**{dtype}**\n\n{_gpu(part)}")
            parts.extend(_rates(part, dtype))
            parts.extend(_eager(part, dtype))
            continue
        for threads in _in_order(records, lambda r: r.threads):
            part = [r for r in records if r.dtype == dtype and r.threads == threads]
            if part:
                parts.append(f"**{dtype}, {_threads(threads)}**\n\n{_cpu(part)}")
    if suite == FORCED:
        return "\n".join(parts)
    return "\n".join([*parts, _promise(records)])


def _promise(records: Sequence[Record]) -> str:
    """How many lines are below the promise, and their names: of a GPU all, of a CPU the worst.

    On CPUs also how many are below the quickest of all dense peers, which plans do not know.
    """
    what = "of the dense layer that they replace"
    text = f"{len(records)} cases, {_below(records, replaced, what)}"
    if all(r.device == "cpu" for r in records):
        text += f"\n{_below(records, _quickest, 'of the quickest dense peer')}"
    return text


def _below(records: Sequence[Record], dense: Callable[[Record], float], what: str) -> str:
    slow = sorted((r for r in records if _is_below(r, dense(r))), key=lambda r: dense(r) / r.ms)
    named = "; ".join(
        f"{_layer(r)} {r.pattern} {r.dtype}, {r.tokens} tokens{_on_threads(r)}: "
        f"{dense(r) / r.ms:.{2 if r.device == 'cpu' else 3}f}x"
        for r in slow
        if r.device == "cuda" or r in slow[:_NAMED]
    )
    return f"{len(slow)} below {PROMISE} {what}{': ' if named else '.'}{named}\n"


def _beside_peers(records: Sequence[Record], share: str) -> str:
    lines = [
        f"{share}, milliseconds in brackets.\n",
        "| what | dtype | pattern | device | threads | share | peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in records:
        peer = ", ".join(f"{name} {ms:.3g} ms" for name, ms in r.peers.items())
        lines.append(
            f"| {r.layer} | {r.dtype} | {r.pattern} | {r.device} | {r.threads} "
            f"| {r.speedup:.0%} ({r.ms:.3g}) | {peer} |"
        )
    return "\n".join(lines) + "\n"


def replaced(record: Record) -> float:
    """Milliseconds of what a packed layer replaces: torch's dense, on GPUs the only dense peer."""
    return record.peers.get("torch_dense", record.dense_ms)


def _quickest(record: Record) -> float:
    return record.dense_ms


def _is_below(record: Record, dense_ms: float) -> bool:
    """Slower than a dense layer by more than noise and, on a CPU, a call.

    Times of a GPU's graphs hold no call: a microsecond of them is one.
    """
    call = 0.0 if record.suite.startswith("gpu") else CALL_MILLISECONDS
    return record.ms - call > dense_ms / PROMISE


def read_rate(record: Record) -> float | None:
    """GB/s at which a call reads weights; None for layouts of which a line does not tell the bytes.

    A weight may be held in two layouts and as a dense copy; `bytes` counts all of them.
    """
    element = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}.get(record.dtype)
    if element is None:
        return None
    positions = record.out * record.inputs
    if record.kernel == "dense":
        read: float = positions * element
    elif "_bitmask" in record.kernel:  # kept values, and a bit a position
        read = positions * ((1 - record.sparsity) * element + 1 / 8)
    else:
        return None
    return read / record.ms / 1e6


def _cpu(records: Sequence[Record]) -> str:
    patterns = _in_order(records, lambda r: r.pattern)
    rows = [
        [layer, str(tokens), *_cells(part, patterns, lambda r: r.pattern, _cpu_cell)]
        for (layer, tokens), part in _grouped(records, lambda r: (_layer(r), r.tokens)).items()
    ]
    heads = ["layer", "tokens", *(p.removeprefix("unstructured:") for p in patterns)]
    return _markdown(heads, rows)


def _cpu_cell(r: Record) -> str:
    text = f"{r.dense_ms / r.ms:.2f}"
    if replaced(r) != r.dense_ms:
        text += f" ({replaced(r) / r.ms:.2f})"
    rate = read_rate(r)
    if r.read_gbs and rate is not None:
        text += f", {rate / r.read_gbs:.0%}"
    return text if r.kernel != "dense" else f"{text} dense"


def _gpu(records: Sequence[Record]) -> str:
    return _by_tokens(records, _gpu_cell)


def _by_tokens(records: Sequence[Record], cell: Callable[[Record], str]) -> str:
    """A row a layer, a column a token count."""
    columns = sorted({r.tokens for r in records})
    rows = [
        [layer, *_cells(part, columns, lambda r: r.tokens, cell)]
        for (layer, _), part in _grouped(records, lambda r: (_layer(r), r.pattern)).items()
    ]
    return _markdown(["layer", *(str(tokens) for tokens in columns)], rows)


def _gpu_cell(r: Record) -> str:
    text = f"{replaced(r) / r.ms:.2f}"
    if "cusparselt" in r.peers:
        text += f" / {r.peers['cusparselt'] / r.ms:.2f}"
    return text


def _rates(records: Sequence[Record], where: str) -> list[str]:
    """Tables of operations, bytes and the share of the bound, and of what sensors said."""
    timed = [r for r in records if r.suite != "gpu-model"]
    parts = []
    if timed:
        parts.append(
            f"**{where}, rates**: TFLOP/s of the dense product's operations / GB/s of W, X and Y, "
            "each once / the speed-up's share of the roofline's\n\n" + _by_tokens(timed, _rate_cell)
        )
    sensed = [r for r in records if r.clock_mhz is not None or r.power_w is not None]
    if sensed:
        parts.append(
            f"**{where}, clock and power under these calls**: MHz / W\n\n"
            + _by_tokens(sensed, lambda r: f"{_number(r.clock_mhz)} / {_number(r.power_w)}")
        )
    return parts


def _rate_cell(r: Record) -> str:
    share = "–" if r.of_bound is None else f"{r.of_bound:.0%}"
    return f"{_number(r.tflops)} / {_number(r.gbs)} / {share}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _eager(records: Sequence[Record], where: str) -> list[str]:
    """Tables of what eager calls take, and of what the host spends on them; none of older lines."""
    timed = [r for r in records if r.eager_ms and r.eager_host_us]
    if not timed:
        return []
    names = [name for name in EAGER if any(name in r.eager_ms for r in timed)]
    order = " / ".join(names)
    return [
        f"**{where}, eager calls in a loop**, milliseconds of one: {order}\n\n"
        + _by_tokens(timed, lambda r: _each(names, r.eager_ms, "{:.3g}")),
        f"**{where}, host time of an eager call**, microseconds: {order}\n\n"
        + _by_tokens(timed, lambda r: _each(names, r.eager_host_us, "{:.1f}"))
        + _beyond_dense(timed),
    ]


def _beyond_dense(records: Sequence[Record]) -> str:
    """A sentence on the host time of layers less that of the dense layers that they replace."""
    beyond = [
        next(host[name] for name in _EAGER_LAYERS if name in host)
        - next(host[name] for name in _EAGER_DENSE if name in host)
        for host in (r.eager_host_us for r in records)
        if any(name in host for name in _EAGER_LAYERS)
        and any(name in host for name in _EAGER_DENSE)
    ]
    if not beyond:
        return ""
    return (
        f"\nA call of the layer less one of the dense layer: {min(beyond):+.1f} to "
        f"{max(beyond):+.1f} µs of host time, median {statistics.median(beyond):+.1f}.\n"
    )


def _each(names: Sequence[str], values: Mapping[str, float], form: str) -> str:
    """The values in the order of the names; a dash for a contestant that refused the case."""
    return " / ".join(form.format(values[name]) if name in values else "–" for name in names)


def _layer(record: Record) -> str:
    return record.layer or f"{record.out}x{record.inputs}"


def _threads(count: int) -> str:
    return f"{count} thread" + ("" if count == 1 else "s")


def _on_threads(record: Record) -> str:
    return f", {_threads(record.threads)}" if record.device == "cpu" else ""


def _grouped(records: Sequence[Record], key: Callable[[Record], Key]) -> dict[Key, list[Record]]:
    groups: dict[Key, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def _cells(
    row: Sequence[Record],
    columns: Sequence[Key],
    column_of: Callable[[Record], Key],
    cell: Callable[[Record], str],
) -> list[str]:
    """One cell a column, of the last record there; empty where there is none."""
    last = {column_of(record): record for record in row}
    return [cell(last[column]) if column in last else "" for column in columns]


def _in_order(records: Sequence[Record], key: Callable[[Record], Key]) -> list[Key]:
    return list(dict.fromkeys(key(r) for r in records))


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"
