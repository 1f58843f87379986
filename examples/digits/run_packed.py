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
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import gossamer as gs
from gossamer.bench import contest

from .network import PATTERNS, SEED, Digits, accuracy, build_network, linear_at, load_data

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
    models = {name: build_network(fast) for name in PATTERNS}
    for name, model in models.items():
        gs.load_into(model, folder / f"{name}-packed.safetensors")
    reports = {name: [_facts(report) for report in gs.explain(models[name])] for name in PATTERNS}
    for place in range(len(reports["sparse90"])):
        rows = {name: reports[name][place] for name in PATTERNS}
        index = int(rows["sparse90"]["name"])
        layers = {name: models[name][index] for name in PATTERNS if rows[name]["packed"]}
        plain = linear_at(dense, index)
        for row in rows.values():
            row["out"], row["in"] = plain.out_features, plain.in_features
        for name, latency in _latencies(plain, layers, LAYER_BATCHES, rounds).items():
            rows[name]["latency"] = latency
    networks = _latencies(dense, models, NETWORK_BATCHES, rounds)
    machine = gs.machine()
    return {
        "machine": [machine.name, machine.processor, torch.get_num_threads()],
        "dense": _outcome(dense, data, expected["dense"]),
        **{
            name: {
                **_outcome(models[name], data, expected[name]),
                "layers": reports[name],
                "latency": networks[name],
            }
            for name in PATTERNS
        },
    }


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


def _facts(report: gs.LayerReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "packed": report.packed,
        "pattern": report.pattern,
        "density": report.density,
        "dense_bytes": report.dense_bytes,
        "packed_bytes": report.packed_bytes,
        "reason": report.reason,
        "kernels": [[bucket.tokens, bucket.kernel] for bucket in report.plan],
    }


def _latencies(
    dense: nn.Module, sparse: Mapping[str, nn.Module], batches: tuple[int, ...], rounds: int
) -> dict[str, dict[str, dict[str, float | bool]]]:
    """For each sparse module and each batch: medians of turns with dense and the other modules.

    What looks slower than dense is measured again, longer, before it counts.
    """
    found: dict[str, dict[str, dict[str, float | bool]]] = {name: {} for name in sparse}
    inputs = next(m.in_features for m in dense.modules() if isinstance(m, nn.Linear))
    for batch in batches if sparse else ():
        x = torch.randn(batch, inputs)
        calls = {name: partial(module, x) for name, module in {"dense": dense, **sparse}.items()}
        for repeat in range(1, REPEATS + 1):
            times = contest(calls, rounds * repeat).median_ms
            slower = {name: _is_slower(times["dense"], times[name]) for name in sparse}
            if not any(slower.values()):
                break
        for name in sparse:
            found[name][str(batch)] = {
                "dense_ms": times["dense"],
                "sparse_ms": times[name],
                "speedup": times["dense"] / times[name],
                "slower": slower[name],
            }
    return found


def _is_slower(dense_ms: float, sparse_ms: float) -> bool:
    return dense_ms / sparse_ms < SLOWER_RATIO and sparse_ms - dense_ms > SLOWER_MS


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
