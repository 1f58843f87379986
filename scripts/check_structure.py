#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Checks the rules of the house that a compiler does not: who may include whom, how long files are.

The tables below are docs/architecture.md's picture and CONTRIBUTING.md's limits. Exit status 1 with
one line for each offence.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.M)

# Folder under src -> folders whose headers it may include (public headers are free to all).
ALLOWED = {
    "core": {"core"},
    "prune": {"prune", "cpu", "core"},
    "cpu": {"cpu", "core"},
    "convert": {"convert", "cpu", "core"},
    "cuda": {"cuda", "core"},
    "plan": {"plan", "cpu", "core"},
    "io": {"io", "core"},
    "cli": {"cli", "io", "plan", "prune", "core"},
    "torch": {"torch", "io", "plan", "prune", "core", "cuda"},
}
# Instruction-set folders see intrinsics, fixed-width integers and the task structs, nothing that
# could emit an inline function under their compiler flags.
ISA_FOLDERS = ("src/cpu/avx2", "src/cpu/avx512", "src/cpu/amx")
ISA_HEADERS = re.compile(
    r"^(immintrin\.h|cstdint|cstddef|cpu/\w+_task\.h|(core|cpu)/(\w+/)?\w+\.inl)$"
)
# How many lines a file may have, by folder.
LINES = {"src": 400, "include": 400, "python": 400, "tests": 600}
# Longer ones, each with why; a name that is short again has to go.
LONGER = {
    "src/cuda/sm90/wgmma_sp.inl": "one instruction an overload, written out by a generator",
    "tests/python/test_one_shot.py": "one matrix of recipes with the models that they share",
}
TORCH_HEADER = re.compile(r"^(torch|ATen|c10)/")


def tracked(*patterns: str) -> list[Path]:
    """Files of the checkout that match, committed or new."""
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", *patterns],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return [ROOT / name for name in names]


def offences() -> list[str]:
    """One sentence for every broken rule."""
    found = []
    sources = ("src/*.h", "src/*.cpp", "src/*.cu", "src/*.cuh", "src/*.inl", "include/*.h")
    for path in tracked(*sources):
        name = path.relative_to(ROOT).as_posix()
        folder = name.split("/")[1] if name.startswith("src/") else "include"
        for header in INCLUDE.findall(path.read_text()):
            if TORCH_HEADER.match(header) and folder != "torch":
                found.append(f"{name}: includes {header}; only src/torch sees torch")
            first = header.split("/")[0]
            if folder == "include":
                if first in ALLOWED or "cuda" in header:
                    found.append(f"{name}: a public header includes {header}")
            elif first in ALLOWED and "/" in header and not (ROOT / "src" / header).exists():
                continue
            elif first in ALLOWED and "/" in header and first not in ALLOWED[folder]:
                found.append(f"{name}: src/{folder} may not include {header}")
            if name.startswith(ISA_FOLDERS) and not ISA_HEADERS.match(header):
                found.append(f"{name}: an instruction-set folder may not include {header}")
    return found


def long_files() -> list[str]:
    """One sentence for every file over its folder's limit, and every exception that is none."""
    found = []
    unused = set(LONGER)
    for folder, limit in LINES.items():
        endings = ("*.h", "*.cpp", "*.cu", "*.cuh", "*.inl", "*.py")
        for path in tracked(*(f"{folder}/{ending}" for ending in endings)):
            if not path.is_file():
                continue
            name = path.relative_to(ROOT).as_posix()
            lines = len(path.read_text().splitlines())
            if lines <= limit:
                continue
            if name in LONGER:
                unused.discard(name)
            else:
                found.append(f"{name}: {lines} lines, {folder} allows {limit}; split it")
    return found + [f"{name}: needs no exception to its length any more" for name in sorted(unused)]


def main() -> int:
    """Prints the offences; the exit status says whether there are any."""
    found = offences() + long_files()
    for line in found:
        print(line, file=sys.stderr)
    print(f"lint: structure: {'ok' if not found else f'{len(found)} offences'}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
