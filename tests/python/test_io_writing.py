# SPDX-License-Identifier: BSD-3-Clause
"""save writes files whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import nn

import gossamer as gs
from io_helpers import network

# --- Writing is atomic ----------------------------------------------------------------------------


def leftovers(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.endswith(".tmp")]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(network(), path)
    before = path.read_bytes()
    program = (
        "import resource, signal, sys, torch, gossamer as gs\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    gs.save(torch.nn.Linear(512, 512), sys.argv[1])\n"
        "except OSError as error:\n"
        "    print('refused:', error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
    )
    assert "refused:" in done.stdout, done.stderr
    assert "could not be written" in done.stdout
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    gs.save(network(), path)
    before = path.read_bytes()

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gs.save(network(), path)
    assert path.read_bytes() == before
    assert not leftovers(tmp_path)


def test_a_folder_that_cannot_be_synced_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new file is in its place by then: nothing may say that the old one is."""
    path = tmp_path / "m.safetensors"
    gs.save(nn.Linear(4, 4), path)
    sync = os.fsync

    def fails_on_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fails_on_folders)
    with pytest.raises(OSError, match=r"is written and whole, but its folder") as refusal:
        gs.save(nn.Linear(5, 5), path)
    assert "unchanged" not in str(refusal.value)
    assert refusal.value.errno == errno.EIO
    assert load_file(path)["weight"].shape == (5, 5)
    assert not leftovers(tmp_path)


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "m.safetensors", tmp_path / "link.safetensors"
    gs.save(nn.Linear(4, 4), path)
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o640)
    link.symlink_to(path)
    gs.save(nn.Linear(5, 5), link)
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert load_file(path)["weight"].shape == (5, 5)
