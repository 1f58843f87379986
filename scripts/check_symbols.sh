#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Objects compiled for one instruction set must not define weak symbols: the linker keeps one copy of an
# inline function for the whole library, and the copy with AVX-512 in it would crash older machines.
#   scripts/check_symbols.sh BUILD_DIR
set -euo pipefail
found=0
checked=0
while IFS= read -r object; do
  checked=$((checked + 1))
  if weak=$(nm -C --defined-only "$object" | grep -E ' [VWu] '); then
    echo "$object defines inline symbols:" >&2
    echo "$weak" >&2
    found=1
  fi
done < <(find "$1" -path '*cpu/*' \( -path '*avx2*' -o -path '*avx512*' -o -path '*amx*' \) -name '*.o')
[ "$checked" -gt 0 ] || { echo "check_symbols: no instruction-set objects under $1" >&2; exit 1; }
[ "$found" = 0 ] && echo "check_symbols: $checked objects, no inline symbols"
exit "$found"
