#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# compute-sanitizer over products of every kind of kernel; needs a GPU and the CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in memcheck racecheck synccheck; do
  echo "sanitize: $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 1 "${PYTHON:-.venv/bin/python}" tests/python/sanitized_products.py
done
