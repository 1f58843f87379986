#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs every fuzz target for a bounded time, all at once, seeded with tests/attacks.
#   scripts/fuzz.sh BUILD_DIR SECONDS
set -euo pipefail
cd "$(dirname "$0")/.."
corpus=$(mktemp -d)
trap 'rm -rf "$corpus"' EXIT
run() {
  local target=$1 seconds=$2 name
  name=$(basename "$target")
  mkdir -p "$corpus/$name"
  local seeds=()
  [ -d "tests/fuzz/seeds/$name" ] && seeds+=("tests/fuzz/seeds/$name")
  [ "$name" = fuzz_safetensors ] && seeds+=(tests/attacks)
  "$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 \
    "$corpus/$name" "${seeds[@]}" 2>"$corpus/$name.log" ||
    { tail -40 "$corpus/$name.log" >&2; echo "fuzz: $name found a fault" >&2; return 1; }
  echo "fuzz: $name: $(grep -oE 'number_of_executed_units: *[0-9]+' "$corpus/$name.log" |
    grep -oE '[0-9]+$') runs in $seconds s"
}
running=()
for target in "$1"/tests/fuzz/fuzz_*; do
  [ -x "$target" ] && [ -f "$target" ] || continue
  run "$target" "$2" &
  running+=($!)
done
[ ${#running[@]} -gt 0 ] || { echo "fuzz: no targets under $1/tests/fuzz" >&2; exit 1; }
status=0
for process in "${running[@]}"; do wait "$process" || status=1; done
exit "$status"
