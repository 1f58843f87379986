# SPDX-License-Identifier: BSD-3-Clause
"""What the demo promises, as checks on what it measured."""

from __future__ import annotations

from typing import Any

from .network import PATTERNS

MOST_POINTS_LOST = 1.0
LARGEST_FILE_RATIO = 0.25
LEAST_SPEEDUP = 2.0
LARGE = 1024
"""Layers of at least this many inputs and outputs must reach the speed-up."""


def wrong_results(results: dict[str, Any]) -> list[str]:
    """A sentence for each network whose logits differ from those of the process that trained it."""
    return [
        f"{name}: logits in the new process are off by {results[name]['share_of_error_bound']:.2g} "
        "times what float32 allows"
        for name in ("dense", *PATTERNS)
        if not results[name]["share_of_error_bound"] <= 1.0
    ]


def broken_promises(results: dict[str, Any]) -> list[str]:
    """A sentence for each promise of size, accuracy or speed that the figures break."""
    return broken_promises_of_quality(results) + broken_promises_of_speed(results)


def broken_promises_of_quality(results: dict[str, Any]) -> list[str]:
    """Those of accuracy and size, which no busy machine excuses."""
    sparse = results["sparse90"]
    found = []
    lost = results["dense"]["accuracy"] - sparse["accuracy"]
    # In float32 an accuracy is a multiple of 0.25 points up to rounding.
    if lost > MOST_POINTS_LOST + 1e-4:
        found.append(f"sparse90 loses {lost:.2f} points of accuracy; at most {MOST_POINTS_LOST}")
    ratio = sparse["bytes"] / results["dense"]["bytes"]
    if ratio > LARGEST_FILE_RATIO:
        found.append(
            f"sparse90's file is {ratio:.3f} of the dense one; at most {LARGEST_FILE_RATIO}"
        )
    return found


def broken_promises_of_speed(results: dict[str, Any]) -> list[str]:
    """Those that were timed."""
    found = []
    for layer in results["sparse90"]["layers"]:
        if min(layer["out"], layer["in"]) >= LARGE:
            found += _too_slow(layer)
    for name in PATTERNS:
        for layer in results[name]["layers"]:
            found += [
                f"{name}, layer {layer['name']} at batch {batch}: {times['sparse_ms']:.4f} ms, "
                f"dense {times['dense_ms']:.4f} ms; nothing may be slower than dense"
                for batch, times in layer.get("latency", {}).items()
                if times["slower"]
            ]
    return found


def _too_slow(layer: dict[str, Any]) -> list[str]:
    where = f"sparse90, layer {layer['name']} ({layer['out']}x{layer['in']})"
    if not layer["packed"]:
        return [f"{where} stayed dense: {layer['reason']}"]
    speedup = layer["latency"]["256"]["speedup"]
    if speedup < LEAST_SPEEDUP:
        return [f"{where} runs {speedup:.2f}x dense at batch 256; at least {LEAST_SPEEDUP}x"]
    return []
