#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# `make test`: builds and tests everything, in the order in which a fault is cheapest to find.
#   GOSSAMER_FUZZ_SECONDS     how long the fuzz targets run, side by side (default 15)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/llvm.sh
# One compiler name and one locale in every build (pip's Python would set its own), so that ccache
# knows what it has compiled before.
export CXX=${CXX:-g++} LC_ALL=C.UTF-8
section() { printf '\n== %s (%s s)\n' "$1" "$SECONDS"; }

section "set up"
scripts/setup.sh test
scripts/install.sh

section "C++ build"
cmake --preset test >/dev/null
cmake --build --preset test
scripts/check_headers.sh
scripts/check_symbols.sh build/test

section "style and structure"
scripts/lint.sh

section "C++ tests"
ctest --preset test -j "$(nproc)" --progress

section "dispatch with each instruction set forced in turn"
for isa in generic avx2 avx512; do
  GOSSAMER_MAX_ISA=$isa build/test/tests/cpp/dispatch_test --gtest_brief=1
done

section "Python tests"
export GOSSAMER_BIN=$PWD/.venv/bin/gossamer
.venv/bin/python -m pytest -q -n "$(nproc)" --dist loadfile -m "not timing"
.venv/bin/python -m pytest -q -m timing

section "the main job, with its promises"
# A broken promise of speed counts if it is broken twice and nobody else has the cores.
demo=(.venv/bin/python examples/digits_demo.py --excuse-busy --out build/demo)
"${demo[@]}" || "${demo[@]}"

section "clang-tidy"
scripts/lint.sh --tidy

section "C++ tests under AddressSanitizer and UBSan, fuzzing"
clang=$(llvm_tool clang++)
if [ -n "$clang" ]; then
  CXX=$clang cmake --preset fuzz >/dev/null
  cmake --build --preset fuzz
  ctest --preset fuzz -j "$(nproc)" --progress
  scripts/fuzz.sh build/fuzz "${GOSSAMER_FUZZ_SECONDS:-15}"
else
  echo "clang++ is not here: the compiler's sanitizers instead, and no fuzzing"
  cmake --preset asan >/dev/null
  cmake --build --preset asan
  ctest --preset asan -j "$(nproc)" --progress
fi

section "consumers"
tests/consume/cpp.sh build/test
scripts/wheel.sh
tests/consume/wheel.sh wheelhouse/*.whl

section "done"
