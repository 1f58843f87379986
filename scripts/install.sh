#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Builds with scikit-build-core and installs into .venv; build/wheel is kept, so a second run is quick.
set -euo pipefail
cd "$(dirname "$0")/.."
echo "install: building gossamer (log: build/install.log)"
mkdir -p build
# Without isolation: the operators compile against the torch that is in .venv.
if ! CMAKE_GENERATOR=Ninja .venv/bin/python -m pip --disable-pip-version-check install -q --no-deps \
  --no-build-isolation -v . >build/install.log 2>&1; then
  tail -40 build/install.log >&2
  echo "install: failed; the whole log is build/install.log" >&2
  exit 1
fi
grep -h '^-- gossamer:' build/install.log | sed 's/^-- /install: /' || true
