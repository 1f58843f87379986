#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Two C++ consumers: an installed package (shared) and a subdirectory (static). Also pkg-config.
#   tests/consume/cpp.sh BUILD_DIR   a configured and built tree to install from
set -euo pipefail
build=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# The tools talk on standard output, compilers' errors included: shown only where a step fails.
quietly() { "$@" >"$scratch/log" 2>&1 || { cat "$scratch/log" >&2; return 1; }; }

quietly cmake --install "$build" --prefix "$scratch/prefix"
quietly cmake -S "$here/find_package" -B "$scratch/find_package" -G Ninja \
  -DCMAKE_PREFIX_PATH="$scratch/prefix"
quietly cmake --build "$scratch/find_package"
"$scratch/find_package/consumer"
"$scratch/prefix/bin/gossamer" --version
echo "consume: find_package ok"

if command -v pkg-config >/dev/null; then
  pc=$(dirname "$(find "$scratch/prefix" -name gossamer.pc)")
  sed -i "s|^prefix=.*|prefix=$scratch/prefix|" "$pc/gossamer.pc"
  # shellcheck disable=SC2046  # the flags are words
  g++ "$here/main.cpp" $(PKG_CONFIG_PATH=$pc pkg-config --cflags --libs gossamer) \
    -o "$scratch/consumer"
  LD_LIBRARY_PATH=$(dirname "$pc") "$scratch/consumer"
  echo "consume: pkg-config ok"
fi

# Beside the other builds: from there relative paths are the same, and ccache knows the objects.
inside=$(realpath "$here/../..")/build/consume
rm -rf "$inside"
quietly cmake -S "$here/add_subdirectory" -B "$inside" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_COMPILER_LAUNCHER="$(command -v ccache || true)"
quietly cmake --build "$inside" --target consumer
"$inside/consumer"
echo "consume: add_subdirectory ok"
