# SPDX-License-Identifier: BSD-3-Clause
"""Whether a 2:4 weight on a GPU is multiplied packed or dense, in each of `BUCKETS`.

Which row of the kernel table multiplies it there is `_tune_cuda`'s question.
A quantized weight is compared as a whole call, the quantization of the activations included, with
the unquantized dense layer that it replaces.

What the times are, measured or predicted; the rule that decides on them is `_plan_cuda_rule`'s.
Times depend on the shape, not on the values, so that one measurement serves all layers of a shape,
in this process and, by a file, in later ones.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer import _tune_cuda
from gossamer._cuda_device import no_kernels, no_products
from gossamer._errors import first_line
from gossamer._plan_cuda_rule import (
    BUCKET_ENDS,
    BUCKETS,
    CudaPlan,
    decide,
    dense_buckets,
    runs_packed,
)
from gossamer._quantization import VALUE_DTYPES
from gossamer._quantized_check import discrepancy
from gossamer._tune_cuda import Measured
from gossamer.version import __version__
from gossamer.weight import SparseWeight

__all__ = ["BUCKETS", "BUCKET_ENDS", "CudaPlan", "dense_buckets", "obstacle", "plan_24"]

# Of the tensor cores' 4096 bfloat16 operations a clock and multiprocessor, what cuBLAS reaches
# under load, and a launch; the cost model of dense layers (H100, 2026).
_DENSE_FLOPS_PER_MULTIPROCESSOR = 5.4e12
_LAUNCH_SECONDS = 3e-6
# Quantizing x reads two bytes and writes one an element, at this part of the memory's bandwidth
# (H100, 2026: 49 us for 4096 tokens of 8192 inputs).
_QUANTIZE_BYTES = 3
_QUANTIZE_EFFICIENCY = 0.6

_measured: dict[str, Measured] = {}


def obstacle(
    dtype: torch.dtype, device: torch.device, quantization: str | None = None
) -> str | None:
    """Why no 2:4 weight of this dtype is multiplied on this GPU; None where one is.

    Args:
        dtype: of the dense weight.
        device: the GPU.
        quantization: a word of `SparseConfig.quantize`, or None.
    """
    why = no_kernels()
    if why is not None:
        return (
            f"its weight is on a GPU, and {why}: build it where nvcc is, or move the model to the "
            "CPU"
        )
    if dtype not in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        return (
            f"{name} weights are not multiplied packed on a GPU, bfloat16 and float16 are: convert "
            "the model with .to(torch.bfloat16)"
        )
    try:
        x = torch.empty(1, 64, dtype=_values_dtype(quantization) or dtype, device=device)
        runs = _kernel(x, 64)
    except RuntimeError as error:  # such as an older driver than the kernels need
        return f"its weight is on a GPU that gossamer's kernels cannot use: {first_line(error)}"
    if runs:
        return None
    why = no_products(device, x.dtype)
    if why is None:  # a generation that has kernels, and a device that none of them takes
        kind = f"{quantization.partition('-')[0]} " if quantization else ""
        why = f"no kernel multiplies {kind}2:4 weights on {torch.cuda.get_device_name(device)}"
    return f"{why}, so it runs dense"


def plan_24(
    weight: SparseWeight,
    dense: Tensor,
    *,
    bias: bool,
    mode: str,
    memory: str,
) -> CudaPlan:
    """Decides for one weight.

    Args:
        weight: in layout nm24_tiles, quantized or not.
        dense: [out, in], bfloat16 or float16, on the GPU.
        bias: the layer adds one.
        mode: "measure" or "model".
        memory: "low" keeps no dense copy: a layer that needs one stays dense.

    Returns:
        The plan. Where comparing fails, which is most often a full memory, the layer stays dense
        with the failure as the reason: nothing says that packed would not be slower. So does a
        quantized weight whose products are not what rounding explains.
    """
    quantization = weight.quantization
    try:
        if quantization is not None:
            wrong = discrepancy(weight, dense)
            if wrong is not None:
                return CudaPlan(False, [], f"plain: {wrong}")
        if mode == "model":
            found = Measured(_model(dense, quantization), [""] * len(BUCKETS))
        else:
            found = _remembered(dense, bias, lambda: _measure(weight, dense, bias), quantization)
        first, last = (
            [
                row or _kernel_at(dense, counts[end], quantization)
                for row, counts in zip(found.rows, BUCKETS, strict=True)
            ]
            for end in (0, -1)
        )
    # Whatever a GPU, its driver or its full memory answers: a plan is a help, not a condition.
    except Exception as error:
        return CudaPlan(
            False,
            [],
            f"plain: comparing it with dense failed: {first_line(error)}; sparsify it again where "
            'that is mended, or choose by the cost model (plan="model")',
        )
    plan = decide(found.times, last, memory, dense.numel() * dense.element_size())
    plan = replace(plan, reason="; ".join([plan.reason, *found.left_out]))
    for choice, kernel, counts in zip(plan.choices, first, BUCKETS, strict=True):
        if choice["kernel"] not in ("dense", kernel):
            choice["reason"] += f"; {kernel} at {counts[0]} tokens"
    if not plan.sparse:
        return plan
    numbers, table = _numbers(dense, quantization) if any(found.rows) else ({}, 0)
    return replace(plan, plan=plan.bits(found.rows, numbers, table))


def _kernel(x: Tensor, out: int) -> str:
    return str(torch.ops.gossamer.cuda_kernel(x, out))


def _values_dtype(quantization: str | None) -> torch.dtype | None:
    """Of the 8-bit values that a word of `SparseConfig.quantize` asks for."""
    return None if quantization is None else VALUE_DTYPES[quantization.partition("-")[0]]


def _operand(dense: Tensor, tokens: int, quantization: str | None) -> Tensor:
    """What the kernel is given: x, or what quantize_rows makes of it, whose rows are aligned."""
    inputs = dense.shape[1]
    dtype = _values_dtype(quantization)
    if dtype is None:
        return dense.new_empty(tokens, inputs)
    return dense.new_empty(tokens, -(-inputs // 16) * 16, dtype=dtype)[:, :inputs]


def _kernel_at(dense: Tensor, tokens: int, quantization: str | None) -> str:
    x, out = _operand(dense, tokens, quantization), dense.shape[0]
    if quantization != "float8-accurate":
        return _kernel(x, out)
    return str(min(_rows(x, out, quantization), key=lambda row: row["seconds"])["name"])


def _rows(x: Tensor, out: int, quantization: str | None) -> list[dict[str, Any]]:
    """The rows of the GPU's table that compute this product."""
    rows = json.loads(torch.ops.gossamer.cuda_kernel_table(x, out))
    accurate = ("_decode_", "_accurate") if quantization == "float8-accurate" else ("",)
    return [
        row for row in rows if not row["refuses"] and any(word in row["name"] for word in accurate)
    ]


