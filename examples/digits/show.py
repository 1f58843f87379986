# SPDX-License-Identifier: BSD-3-Clause
"""The demo's results as text and as a page."""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import Tensor, nn

from gossamer.pages import (
    Bars,
    Ink,
    Line,
    Markup,
    Tile,
    bar_chart,
    density_picture,
    figure,
    grey_picture,
    line_chart,
    mask_crop,
    page,
    section,
    table,
    tiles,
)

from .network import PATTERNS, PRUNED, Digits, linear_at
from .train import History

TITLES = {"dense": "dense", "sparse90": "90 % unstructured", "sparse24": "2:4"}
HEADINGS = ("network", "accuracy", "file", "batch 1", "batch 256")
_SERIES = {"dense": 0, "sparse90": 1, "sparse24": 2}
_INKS = {"sparse90": Ink.TEAL, "sparse24": Ink.AMBER}


def summary(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the one table; `HEADINGS` are above them."""
    dense = results["dense"]
    times = results["sparse90"]["latency"]
    rows: list[tuple[str, ...]] = [
        (
            TITLES["dense"],
            f"{dense['accuracy']:.2f} %",
            _megabytes(dense["bytes"]),
            _time(times["1"]["dense_ms"]),
            _time(times["256"]["dense_ms"]),
        )
    ]
    for name in PATTERNS:
        network = results[name]
        rows.append(
            (
                TITLES[name],
                f"{network['accuracy']:.2f} % ({network['accuracy'] - dense['accuracy']:+.2f})",
                f"{_megabytes(network['bytes'])} ({network['bytes'] / dense['bytes']:.2f})",
                *(
                    f"{_time(each['sparse_ms'])} ({each['speedup']:.2f}x)"
                    for each in (network["latency"]["1"], network["latency"]["256"])
                ),
            )
        )
    return rows


def as_text(results: dict[str, Any]) -> str:
    """The table and the plan of each layer, for a terminal or a log."""
    rows = [HEADINGS, *summary(results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADINGS))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for name in PATTERNS:
        lines += ["", f"Plan of the {TITLES[name]} network:"]
        for layer in results[name]["layers"]:
            lines.append(f"  layer {layer['name']}, {_layer_facts(layer)}")
            lines += textwrap.wrap(
                layer["reason"], 98, initial_indent="    ", subsequent_indent="    "
            )
    return "\n".join(lines)


def as_page(
    results: dict[str, Any],
    histories: dict[str, History],
    masks: dict[str, dict[int, Tensor]],
    data: Digits,
    date: str,
) -> str:
    """The report, one HTML file.

    Args:
        results: of both processes.
        histories: of each network's training, by name.
        masks: bool, of each pruned network, by layer.
        data: for the pictures of digits.
        date: of the run.
    """
    name, processor, threads = results["machine"]
    sparse = results["sparse90"]
    layer_speedups = [
        layer["latency"]["256"]["speedup"] for layer in sparse["layers"] if layer["packed"]
    ]
    body = [tiles(_tiles(results, layer_speedups))]
    body.append(_results_section(results))
    body.append(_training_section(histories))
    body.append(_latency_section(results))
    body.append(_masks_section(masks))
    body.append(_digits_section(results, data))
    body.append(_plan_section(results))
    return page(
        "A network with a tenth of its weights",
        "A small network learns to read handwritten digits, is pruned while it goes on learning, "
        "and runs sparse on this machine. All figures here were measured by the run that wrote "
        "this page.",
        body,
        f"{processor} ({name}), {threads} threads · {date}",
    )


def _tiles(results: dict[str, Any], layer_speedups: list[float]) -> list[Tile]:
    dense, sparse = results["dense"], results["sparse90"]
    found = [
        Tile(
            f"{sparse['accuracy']:.2f} %",
            f"right at 90 % zeros; dense {dense['accuracy']:.2f} %",
            1,
        ),
        Tile(f"{dense['bytes'] / sparse['bytes']:.1f}x", "smaller on disk at 90 % zeros", 1),
    ]
    if layer_speedups:
        whole = sparse["latency"]["256"]["speedup"]
        found.append(Tile(f"{whole:.1f}x", "faster at 90 % zeros, whole network, batch 256", 1))
    half = results["sparse24"]
    found.append(
        Tile(
            f"{half['accuracy']:.2f} %",
            f"right at 2:4, in {half['bytes'] / dense['bytes']:.2f} of the file",
            2,
        )
    )
    return found


def _results_section(results: dict[str, Any]) -> Markup:
    return section(
        "results",
        "Dense beside sparse",
        "Accuracy on 400 images that training never saw (in parentheses: points gained or lost). "
        "Files are safetensors (share of the dense file). Latency is the median of the whole "
        "network, in turn with dense in one process (how many times faster).",
        table(HEADINGS, summary(results)),
    )


def _training_section(histories: dict[str, History]) -> Markup:
    start = histories["dense"].epochs[-1]
    lines = [_accuracy_line("dense", histories["dense"], 0)]
    lines += [_accuracy_line(name, histories[name], start) for name in PATTERNS]
    lines += [
        Line(
            f"zeros, {TITLES[name]} (right axis)",
            [start + epoch for epoch in histories[name].epochs],
            [100 * share for share in histories[name].sparsity],
            _SERIES[name],
            right=True,
        )
        for name in PATTERNS
    ]
    low = min(min(line.y[1:]) for line in lines if not line.right)
    floor = min(90.0, 10.0 * (low // 10))
    last = histories["sparse90"].sparsity[-1]
    done = next(
        epoch
        for epoch, share in zip(
            histories["sparse90"].epochs, histories["sparse90"].sparsity, strict=True
        )
        if share >= last - 1e-6
    )
    chart = line_chart(
        lines,
        title="Test accuracy over the epochs of the three runs, with the share of zeros",
        x_label="epoch",
        y_label="test accuracy, %",
        y_range=(floor, 100.0),
        right_label="zeros in the pruned layers, %",
        marks=[(start, "pruning begins"), (start + done, "sparsity reached, fine-tuning")],
    )
    return section(
        "training",
        "Accuracy over training",
        "Both pruned networks start from the trained dense one. Weights are removed along a cubic "
        "schedule, many at first and few at last, while training goes on and heals the loss.",
        chart,
    )


def _accuracy_line(name: str, history: History, start: int) -> Line:
    # The untrained network guesses; its point would only squeeze the others.
    first = 1 if start == 0 else 0
    epochs = [start + epoch for epoch in history.epochs[first:]]
    return Line(TITLES[name], epochs, history.accuracy[first:], _SERIES[name])


def _latency_section(results: dict[str, Any]) -> Markup:
    parts: list[Markup] = []
    for batch in ("1", "256"):
        groups, dense, sparse90, sparse24 = ["whole network"], [], [], []
        both = [results[name]["latency"][batch] for name in PATTERNS]
        dense.append(both[0]["dense_ms"])
        sparse90.append(both[0])
        sparse24.append(both[1])
        for first, second in zip(
            results["sparse90"]["layers"], results["sparse24"]["layers"], strict=True
        ):
            if not first["packed"]:
                continue
            groups.append(f"layer {first['name']}, {first['out']} × {first['in']}")
            times = first["latency"][batch]
            dense.append(times["dense_ms"])
            sparse90.append(times)
            sparse24.append(second["latency"][batch] if second["packed"] else None)
        bars = [
            Bars(TITLES["dense"], dense, [_time(ms) for ms in dense], 0),
            _bars("sparse90", sparse90, dense),
            _bars("sparse24", sparse24, dense),
        ]
        title = f"Latency at batch {batch}, dense and sparse"
        chart = bar_chart(groups, bars, title=title, width=460)
        parts.append(Markup(f"<div><h3>batch {batch}</h3>{chart}</div>"))
    return section(
        "latency",
        "Latency",
        "Medians in milliseconds; shorter is better. A layer that would be slower sparse stays "
        "dense, and its bar says so.",
        Markup(f'<div class="gallery wide">{"".join(parts)}</div>'),
    )


def _bars(name: str, times: list[Any], dense: list[float]) -> Bars:
    values = [
        ms if each is None else each["sparse_ms"] for each, ms in zip(times, dense, strict=True)
    ]
    texts = [
        "stays dense" if each is None else f"{_time(each['sparse_ms'])} · {each['speedup']:.2f}x"
        for each in times
    ]
    return Bars(TITLES[name], values, texts, _SERIES[name])


def _masks_section(masks: dict[str, dict[int, Tensor]]) -> Markup:
    parts: list[Markup] = []
    for name, layers in masks.items():
        ink, title = _INKS[name], TITLES[name]
        full = 1.0 if name == "sparse24" else None  # 2:4 is even: half of the ink everywhere
        figures = [
            figure(
                _seen_pixels(layers[0], ink, title),
                "What the first layer looks at: the more weights a pixel kept, the more ink",
            )
        ]
        for index in PRUNED[1:]:
            rows, cols = layers[index].shape
            figures.append(
                figure(
                    density_picture(
                        layers[index], ink, f"{title}: mask of layer {index}", full=full
                    ),
                    f"Layer {index}, {rows} × {cols}: where it kept its weights",
                )
            )
        figures.append(
            figure(
                mask_crop(layers[2], ink, f"{title}: corner of the mask of layer 2", 48, 48),
                "The upper left 48 × 48 weights of layer 2, one cell each",
            )
        )
        parts.append(Markup(f'<h3>{title}</h3><div class="gallery">{"".join(figures)}</div>'))
    return section(
        "masks",
        "What is left",
        "Ink is what was kept. Unstructured pruning finds rows, columns and pixels that do not "
        "matter; 2:4 keeps two of every four neighbours everywhere.",
        *parts,
    )


def _seen_pixels(mask: Tensor, ink: Ink, title: str) -> Markup:
    kept = mask.float().mean(dim=0).reshape(8, 8)
    picture = kept / kept.max().clamp_min(1e-9)
    return grey_picture(picture, f"{title}: kept weights of each of the 8 × 8 pixels", ink)


def _digits_section(results: dict[str, Any], data: Digits) -> Markup:
    guesses = {name: torch.tensor(results[name]["guesses"]) for name in TITLES}
    wrong = torch.stack([guess != data.test_y for guess in guesses.values()]).any(dim=0)
    hard = wrong.nonzero().flatten().tolist()
    figures = []
    for index in hard:
        truth = int(data.test_y[index])
        said = ", ".join(str(int(guesses[name][index])) for name in TITLES)
        picture = grey_picture(data.test_x[index].reshape(8, 8), f"a handwritten {truth}")
        figures.append(figure(picture, f"{truth} → {said}"))
    return section(
        "digits",
        "Where they fail",
        f"All {len(hard)} of the {len(data.test_y)} test images that at least one of the three "
        "networks got wrong: what it is → what dense, 90 % and 2:4 say.",
        Markup(f'<div class="strip">{"".join(figures)}</div>'),
    )


def _plan_section(results: dict[str, Any]) -> Markup:
    rows = [
        (
            Markup(f"{TITLES[name]}<small>layer {layer['name']}</small>"),
            f"{layer['out']} × {layer['in']}",
            "-" if layer["density"] is None else f"{layer['density']:.1%}",
            "packed" if layer["packed"] else "plain",
            Markup(
                "<br>".join(
                    f"{tokens}: <code>{kernel}</code>" for tokens, kernel in layer["kernels"]
                )
            ),
            layer["reason"],
        )
        for name in PATTERNS
        for layer in results[name]["layers"]
    ]
    return section(
        "plan",
        "The plan of each layer",
        "What gossamer.explain says: the kernel for each count of tokens in a call, and why.",
        table(
            ("layer", "out × in", "kept", "is", "kernel by tokens", "reason"),
            rows,
            text_columns=(0, 3, 4, 5),
        ),
    )


def masks_of(model: nn.Sequential) -> dict[int, Tensor]:
    """Where the pruned layers are not zero."""
    return {index: torch.ne(linear_at(model, index).weight.detach(), 0) for index in PRUNED}


def _layer_facts(layer: dict[str, Any]) -> str:
    facts = f"{layer['out']}x{layer['in']}"
    if layer["density"] is not None:
        facts += f", {layer['density']:.1%} kept"
    if not layer["packed"]:
        return f"{facts}: plain"
    times = layer["latency"]
    return f"{facts}: packed, " + ", ".join(
        f"{each['speedup']:.2f}x at batch {batch}" for batch, each in times.items()
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _time(ms: float) -> str:
    return f"{ms:.3f} ms" if ms < 10 else f"{ms:.1f} ms"
