# SPDX-License-Identifier: BSD-3-Clause
"""A process that never saw the training: loads the files, checks the results, measures.

    python -m digits.run_packed FOLDER [--fast]

prints one JSON object. All that it knows of the networks is their architecture and the files.
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
from gossamer.bench import Contest, contest

from .network import Digits, accuracy, build_network, load_data

NETWORK_BATCHES = (1, 256)
LAYER_BATCHES = (1, 8, 64, 256)
SLOWER_RATIO = 0.97
SLOWER_MS = 0.003
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


def run(folder: Path, networks: dict[str, str], widths: tuple[int, ...], fast: bool) -> Any:
    """Loads and measures every network; `networks` maps names to patterns.

    Returns:
        A JSON-able dict: `dense` and each network by name.
    """
    data = load_data()
    expected = load_file(folder / "logits.safetensors")
    rounds = 5 if fast else 15
    dense = build_network(widths)
    gs.load_into(dense, folder / "dense.safetensors")
    results: dict[str, Any] = {"dense": _outcome(dense, data, expected["dense"])}
    results["dense"]["guesses"] = dense(data.test_x).argmax(dim=1).tolist()
    for name in networks:
        model = build_network(widths)
        gs.load_into(model, folder / f"{name}-packed.safetensors")
        outcome = _outcome(model, data, expected[name])
        outcome["guesses"] = model(data.test_x).argmax(dim=1).tolist()
        plain = gs.desparsify_(copy.deepcopy(model))
        outcome["layers"] = [_layer(report, model, plain, rounds) for report in gs.explain(model)]
        outcome["latency"] = {
            str(batch): _faceoff(dense, model, torch.randn(batch, widths[0]), rounds)
            for batch in NETWORK_BATCHES
        }
        results[name] = outcome
    results["machine"] = gs.machine().name
    results["processor"] = gs.machine().processor
    results["threads"] = torch.get_num_threads()
    return results


def _outcome(model: nn.Sequential, data: Digits, expected: Tensor) -> dict[str, Any]:
    logits = model(data.test_x)
    plain = gs.desparsify_(copy.deepcopy(model))
    # Both processes computed in float32: each may be off by the bound.
    share = ((logits - expected).abs().double() / (2 * error_bound(plain, data.test_x))).max()
    return {"accuracy": accuracy(logits, data.test_y), "error_share_of_bound": share.item()}


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
            str(batch): _faceoff(dense, layer, torch.randn(batch, dense.in_features), rounds)
            for batch in LAYER_BATCHES
        }
    return row


def _faceoff(dense: nn.Module, sparse: nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """Medians in turn; what looks slower than dense is measured again before it counts."""
    result: Contest | None = None
    for repeat in range(REPEATS):
        result = contest(
            {"dense": lambda: dense(x), "sparse": lambda: sparse(x)}, rounds * (repeat + 1)
        )
        dense_ms, sparse_ms = result.median_ms["dense"], result.median_ms["sparse"]
        if dense_ms / sparse_ms >= SLOWER_RATIO or sparse_ms - dense_ms <= SLOWER_MS:
            break
    assert result is not None
    return {
        "dense_ms": result.median_ms["dense"],
        "sparse_ms": result.median_ms["sparse"],
        "speedup": result.speedup("dense", "sparse"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", required=True, help="JSON: name to pattern")
    parser.add_argument("--widths", required=True, help="JSON: list of ints")
    parser.add_argument("--fast", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with torch.inference_mode():
        results = run(
            arguments.folder,
            json.loads(arguments.networks),
            tuple(json.loads(arguments.widths)),
            arguments.fast,
        )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
