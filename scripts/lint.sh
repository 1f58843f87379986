#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Style and structure: clang-format, ruff, mypy, the direction of includes.
#   scripts/lint.sh            checks
#   scripts/lint.sh --fix      formats in place
#   scripts/lint.sh --tidy     checks, and clang-tidy on the core (minutes; needs build/test)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/llvm.sh
fix=${1:-}
# wgmma_sp.inl is what scripts/generate_wgmma.py writes, one line an operand list: never by hand.
mapfile -t cxx < <(git ls-files -co --exclude-standard '*.h' '*.cpp' '*.cu' '*.cuh' '*.inl' \
  ':!src/cuda/sm90/wgmma_sp.inl')

formatter=$(llvm_tool clang-format)
if [ "$formatter" = clang-format-19 ]; then
  if [ "$fix" = --fix ]; then
    "$formatter" -i "${cxx[@]}"
  else
    "$formatter" --dry-run -Werror "${cxx[@]}"
    echo "lint: clang-format: ${#cxx[@]} files"
  fi
else
  echo "lint: clang-format-19 is not here (found: ${formatter:-none}); formatting is not checked"
fi

ruff=(.venv/bin/python -m ruff)
if [ "$fix" = --fix ]; then
  "${ruff[@]}" format python tests/python examples scripts
  "${ruff[@]}" check --fix python tests/python examples scripts
  exit 0
fi
"${ruff[@]}" format --check -q python tests/python examples scripts
"${ruff[@]}" check -q python tests/python examples scripts
echo "lint: ruff"
.venv/bin/python -m mypy --no-error-summary
echo "lint: mypy"
.venv/bin/python scripts/check_structure.py
[ "$fix" = --tidy ] || exit 0
tidy=$(llvm_tool clang-tidy)
if [ -n "$tidy" ] && [ -f build/test/compile_commands.json ]; then
  git ls-files 'src/core/*.cpp' 'src/prune/*.cpp' 'src/plan/*.cpp' 'src/io/*.cpp' |
    xargs -P "$(nproc)" -n 2 "$tidy" -p build/test --quiet --warnings-as-errors='*' 2>&1 |
    { grep -vE 'warnings? (and [0-9]+ errors? )?generated|^\[[0-9]+/[0-9]+\] Processing|treated as error' || true; }
  echo "lint: clang-tidy on core, prune, plan, io"
else
  echo "lint: clang-tidy or build/test is not here; not run"
fi
