# SPDX-License-Identifier: BSD-3-Clause
"""Suite `convert`: dense weight + mask to packed and back, beside a copy of as many bytes.

What dynamic sparse training does after each change of a mask. `speedup` is the share of the copy's
bandwidth: both move the values, the mask and the packed weight once. `pack_` and `unpack_` write to
memory that is there, and so does their peer, `copy_`; `pack` and `unpack` make new tensors, whose
peer is `clone`. On a GPU, where new memory comes from torch's cache, the peer is `copy_`, and all
of these wait for the GPU. What only enqueues is timed there in CUDA graphs too: `pack_24` (2:4
already, verified, the verdict left on the device), the same with `prune` (by magnitude) and
`quantize_pack_24`, which also finds the scales of a bfloat16 weight; they read no mask.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import gossamer as gs
from gossamer._cuda_timing import contest as graph_contest
from gossamer._quantization import quantize_rows
from gossamer.bench.gpu_24 import gpu_name
from gossamer.bench.record import Record
from gossamer.bench.suite import Options, measured, now
from gossamer.bench.timing import contest

__all__ = ["Case", "cases", "run"]

PATTERNS = ("2:4", "unstructured:0.5", "unstructured:0.9")

_ops = torch.ops.gossamer


@dataclass(frozen=True)
class Case:
    """One square weight.

    Attributes:
        side: outputs and inputs.
        pattern: of the weight.
        dtype: of the values.
        device: `cpu` or `cuda`.
    """

    side: int
    pattern: str
    dtype: torch.dtype
    device: str = "cpu"

    def __str__(self) -> str:
        return f"convert {self.side} {self.pattern} {str(self.dtype)[6:]} {self.device}"


def cases(extent: str, device: str = "cpu") -> list[Case]:
    """The cases of one of `gossamer.bench.suite.EXTENTS` on a device."""
    side = 2048 if extent == "quick" else 8192
    if device == "cuda":
        kinds = (torch.bfloat16, torch.float8_e4m3fn, torch.int8)
        return [Case(side, "2:4", dtype, device) for dtype in kinds]
    dtypes = (torch.bfloat16, torch.float32) if extent == "full" else (torch.bfloat16,)
    return [Case(side, pattern, dtype) for dtype in dtypes for pattern in PATTERNS]


def run(options: Options, chosen: Sequence[Case] | None = None) -> Iterator[Record]:
    """Measures case by case with torch's present number of threads.

    Args:
        options: of the command; its `device` says where.
        chosen: other cases than those of the command.
    """
    for case in measured(options, partial(cases, device=options.device), chosen):
        options.progress(f"{case}, {torch.get_num_threads()} threads")
        yield from _measure(case, options)


@dataclass(frozen=True)
class _Weight:
    """A weight in both forms, and room for either."""

    values: Tensor
    mask: Tensor
    packed: Tensor
    room: Tensor
    mask_room: Tensor

    @property
    def moved(self) -> int:
        """Bytes that are read or written in either direction."""
        return self.values.nbytes + self.mask.nbytes + self.packed.nbytes


def _measure(case: Case, options: Options) -> Iterator[Record]:
    weight = _make(case)
    # A copy reads and writes: half as many bytes move as much.
    source = torch.ones(weight.moved // 2, dtype=torch.uint8, device=case.device)
    target = torch.empty_like(source)
    on_gpu = case.device == "cuda"

    def finished(call: Callable[[], object]) -> Callable[[], object]:
        return partial(_finished, call) if on_gpu else call

    copies = {
        "copy": finished(lambda: target.copy_(source)),
        "clone": finished(lambda: source.clone()),
    }
    for name, (call, usual) in _conversions(case, weight).items():
        peer = "copy" if on_gpu else usual
        times = contest({name: finished(call), peer: copies[peer]}, options.rounds).median_ms
        yield _record(case, weight, name, times[name], peer, times[peer], options)
    if on_gpu:
        yield from _measure_enqueued(case, weight, options)


def _measure_enqueued(case: Case, weight: _Weight, options: Options) -> Iterator[Record]:
    """What only enqueues, in CUDA graphs."""
    calls: dict[str, tuple[Callable[[], object], Tensor]] = {
        "pack_24": (lambda: _ops.pack_24(weight.values), weight.values),
        "pack_24_prune": (lambda: _ops.pack_24(weight.values, prune=True), weight.values),
    }
    if case.dtype.itemsize == 1:
        wide = weight.values.to(torch.bfloat16)
        quantize = partial(_ops.quantize_pack_24, wide, None, case.dtype)
        calls["quantize_pack_24"] = (quantize, wide)
        calls["quantize_pack_24_prune"] = (partial(quantize, prune=True), wide)
    for name, (call, source) in calls.items():
        room = torch.ones((source.nbytes + weight.packed.nbytes) // 2, dtype=torch.uint8).cuda()
        target = torch.empty_like(room)
        rivals: dict[str, list[Callable[[], object]]] = {
            name: [call],
            "copy": [partial(target.copy_, room)],
        }
        times = graph_contest(rivals, options.rounds)
        yield _record(case, weight, name, times[name], "copy", times["copy"], options)


def _make(case: Case) -> _Weight:
    torch.manual_seed(0)
    wide = torch.randn(case.side, case.side).to(
        torch.bfloat16 if case.dtype.itemsize == 1 else case.dtype
    )
    mask = _ops.magnitude_mask(wide, case.pattern, "row")
    values = wide.where(mask, 0)
    if case.dtype.itemsize == 1:
        values = quantize_rows(values, case.dtype)[0]
    values, mask = values.to(case.device), mask.to(case.device)
    layout = "format" if case.device == "cpu" else "nm24_tiles"
    packed = _ops.pack(values, mask, case.pattern, layout, False, "weight")
    weight = _Weight(values, mask, packed, torch.empty_like(values), torch.empty_like(mask))
    again = _ops.unpack(packed, values.shape, case.dtype)
    kept = _ops.unpack_mask(packed, values.shape)
    is_same = torch.equal(again.float(), values.float())  # float8 has no comparison of its own
    if not (is_same and torch.equal(kept, mask)):
        raise RuntimeError(f"{case}: unpacking gives another weight, nothing was timed")
    return weight


def _conversions(case: Case, w: _Weight) -> dict[str, tuple[Callable[[], object], str]]:
    """Name to call and peer."""
    layout = "format" if case.device == "cpu" else "nm24_tiles"
    shape = list(w.values.shape)

    def both() -> tuple[Tensor, Tensor]:
        return _ops.unpack(w.packed, shape, case.dtype), _ops.unpack_mask(w.packed, shape)

    def pack() -> Tensor:
        return _ops.pack(w.values, w.mask, case.pattern, layout, False, "weight")

    anew: dict[str, tuple[Callable[[], object], str]] = {
        "pack": (pack, "clone"),
        "unpack": (both, "clone"),
    }
    return {
        "pack_": (lambda: _ops.pack_(w.packed, w.values, w.mask), "copy"),
        "unpack_": (lambda: _ops.unpack_(w.packed, w.room, w.mask_room), "copy"),
        **anew,
    }


def _finished(call: Callable[[], object]) -> None:
    call()
    torch.cuda.synchronize()


def _record(
    case: Case, w: _Weight, name: str, ms: float, peer: str, peer_ms: float, options: Options
) -> Record:
    return Record(
        suite="convert",
        kernel=name,
        machine=gs.machine().name if case.device == "cpu" else gpu_name(),
        device=case.device,
        threads=torch.get_num_threads(),
        dtype=str(case.dtype)[6:],
        pattern=case.pattern,
        sparsity=1.0 - float(w.mask.count_nonzero()) / w.mask.numel(),
        tokens=0,
        out=case.side,
        inputs=case.side,
        ms=ms,
        dense_ms=peer_ms,
        dense_impl=f"torch.Tensor.{peer}, torch {torch.__version__}",
        speedup=peer_ms / ms,
        peers={peer: peer_ms},
        bytes=w.packed.nbytes,
        bound_speedup=1.0,
        host_us=options.host_us,
        version=gs.__version__,
        date=now(),
        layer=f"{name} {case.side}x{case.side}",
    )
