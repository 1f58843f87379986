# SPDX-License-Identifier: BSD-3-Clause
"""One case of a benchmark as one line of JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

__all__ = ["DERIVED", "OPTIONAL", "Record", "append"]


OPTIONAL = ("layer", "read_gbs", "eager_ms", "eager_host_us")
"""Fields that a line may lack: older lines do, and lines of suites that do not measure them."""

_SENSORS = ("clock_mhz", "power_w")
"""Lines of a GPU say null where they could not be read, other lines say nothing."""

DERIVED = ("tflops", "gbs", "of_bound")
"""Written into lines of `gpu-24` for who reads them alone; never read, but computed again."""

_ELEMENT_BYTES = {"bfloat16": 2, "float16": 2, "float8_e4m3": 1, "int8": 1}
_RESULT_BYTES = 2


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
        bound_speedup: of the roofline, `gossamer._roofline`; None where nobody derived one.
        host_us: the call's own time on the host, microseconds: on the CPU that of the same call on
            a 16x16 layer, which has next to nothing to compute; in `gpu-24` that of issuing this
            very call eagerly, nothing synchronized (lines without `eager_host_us`: one call on a
            64x64 layer); None where it was not measured.
        version: of gossamer.
        date: UTC, ISO 8601.
        layer: what the sizes do not say: network, layer, memory format; not written where empty.
        read_gbs: bytes that this machine reads from memory with so many threads, in 1e9 a second;
            written by `cpu-decode` alone.
        eager_ms: milliseconds of an eager call in a loop: of `gossamer` and of peers by their
            names, a peer that refuses the sizes is absent; written by `gpu-24` alone.
        eager_host_us: the host's microseconds of the same calls.
        clock_mhz: of a GPU's multiprocessors while it makes these calls; None where unknown.
        power_w: of the card, likewise.
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
    bound_speedup: float | None
    host_us: float | None
    version: str
    date: str
    layer: str = ""
    read_gbs: float = 0.0
    eager_ms: dict[str, float] = field(default_factory=dict)
    eager_host_us: dict[str, float] = field(default_factory=dict)
    clock_mhz: float | None = None
    power_w: float | None = None

    @property
    def tflops(self) -> float:
        """1e12 operations a second, those of the dense product: 2:4 does half of them."""
        return 2e-9 * self.tokens * self.out * self.inputs / self.ms

    @property
    def gbs(self) -> float | None:
        """1e9 bytes a second of what a call reads and writes once, its weight as it runs, X and Y.

        None for types of which a line does not tell the bytes.
        """
        element = _ELEMENT_BYTES.get(self.dtype)
        if element is None:
            return None
        weight = self.out * self.inputs * element if self.kernel == "dense" else self.bytes
        moved = weight + self.tokens * (self.inputs * element + self.out * _RESULT_BYTES)
        return moved / self.ms / 1e6

    @property
    def of_bound(self) -> float | None:
        """The speed-up as a share of the roofline's; None where there is none."""
        return self.speedup / self.bound_speedup if self.bound_speedup else None

    def to_json(self) -> str:
        """One line without its end; numbers with four significant digits or more."""
        values = {
            "in" if known.name == "inputs" else known.name: _rounded(getattr(self, known.name))
            for known in fields(self)
            if self._is_written(known.name)
        }
        if self.suite.startswith("gpu-24"):
            values |= {name: _rounded(getattr(self, name)) for name in DERIVED}
        return json.dumps(values)

    def _is_written(self, name: str) -> bool:
        if name in _SENSORS:
            return self.device == "cuda"
        return name not in OPTIONAL or bool(getattr(self, name))


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
