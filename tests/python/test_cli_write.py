# SPDX-License-Identifier: BSD-3-Clause
"""The `gossamer` command when writing goes wrong, and how much memory it takes."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli_helpers import BINARY


def prune(path: Path, out: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `gossamer prune -p 2:4 --force`."""
    return subprocess.run(
        [BINARY, "prune", path, "-p", "2:4", "-o", out, "--force"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of 4 MB, one tensor of which has an odd length."""
    random = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    tensors = {
        f"{i}.weight": random.standard_normal((512, 512), dtype=np.float32) for i in range(4)
    }
    save_file(tensors | {"odd": np.ones(300_001, np.uint8)}, path)
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "gossamer-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(model: Path, small_disk: Path) -> None:
    out = small_disk / "out.safetensors"
    out.write_text("old")
    run = prune(model, out)
    assert run.returncode == 2
    assert "No space left on device" in run.stderr
    assert "free some space" in run.stderr
    assert out.read_text() == "old"
    assert [p.name for p in small_disk.iterdir()] == ["out.safetensors"]


@pytest.mark.parametrize("limit", [100, 2_000_000, 4_400_000])
def test_file_size_limit(model: Path, tmp_path: Path, limit: int) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.safetensors"
    out.write_text("old")
    run = prune(
        model, out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert run.returncode == 2
    assert "File too large" in run.stderr
    assert out.read_text() == "old"
    assert [p.name for p in folder.iterdir()] == ["out.safetensors"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir(mode=0o500)
    run = prune(model, folder / "out.safetensors")
    assert run.returncode == 2
    assert "Permission denied" in run.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable(model: Path, tmp_path: Path) -> None:
    model.chmod(0)
    run = prune(model, tmp_path / "out")
    assert run.returncode == 2
    assert "Permission denied" in run.stderr


def test_stdout_that_takes_nothing(model: Path) -> None:
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [BINARY, "inspect", model], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert run.returncode == 2
    assert "cannot write to stdout" in run.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_interrupted(tmp_path: Path, number: signal.Signals) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((1024, 1024), dtype=np.float32)
    path = tmp_path / "model.safetensors"
    save_file({f"{i:02}.weight": weight for i in range(24)}, path)
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "out.safetensors"
    out.write_text("old")
    with subprocess.Popen(
        [BINARY, "prune", path, "-p", "2:4", "-o", out, "--force"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        assert run.stdout is not None
        assert "00.weight" in run.stdout.readline()
        run.send_signal(number)
        _, error = run.communicate(timeout=60)
    assert run.returncode == -number
    if number != signal.SIGKILL:
        assert "interrupted" in error
    assert out.read_text() == "old"
    litter = [p.name for p in folder.iterdir() if p != out]
    # A killed process can clean up nothing itself; where the file system has nameless files it
    # leaves nothing either.
    assert litter == [] or (number == signal.SIGKILL and litter[0].startswith("."))


def peak_beside_the_file(*arguments: object) -> int:
    """Runs the command; the largest sum of anonymous and shared resident bytes that was seen."""
    peak = 0
    with subprocess.Popen([BINARY, *map(str, arguments)], stdout=subprocess.DEVNULL) as run:
        status = Path(f"/proc/{run.pid}/status")
        while run.poll() is None:
            lines = status.read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
            resident = [int(fields.get(key, "0 kB").split()[0]) for key in ("RssAnon", "RssShmem")]
            peak = max(peak, sum(resident) * 1024)
            time.sleep(0.005)
    assert run.returncode == 0
    return peak


@pytest.mark.slow
def test_a_gigabyte_takes_little_memory(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((2048, 2048), dtype=np.float32)
    path = tmp_path / "big.safetensors"
    save_file({f"{i:02}.weight": np.roll(weight, i) for i in range(64)}, path)
    assert path.stat().st_size > 1_000_000_000
    pruned, packed = tmp_path / "pruned", tmp_path / "packed"
    figures = {
        "prune": peak_beside_the_file("prune", path, "-p", "2:4", "-o", pruned),
        "pack": peak_beside_the_file("pack", pruned, "-o", packed),
    }
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in figures.items()})
    assert all(1_000_000 < peak < 300_000_000 for peak in figures.values()), figures
    weights = load_file(pruned)
    assert all((w != 0).mean() == 0.5 for w in weights.values())
    assert packed.stat().st_size < 0.6 * pruned.stat().st_size
