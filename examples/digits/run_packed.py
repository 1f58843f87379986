# SPDX-License-Identifier: BSD-3-Clause
"""A process that never saw the training: loads the files, checks the results, measures.

    python -m digits.run_packed FOLDER [--fast]

(in the folder above this one) prints one JSON object. All it knows of the networks is their
architecture and the files.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench import contest

from .network import PATTERNS, SEED, WIDTHS, Digits, accuracy, build_network, load_data

NETWORK_BATCHES = (1, 256)
LAYER_BATCHES = (1, 8, 64, 256)
SLOWER_RATIO, SLOWER_MS = 0.97, 0.003
"""Slower than dense is what is below the ratio and more than the call's own 3 us behind."""
REPEATS = 3


def error_bound(model: nn.Sequential, x: Tensor) -> Tensor:
    """How far float32 logits may be from exact ones, whatever the order of summation.

    Each inner product of K terms is off by at most gamma_K * |w|.|h|, gamma_K = K*u / (1 - K*u)
    (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1); the error of a
    layer's input is carried on by |W|, and ReLU does not enlarge it.
    """
    hidden, error = x.double(), torch.zeros_like(x, dtype=torch.float64)
    for module in model:
        if isinstance(module, nn.Linear):
            weight, bias = module.weight.double(), module.bias.double()
            terms = weight.shape[1] + 1
            gamma = terms * 2.0**-24 / (1 - terms * 2.0**-24)
            size = F.linear(hidden.abs() + error, weight.abs(), bias.abs())
            error = F.linear(error, weight.abs()) + gamma * size
            hidden = F.linear(hidden, weight, bias)
        else:
            hidden = module(hidden)
    return error


def run(folder: Path, fast: bool) -> dict[str, Any]:
    """Loads, checks and measures every network of the folder.

    Returns:
        `machine` and what was found for `dense` and for each network by name, ready for JSON.
    """
    data = load_data()
    expected = load_file(folder / "logits.safetensors")
    rounds = 5 if fast else 15
    dense = build_network(fast)
    gs.load_into(dense, folder / "dense.safetensors")
    machine = gs.machine()
    results: dict[str, Any] = {
        "machine": [machine.name, machine.processor, torch.get_num_threads()],
        "dense": _outcome(dense, data, expected["dense"]),
    }
    for name in PATTERNS:
        model = build_network(fast)
        gs.load_into(model, folder / f"{name}-packed.safetensors")
        plain = gs.desparsify_(copy.deepcopy(model))
        results[name] = {
            **_outcome(model, data, expected[name]),
            "layers": [_layer(report, model, plain, rounds) for report in gs.explain(model)],
            "latency": {
                str(batch): _in_turn(dense, model, torch.randn(batch, WIDTHS[0]), rounds)
                for batch in NETWORK_BATCHES
            },
        }
    return results


def _outcome(model: nn.Sequential, data: Digits, expected: Tensor) -> dict[str, Any]:
    logits = model(data.test_x)
    plain = copy.deepcopy(model)
    gs.desparsify_(plain)
    # Both processes computed in float32: each may be off by the bound.
    difference = (logits - expected).abs().double()
    share = (difference / (2 * error_bound(plain, data.test_x))).max().item()
    return {
        "accuracy": accuracy(logits, data.test_y),
        "share_of_error_bound": share,
        "guesses": logits.argmax(dim=1).tolist(),
    }


def _layer(
    report: gs.LayerReport, model: nn.Module, plain: nn.Module, rounds: int
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": report.name,
        "packed": report.packed,
        "pattern": report.pattern,
        "density": report.density,
        "dense_bytes": report.dense_bytes,
        "packed_bytes": report.packed_bytes,
        "reason": report.reason,
        "kernels": [[bucket.tokens, bucket.kernel] for bucket in report.plan],
    }
    layer, dense = model.get_submodule(report.name), plain.get_submodule(report.name)
    assert isinstance(dense, nn.Linear)
    row["out"], row["in"] = dense.out_features, dense.in_features
    if report.packed:
        row["latency"] = {
            str(batch): _in_turn(dense, layer, torch.randn(batch, dense.in_features), rounds)
            for batch in LAYER_BATCHES
        }
    return row


def _in_turn(
    dense: nn.Module, sparse: nn.Module, x: Tensor, rounds: int
) -> dict[str, float | bool]:
    """Medians of turns; what looks slower than dense is measured again before it counts."""
    for repeat in range(1, REPEATS + 1):
        result = contest({"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, rounds * repeat)
        dense_ms, sparse_ms = result.median_ms["dense"], result.median_ms["sparse"]
        slower = dense_ms / sparse_ms < SLOWER_RATIO and sparse_ms - dense_ms > SLOWER_MS
        if not slower:
            break
    return {
        "dense_ms": dense_ms,
        "sparse_ms": sparse_ms,
        "speedup": dense_ms / sparse_ms,
        "slower": slower,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fast", action="store_true", help="the small network of quick runs")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    with torch.no_grad():
        json.dump(run(arguments.folder, arguments.fast), sys.stdout)


if __name__ == "__main__":
    main()
