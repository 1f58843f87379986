#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# compute-sanitizer over products of every kind of kernel; needs a GPU and the CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=${PARTS:-4}  # processes beside each other: racecheck would take minutes in one
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
for tool in memcheck racecheck synccheck; do
  echo "sanitize: $tool"
  running=()
  for ((part = 0; part < parts; ++part)); do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "${PYTHON:-.venv/bin/python}" \
      tests/python/sanitized_products.py "$part" "$parts" >"$log/$part" 2>&1 &
    running+=($!)
  done
  failed=0
  for process in "${running[@]}"; do wait "$process" || failed=1; done
  cat "$log"/*
  [ "$failed" = 0 ] || exit 1
done
