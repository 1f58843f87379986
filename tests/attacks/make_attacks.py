#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the malformed files of this folder and the table in README.md.

    python3 tests/attacks/make_attacks.py

Only the standard library: the files are bytes, and the packed weights are put together by hand from
docs/formats.md. The tests read the table; each file must be refused with the message in its row.
"""

from __future__ import annotations

from pathlib import Path

from file_attacks import file_attacks
from packed_attacks import packed_attacks

HERE = Path(__file__).resolve().parent

README = """# Attacks

One small malformed file per attack, written by `make_attacks.py`, which also writes this page. Each
file must be refused with an error that contains the text in the last column, without a crash and
before anything is allocated for it: by `SafetensorsFile::open` for the files of this folder, by
`read_packed` for those of `packed/` (good safetensors files with a wrong packed weight `w`).
`patterns.txt` holds pattern texts that `Pattern::parse` must refuse, one a line. The C++ tests, the
tests of the command and the fuzz targets read them all.

"""


def main() -> None:
    """Writes every file and the table."""
    lines = ["| file | what is wrong | message |", "|---|---|---|"]
    for folder, attacks in ((".", file_attacks()), ("packed", packed_attacks())):
        target = HERE / folder
        target.mkdir(exist_ok=True)
        for old in target.glob("*.safetensors"):
            old.unlink()
        for attack in attacks:
            path = target / f"{attack.name}.safetensors"
            path.write_bytes(attack.data)
            lines.append(f"| `{path.relative_to(HERE)}` | {attack.wrong} | `{attack.message}` |")
    (HERE / "README.md").write_text(README + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