def _numbers(dense: Tensor, quantization: str | None) -> tuple[dict[str, int], int]:
    """The numbers by which a plan names rows, and what they count in."""
    x = _operand(dense, 1, quantization)
    dtype = str(x.dtype).removeprefix("torch.")
    table = json.loads(torch.ops.gossamer.cuda_kernel_table(x, dense.shape[0]))
    own = [row for row in table if row["dtype"] == dtype]
    return {row["name"]: row["row"] for row in own}, own[0]["table"]


# --- Times ----------------------------------------------------------------------------------------


def _measure(weight: SparseWeight, dense: Tensor, bias: bool) -> Measured:
    """Milliseconds of packed and dense at each token count, and the rows that packed ran."""

    def table(tokens: int) -> list[dict[str, Any]]:
        kind = weight.quantization
        return _rows(_operand(dense, tokens, kind), dense.shape[0], kind)

    return _tune_cuda.measure(weight, dense, bias, BUCKETS, table, runs_packed)


def _model(dense: Tensor, quantization: str | None) -> list[list[float]]:
    """The same, predicted."""
    out, inputs = dense.shape
    device = json.loads(torch.ops.gossamer.cuda_device_info(dense))
    times = []
    for tokens in (tokens for counts in BUCKETS for tokens in counts):
        rows = _rows(_operand(dense, tokens, quantization), out, quantization)
        packed = min(row["seconds"] for row in rows)
        if quantization is not None:
            bandwidth = _QUANTIZE_EFFICIENCY * device["memory_bytes_per_second"]
            packed += _LAUNCH_SECONDS + _QUANTIZE_BYTES * tokens * inputs / bandwidth
        moved = 2.0 * (out * inputs + tokens * (out + inputs))
        flops = 2.0 * tokens * out * inputs
        multiprocessors = device["multiprocessors"]
        seconds = _LAUNCH_SECONDS + max(
            moved / device["memory_bytes_per_second"],
            flops / (multiprocessors * _DENSE_FLOPS_PER_MULTIPROCESSOR),
        )
        times.append([1e3 * packed, 1e3 * seconds])
    return times


