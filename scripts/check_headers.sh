#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Every public header compiles alone, with nothing but the standard library.
set -euo pipefail
cd "$(dirname "$0")/.."
for header in include/gossamer/*.h; do
  echo "#include \"gossamer/$(basename "$header")\"" |
    g++ -std=c++20 -Wall -Wextra -Werror -fopenmp -Iinclude -fsyntax-only -x c++ -
done
echo "check_headers: $(ls include/gossamer/*.h | wc -l) headers compile alone"
