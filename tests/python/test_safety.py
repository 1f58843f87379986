# SPDX-License-Identifier: BSD-3-Clause
"""Packed layers of every kind where inputs, sizes, threads and processes are not the usual ones.

`GOSSAMER_MAX_ISA` lowers the instruction sets: the last test runs this file at each level.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from sparsify_helpers import is_packed

INT8 = ("int8", "static int8")
KINDS = ("float32", "bfloat16", *INT8)
STATIC_SCALE = 5.0 / 127


def packed_like(dense: nn.Module, kind: str, pattern: str | None = None) -> nn.Module:
    """The layer packed in its format, whatever dense would do."""
    layer = copy.deepcopy(dense)
    config: object = gs.SparseConfig(pattern)
    if kind == "int8":
        config = gs.Int8DynamicActivationSparseWeightConfig(pattern)
    elif kind == "static int8":
        config = gs.Int8StaticActivationSparseWeightConfig(STATIC_SCALE, pattern)
    gs.sparsify_(layer, config, layout="format")
    assert is_packed(layer)
    return layer


def linear(out: int, inputs: int, kind: str, density: float = 0.3) -> nn.Linear:
    dense = nn.Linear(inputs, out)
    with torch.no_grad():
        dense.weight.mul_(torch.rand(out, inputs) < density)
    return dense.to(torch.bfloat16) if kind == "bfloat16" else dense


def convolution(channels: int = 20, filters: int = 24, density: float = 0.3) -> nn.Conv2d:
    dense = nn.Conv2d(channels, filters, 3, padding=1)
    with torch.no_grad():
        dense.weight.mul_(torch.rand_like(dense.weight) < density)
    return dense


def close(y: Tensor, dense: nn.Module, x: Tensor, kind: str) -> None:
    """Within the rounding of the kind.

    Every result is a sum of products that is rounded somewhere: in float32 by at most
    (K + 4)·2^-24 of Σ|x||w| + |b| (K inputs, Higham 2002, §3.1), in bfloat16 by half a unit of its
    eighth bit more, in int8 by half a step of each factor (docs/quantization.md).
    """
    wide = copy.deepcopy(dense).double()
    size = copy.deepcopy(wide)
    with torch.no_grad():
        for parameter in size.parameters():
            parameter.abs_()
        want, magnitude = wide(x.double()), size(x.double().abs())
        terms = dense.weight[0].numel() + 4
        bound = 2 * terms * 2.0**-24 * magnitude
        if kind == "bfloat16":
            bound = bound + 2.0**-8 * (want.abs() + bound) + 1e-30
        if kind in INT8:
            axis = tuple(range(1, x.dim())) if isinstance(dense, nn.Conv2d) else (-1,)
            step_x = 1.0001 * x.double().abs().amax(axis, keepdim=True) / 127
            if kind == "static int8":
                step_x = torch.full_like(step_x, 1.0001 * STATIC_SCALE)
            size.bias = None
            step_w = 1.0001 * float(dense.weight.abs().max()) / 127
            ones = copy.deepcopy(size)
            ones.weight.copy_(dense.weight != 0)
            halves = size(torch.ones_like(x.double())) * step_x / 2
            bound = bound + halves + (ones(x.double().abs() + step_x / 2) * step_w / 2)
        assert y.shape == want.shape
        assert bool(((y.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("out", "inputs"), [(1, 1), (1, 300), (129, 1), (3, 17), (67, 131)])
@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_odd_sizes_one_row_one_column(kind: str, out: int, inputs: int, tokens: int) -> None:
    dense = linear(out, inputs, kind)
    with torch.no_grad():
        dense.weight[0, 0] = 0.5
    layer = packed_like(dense, kind, "unstructured")
    x = torch.randn(tokens, inputs).clamp(-4, 4).to(dense.weight.dtype)
    close(layer(x), dense, x, kind)


@pytest.mark.parametrize("kind", ["float32", *INT8])
@pytest.mark.parametrize(("channels", "filters", "side"), [(1, 1, 1), (1, 9, 5), (7, 1, 3)])
def test_odd_convolutions(kind: str, channels: int, filters: int, side: int) -> None:
    dense = convolution(channels, filters)
    with torch.no_grad():
        dense.weight[0, 0, 1, 1] = 0.5
    layer = packed_like(dense, kind, "unstructured")
    x = torch.randn(3, channels, side, side + 1).clamp(-4, 4)
    close(layer(x), dense, x, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batches(kind: str) -> None:
    dense = linear(24, 40, kind)
    layer = packed_like(dense, kind)
    for shape in ((0, 40), (3, 0, 40), (0, 0, 40)):
        y = layer(torch.empty(shape, dtype=dense.weight.dtype))
        assert y.shape == (*shape[:-1], 24)
        assert y.dtype is dense.weight.dtype
    if kind != "bfloat16":
        images = packed_like(convolution(), kind)
        assert images(torch.empty(0, 20, 9, 9)).shape == (0, 24, 9, 9)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_zeros_and_weights_without_any(kind: str) -> None:
    x = torch.randn(7, 40).clamp(-4, 4)
    for density in (0.0, 0.3, 1.1):
        dense = linear(24, 40, kind, density)
        with torch.no_grad():
            if density < 1:
                dense.weight[[0, 7, 23]] = 0.0
        layer = packed_like(dense, kind, "unstructured")
        y = layer(x.to(dense.weight.dtype))
        close(y, dense, x.to(dense.weight.dtype), kind)
        if density < 1:
            assert torch.equal(y[:, 7], dense.bias[7].expand(7))
    if kind == "bfloat16":
        return
    x = torch.randn(2, 20, 6, 6).clamp(-4, 4)
    for density in (0.0, 1.1):
        dense_images = convolution(density=density)
        images = packed_like(dense_images, kind, "unstructured")
        close(images(x), dense_images, x, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_unaligned_and_non_contiguous_inputs(kind: str) -> None:
    dense = linear(24, 40, kind)
    layer = packed_like(dense, kind)
    dtype = dense.weight.dtype
    values = torch.randn(6, 40).clamp(-4, 4).to(dtype)
    want = layer(values)
    memory = torch.zeros(6 * 40 + 3, dtype=dtype)
    unaligned = memory[3:].view(6, 40).copy_(values)
    assert unaligned.data_ptr() % 16 != 0
    padded = torch.zeros(6, 50, dtype=dtype)[:, 7:47].copy_(values)
    transposed = values.T.contiguous().T
    skipping = torch.zeros(6, 80, dtype=dtype)[:, ::2].copy_(values)
    for x in (unaligned, padded, transposed, skipping):
        assert torch.equal(layer(x), want)
    one = values[2:3].expand(6, 40)
    assert torch.equal(layer(one), layer(one.contiguous()))
    if kind == "bfloat16":
        return
    images = packed_like(convolution(), kind)
    values = torch.randn(2, 20, 7, 7).clamp(-4, 4)
    want = images(values)
    cut = torch.zeros(2, 20, 9, 11)[:, :, 1:8, 2:9].copy_(values)
    unaligned = torch.zeros(values.numel() + 1)[1:].view_as(values).copy_(values)
    for x in (cut, unaligned, values.mT.contiguous().mT):
        assert torch.equal(images(x), want)


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_pruned_passes_nan_and_infinity_by(kind: str, value: float) -> None:
    """Dense would multiply them by zero and give NaN; a pruned weight contributes nothing."""
    dense = linear(24, 40, kind)
    with torch.no_grad():
        dense.weight[:12, 5] = 0.0
        dense.weight[12:, 5] = 0.5
    layer = packed_like(dense, kind)
    for tokens in (1, 5, 40):
        x = torch.randn(tokens, 40).to(dense.weight.dtype)
        want = layer(x)
        x[:, 5] = value
        y = layer(x)
        clean = x.clone()
        clean[:, 5] = 0.0
        close(y[:, :12], _first_rows(dense, 12), clean, kind)
        assert bool((~y[:, 12:].isfinite()).all())
        assert bool(want.isfinite().all())


def test_a_dense_copy_computes_as_dense_layers_do() -> None:
    """The one exception: where `memory="speed"` runs the copy, zero times NaN is NaN."""
    dense = linear(24, 40, "float32")
    with torch.no_grad():
        dense.weight[:12, 5] = 0.0
    packed = packed_like(dense, "float32").weight.packed
    names = json.dumps(["dense", *[None] * 7])
    planned = torch.ops.gossamer.with_plan(packed, names)
    with_copy = gs.SparseWeight.from_packed(planned, dense=dense.weight.detach().clone())
    x = torch.randn(40, 40)
    x[:, 5] = float("nan")
    one, many = (F.linear(rows, with_copy, dense.bias) for rows in (x[:1], x))
    assert bool(one[:, :12].isnan().all()), "one token runs the copy"
    assert bool(many[:, :12].isfinite().all()), "forty run packed"
    without = gs.SparseWeight.from_packed(packed)
    assert bool(F.linear(x[:1], without, dense.bias)[:, :12].isfinite().all())


def _first_rows(dense: nn.Linear, count: int) -> nn.Linear:
    part = nn.Linear(dense.in_features, count, dtype=dense.weight.dtype)
    with torch.no_grad():
        part.weight.copy_(dense.weight[:count])
        part.bias.copy_(dense.bias[:count])
    return part


def with_one_row_a_regime(layer: nn.Module) -> nn.Module:
    """Planned, so that the rows and with them the roundings do not depend on the threads."""
    info = gs._ops.info(layer.weight.packed)
    rows = [
        row.name
        for row in gs.kernels()
        if row.operation == "linear"
        and row.runs_here
        and row.layout == info["layout"]
        and row.weight_dtype == row.activation_dtype == info["dtype"]
    ]
    few = [name for name in rows if "_linear_" in name][-1]
    many = [name for name in rows if "_spmm_" in name or name.startswith("generic_")][-1]
    packed = torch.ops.gossamer.with_plan(layer.weight.packed, json.dumps([few] * 3 + [many] * 5))
    layer.weight = nn.Parameter(layer.weight._replace(packed), requires_grad=False)
    return layer


def large_layers() -> list[tuple[nn.Module, Tensor]]:
    """Of every kind, with work enough for several threads, and an input for each."""
    found: list[tuple[nn.Module, Tensor]] = []
    for kind in KINDS:
        dense = linear(512, 520, kind, 0.2)
        for tokens in (1, 200):
            x = torch.randn(tokens, 520).to(dense.weight.dtype)
            found.append((with_one_row_a_regime(packed_like(dense, kind)), x))
    for kind in ("float32", *INT8):
        layer = packed_like(convolution(64, 64), kind)
        found.append((layer, torch.randn(4, 64, 20, 20)))
    return found


def test_thread_counts_that_change_between_calls() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        layers = large_layers()
        with torch.no_grad():
            want = [layer(x) for layer, x in layers]
            for threads in (2, 5, 1, 3, 2):
                torch.set_num_threads(threads)
                for (layer, x), y in zip(layers, want, strict=True):
                    assert torch.equal(layer(x), y)
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_call_one_module() -> None:
    layers = large_layers()
    with torch.no_grad():
        want = [layer(x) for layer, x in layers]
    faults: list[str] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        torch.set_num_threads(1 + number % 2)
        start.wait()
        try:
            with torch.no_grad():
                for turn in range(12):
                    index = (turn + number) % len(layers)
                    layer, x = layers[index]
                    if not torch.equal(layer(x), want[index]):
                        faults.append(f"layer {index} in thread {number}")
        except Exception as error:  # a thread's exceptions are lost otherwise
            faults.append(repr(error))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def _in_fork(work: Callable[[], bool], seconds: float = 60.0) -> str:
    """What became of `work` in a forked process: "right", "wrong" or how it ended."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        result = b"raised"
        try:
            result = b"right" if work() else b"wrong"
        finally:
            os.write(write, result)
            os._exit(0)
    os.close(write)
    answer: list[bytes] = []
    reader = threading.Thread(target=lambda: answer.append(os.read(read, 16)), daemon=True)
    reader.start()
    reader.join(seconds)
    if not answer:
        os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(read)
    return answer[0].decode() if answer else "hung"


def test_a_forked_process_computes_on() -> None:
    """As a DataLoader's workers do: torch's own threads do not survive a fork, so there is one."""
    torch.set_num_threads(2)
    layers = large_layers()
    with torch.no_grad():
        want = [layer(x) for layer, x in layers]  # starts the threads that are not forked

        def work() -> bool:
            torch.set_num_threads(1)
            return all(torch.equal(layer(x), y) for (layer, x), y in zip(layers, want, strict=True))

        assert _in_fork(work) == "right"
        assert all(torch.equal(layer(x), y) for (layer, x), y in zip(layers, want, strict=True))


@pytest.mark.skipif("GOSSAMER_MAX_ISA" in os.environ, reason="one level is what this run tests")
@pytest.mark.parametrize("level", ["generic", "avx2", "avx512"])
def test_all_of_this_at_each_level(level: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", Path(__file__).name],
        cwd=Path(__file__).parent,
        env={**os.environ, "GOSSAMER_MAX_ISA": level},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
