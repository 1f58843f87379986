# SPDX-License-Identifier: BSD-3-Clause
"""One case of a benchmark as one line of JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

__all__ = ["OPTIONAL", "Record", "append"]


OPTIONAL = ("layer", "read_gbs")
"""Fields that a line may lack."""


@dataclass(frozen=True)
class Record:
    """What was measured, on what, beside whom.

    Attributes:
        suite: of cases, e.g. `cpu-linear`.
        kernel: the row of the kernel table that ran, `dense` where the plan chose dense.
        machine: short name of the processor or GPU, e.g. `zen3-avx2`.
        device: `cpu` or `cuda`.
        threads: of torch.
        dtype: as torch spells it, without the prefix.
        pattern: of the weight, e.g. `unstructured:0.9` or `2:4`.
        sparsity: fraction of zeros in the weight that was run.
        tokens: rows of the input.
        out: outputs of the layer.
        inputs: inputs of the layer; the key is `in`.
        ms: median time of one call, milliseconds.
        dense_ms: of the quickest dense peer, in the same rounds.
        dense_impl: what the quickest dense peer is.
        speedup: dense_ms / ms.
        peers: name to median milliseconds, in the same rounds.
        bytes: of the weight as it is held.
        bound_speedup: of the roofline, `gossamer.bench.roofline`.
        host_us: the call's own time on the host, microseconds: on the CPU that of the same call on
            a 16x16 layer, which has next to nothing to compute.
        version: of gossamer.
        date: UTC, ISO 8601.
        layer: what the sizes do not say: network, layer, memory format; not written where empty.
        read_gbs: bytes that this machine reads from memory with so many threads, in 1e9 a second;
            written by `cpu-decode` alone.
    """

    suite: str
    kernel: str
    machine: str
    device: str
    threads: int
    dtype: str
    pattern: str
    sparsity: float
    tokens: int
    out: int
    inputs: int
    ms: float
    dense_ms: float
    dense_impl: str
    speedup: float
    peers: dict[str, float]
    bytes: int
    bound_speedup: float
    host_us: float
    version: str
    date: str
    layer: str = ""
    read_gbs: float = 0.0

    def to_json(self) -> str:
        """One line without its end; numbers with four significant digits or more."""
        values = {
            "in" if field.name == "inputs" else field.name: _rounded(getattr(self, field.name))
            for field in fields(self)
            if field.name not in OPTIONAL or getattr(self, field.name)
        }
        return json.dumps(values)


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def append(record: Record, path: str | os.PathLike[str]) -> None:
    """Adds one line to a file, which is made where it is not there.

    The line is handed over in one write in append mode: a run that is cut short leaves whole lines,
    and two runs may write to one file.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    line = (record.to_json() + "\n").encode()
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(handle, line)
        if written != len(line):
            raise OSError(
                f"'{path}': {written} of {len(line)} bytes were written; is the disk full?"
            )
    finally:
        os.close(handle)
