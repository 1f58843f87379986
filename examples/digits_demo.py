# SPDX-License-Identifier: BSD-3-Clause
"""Trains a network on handwritten digits, prunes it twice, and runs it sparse: `make demo`.

The life of a network in gossamer, from dense training to a sparse program:

1. train a dense network, and prune two copies of it gradually (digits/train.py);
2. save all of them as safetensors, pack the pruned ones;
3. load the packed files in a new process, check and measure them there (digits/run_packed.py);
4. print one table, write demo-out/report.html, and check what was promised (digits/checks.py).

The exit status is 1 where a promise was broken on this machine; the message says which.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import gossamer as gs
from digits import checks, show
from digits.network import PATTERNS, SEED, Digits, build_network, load_data
from digits.train import History, Progress, Settings, prune_gradually, train_dense


def train_all(
    data: Digits, settings: Settings, fast: bool
) -> tuple[dict[str, nn.Sequential], dict[str, History]]:
    """The dense network and its pruned copies, plain models all, with how they got there."""
    torch.manual_seed(SEED)
    dense = build_network(fast)
    histories = {"dense": train_dense(dense, data, settings, reporter("dense"))}
    models = {"dense": dense}
    for name, pattern in PATTERNS.items():
        models[name], histories[name] = prune_gradually(
            dense, pattern, data, settings, reporter(pattern)
        )
    return models, histories


def save_all(models: dict[str, nn.Sequential], data: Digits, folder: Path) -> dict[str, int]:
    """Writes every network, the pruned ones also packed, and the logits a reader should get.

    Returns:
        Bytes of each network's file, packed for the pruned ones.
    """
    sizes, logits = {}, {}
    for name, model in models.items():
        with torch.no_grad():
            logits[name] = model(data.test_x)
        file = folder / f"{name}.safetensors"
        gs.save(model, file)  # dense weights, with zeros where they were pruned
        if name in PATTERNS:
            packed = copy.deepcopy(model)
            # The format for files; whoever loads it plans for their own machine.
            gs.sparsify_(packed, layout="format")
            file = folder / f"{name}-packed.safetensors"
            gs.save(packed, file)
        sizes[name] = file.stat().st_size
    save_file(logits, folder / "logits.safetensors")
    return sizes


def run_in_new_process(folder: Path, fast: bool) -> dict[str, Any]:
    """What digits/run_packed.py found."""
    command = [sys.executable, "-m", "digits.run_packed", str(folder.resolve())]
    done = subprocess.run(
        command + ["--fast"] * fast,
        cwd=Path(__file__).resolve().parent,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the process that runs the packed files ended with {done.returncode}")
    return json.loads(done.stdout)


def reporter(what: str) -> Progress:
    """Shows epochs: one line that is rewritten on a terminal, every fourth as a line elsewhere."""
    terminal = sys.stdout.isatty()

    def report(epoch: int, epochs: int, accuracy: float, sparsity: float) -> None:
        if not terminal and epoch != epochs and epoch % 4:
            return
        line = f"{what:17} epoch {epoch:2}/{epochs}  {accuracy:6.2f} % right  {sparsity:4.0%} zeros"
        end = "\n" if epoch == epochs or not terminal else ""
        print(f"\r\033[K{line}" if terminal else line, end=end, flush=True)

    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for all files")
    parser.add_argument(
        "--fast",
        action="store_true",
        help="a tiny network, few epochs; results are checked, "
        "promises of accuracy, size and speed are not",
    )
    parser.add_argument(
        "--excuse-busy",
        action="store_true",
        help="where other programs keep this machine busy, a broken promise of speed is told, "
        "but is no failure",
    )
    arguments = parser.parse_args()
    start = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = Settings(dense_epochs=3, prune_epochs=4) if arguments.fast else Settings()

    data = load_data()
    models, histories = train_all(data, settings, arguments.fast)
    sizes = save_all(models, data, arguments.out)
    print("running the packed files in a new process", flush=True)
    results = run_in_new_process(arguments.out, arguments.fast)
    for name, size in sizes.items():
        results[name]["bytes"] = size
        results[name]["history"] = dataclasses.asdict(histories[name])

    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    masks = {name: show.masks_of(models[name]) for name in PATTERNS}
    report = show.as_page(results, histories, masks, data, date)
    (arguments.out / "report.html").write_text(report, encoding="utf-8")
    results["date"] = date
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    print(f"\n{show.as_text(results)}\n")
    print(f"{arguments.out / 'report.html'}, {time.monotonic() - start:.0f} s in all")

    busy = os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)
    if busy:
        print("other programs keep this machine busy: times and plans are less certain than usual")
    failures = checks.wrong_results(results)
    slow = []
    if not arguments.fast:
        failures += checks.broken_promises_of_quality(results)
        slow = checks.broken_promises_of_speed(results)
    if busy and arguments.excuse_busy:
        for sentence in slow:
            print(f"uncertain: {sentence}", file=sys.stderr)
    else:
        failures += slow
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