# --- What was measured before ---------------------------------------------------------------------


def _remembered(
    dense: Tensor,
    bias: bool,
    measure: Callable[[], Measured],
    quantization: str | None = None,
) -> Measured:
    key = _key(dense, bias) + (f" values={quantization}" if quantization else "")
    if key not in _measured:
        file = _cache_file()
        kept = _sound(_read(file).get(key))
        if kept is None:
            kept = measure()
            # A wrong product is looked at again in the next process.
            if not kept.left_out:
                _write(file, key, {"times": kept.times, "rows": kept.rows})
        _measured[key] = kept
    return _measured[key]


def _key(dense: Tensor, bias: bool) -> str:
    properties = torch.cuda.get_device_properties(dense.device)
    table = torch.ops.gossamer.cuda_kernel_table(dense[:1], dense.shape[0])
    names = " ".join(row["name"] for row in json.loads(table))
    # Other rows, or other token counts, are another comparison.
    compared = zlib.crc32(f"{names} {BUCKETS}".encode())
    return (
        f"{properties.name} {properties.multi_processor_count} gossamer={__version__} "
        f"table={compared:08x} torch={torch.__version__} out={dense.shape[0]} "
        f"in={dense.shape[1]} dtype={dense.dtype} bias={bias}"
    )


def _sound(kept: Any) -> Measured | None:
    """What a file says, where it is what `_measure` returns: others may write the file."""
    if not isinstance(kept, dict):
        return None
    times: Any = kept.get("times")
    rows: Any = kept.get("rows")
    is_sound = (
        isinstance(times, list)
        and len(times) == sum(map(len, BUCKETS))
        and all(
            isinstance(row, list)
            and len(row) == 2
            and all(isinstance(ms, float) and 0 < ms < math.inf for ms in row)
            for row in times
        )
        and isinstance(rows, list)
        and len(rows) == len(BUCKETS)
        and all(isinstance(name, str) for name in rows)
    )
    return Measured(times, rows) if is_sound else None


def _cache_file() -> Path | None:
    """Beside the CPU's plans (src/plan/cache.cpp); None where caching is off."""
    folder = os.environ.get("GOSSAMER_CACHE", "")
    if folder == "off":
        return None
    if folder:
        return Path(folder) / "cuda_plans.json"
    home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME", "") + "/.cache"
    return Path(home) / "gossamer" / "cuda_plans.json" if home != "/.cache" else None


def _read(file: Path | None) -> dict[str, Any]:
    try:
        kept = json.loads(file.read_text()) if file is not None else {}
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _write(file: Path | None, key: str, entry: dict[str, Any]) -> None:
    """Adds an entry; a folder that cannot be written costs the next process a measurement."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        entries = {**_read(file), key: entry}
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as temporary:
            written = Path(temporary.name)
            try:
                json.dump(entries, temporary)
                temporary.close()
                written.replace(file)
            except OSError:  # such as a full disk
                written.unlink()
    except OSError:
        return
