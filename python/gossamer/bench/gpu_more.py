# SPDX-License-Identifier: BSD-3-Clause
"""Suite `gpu-24-more`: what `gpu-24` leaves out; three to four minutes on an H200.

Its lines are lines of `gpu-24`: squares and layers of Qwen 2.5 in 8 bits, the layer of
57344x8192, layers in float16, and, under a name, float8 with accurate sums and rows of X that are
not aligned. Lines of `gpu-24-forced` are rows of the kernel table that no plan takes on this GPU,
those for compute capability 8.x, forced by name.

`--filter` chooses: a case is called by its group, layer and tokens, e.g. `sm80 llama8b.o 1024`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import gossamer as gs
from gossamer._cuda_timing import contest
from gossamer.bench import gpu_24, gpu_24_8bit
from gossamer.bench.gpu_24 import MORE_SHAPES, SHAPES, gpu_name
from gossamer.bench.gpu_sensors import under_load
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, now

__all__ = ["GROUPS", "Group", "cases", "run"]


@dataclass(frozen=True)
class Group:
    """Cases that are measured alike.

    Attributes:
        name: of the group.
        shapes: names of layers.
        tokens: rows of X of each.
    """

    name: str
    shapes: tuple[str, ...]
    tokens: tuple[int, ...]


GROUPS = (
    Group("bfloat16", ("square.2048",), (2048,)),
    Group("bfloat16", ("llama70b.gate_up",), (1, 16, 64, 256, 1024, 4096)),
    Group("float16", ("llama8b.o", "llama8b.up", "llama70b.o"), (1, 64, 1024, 8192)),
    Group("unaligned", ("llama70b.o",), (1, 64, 1024, 4096)),
    Group("float8", tuple(MORE_SHAPES), (16, 256, 4096)),
    Group("int8", tuple(MORE_SHAPES), (16, 256, 4096)),
    Group("float8", ("square.2048",), (2048,)),
    Group("int8", ("square.2048",), (2048,)),
    Group("float8", ("llama70b.gate_up",), (16, 1024)),
    Group("int8", ("llama70b.gate_up",), (16, 1024)),
    Group("accurate", ("llama8b.o", "llama70b.o", "llama70b.down"), (64, 1024, 4096)),
    Group("sm80", ("llama8b.o", "llama70b.o"), (16, 64, 1024)),
)
_ALL_SHAPES = {**SHAPES, **MORE_SHAPES, "llama70b.gate_up": (57344, 8192)}

_TILES = 33  # the layout of nm24_tiles, of which the cost model or GOSSAMER_KERNEL chooses the row
_FORCED = {"bfloat16": "bf16", "int8": "i8"}
_FORCED_ROWS = ((16, "128x16"), (64, "128x64"), (1 << 30, "128x128"))
"""Most tokens and the row that is forced for them."""


def cases(wants: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, str, list[int]]]:
    """Group, layer and token counts, those that are wanted by their names."""
    for group in GROUPS:
        for shape in group.shapes:
            chosen = [n for n in group.tokens if wants(f"{group.name} {shape} {n}")]
            if chosen:
                yield group.name, shape, chosen


@torch.no_grad()
def run(options: Options) -> Iterator[Record]:
    """Measures case by case on the current CUDA device.

    Raises:
        RuntimeError: there is no CUDA device, or a product is wrong.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("suite gpu-24-more needs a CUDA device; torch sees none")
    wide = gpu_24.measured_ceilings()
    narrow = {
        kind: gpu_24_8bit.ceilings_of(kind, wide.bandwidth) for kind in gpu_24_8bit.DENSE_PEERS
    }
    for group, shape, counts in cases(options.wants):
        options.progress(f"{group}, {shape}")
        out, inputs = _ALL_SHAPES[shape]
        if group == "sm80":
            yield from _forced(out, inputs, counts, options)
        elif group in narrow or group == "accurate":
            is_accurate = group == "accurate"
            kind = "float8" if is_accurate else group
            eight = gpu_24_8bit.Layer(kind, out, inputs, accurate=is_accurate)
            name = f"accurate {out}x{inputs}" if is_accurate else ""
            for tokens in counts:
                yield gpu_24_8bit.measure(eight, tokens, options, narrow[kind], name)
        else:
            dtype = torch.float16 if group == "float16" else torch.bfloat16
            layer = gpu_24.Layer(out, inputs, dtype)
            name = f"unaligned X {out}x{inputs}" if group == "unaligned" else ""
            for tokens in counts:
                x = _unaligned(tokens, inputs) if name else None
                yield gpu_24.measure(layer, tokens, options, wide, x, name)


def _unaligned(tokens: int, inputs: int) -> Tensor:
    """Random rows [tokens, inputs], in bfloat16, of which no two begin alike beside 16 bytes."""
    return torch.randn(tokens, inputs + 1, device="cuda", dtype=torch.bfloat16)[:, 1:]


@contextmanager
def _kernel(name: str) -> Iterator[None]:
    """Forces a row; the environment is read in each call."""
    before = os.environ.get("GOSSAMER_KERNEL")
    os.environ["GOSSAMER_KERNEL"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["GOSSAMER_KERNEL"]
        else:
            os.environ["GOSSAMER_KERNEL"] = before


def _forced(out: int, inputs: int, counts: Sequence[int], options: Options) -> Iterator[Record]:
    """Rows for compute capability 8.x beside the dense product of the same type."""
    wide = gpu_24.Layer(out, inputs)
    narrow = gpu_24_8bit.Layer("int8", out, inputs)
    tiles = [torch.ops.gossamer.prune_pack_24(w) for w in wide.dense]
    for tokens in counts:
        x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
        linear = torch.ops.gossamer.linear
        sixteen: dict[str, list[Callable[[], Any]]] = {
            "gossamer": [partial(linear, x, t, _TILES, out) for t in tiles],
            "cublas": [partial(F.linear, x, w) for w in wide.dense],
        }
        eight = narrow.rivals(tokens)
        eight = {name: eight[name] for name in ("gossamer", "int_mm")}
        size = next(row for most, row in _FORCED_ROWS if tokens <= most)
        for dtype, rivals, peer, held in (
            ("bfloat16", sixteen, "cublas", tiles[0].nbytes),
            ("int8", eight, "int_mm", narrow.weight.packed_bytes),
        ):
            row = f"sm80_mma_sp24_{_FORCED[dtype]}_{size}"
            with _kernel(row):
                times = contest(rivals, options.rounds)
                load = under_load(rivals["gossamer"])
            ms = times.pop("gossamer")
            yield Record(
                suite="gpu-24-forced",
                kernel=row,
                machine=gpu_name(),
                device="cuda",
                threads=torch.get_num_threads(),
                dtype=dtype,
                pattern="2:4",
                sparsity=0.5,
                tokens=tokens,
                out=out,
                inputs=inputs,
                ms=ms,
                dense_ms=times[peer],
                dense_impl=f"torch {torch.__version__}, {peer}",
                speedup=times[peer] / ms,
                peers=times,
                bytes=held,
                bound_speedup=None,
                host_us=None,
                version=gs.__version__,
                date=now(),
                layer=f"sm80 rows {out}x{inputs}",
                clock_mhz=load.clock_mhz,
                power_w=load.power_w,
            )
