#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Builds wheelhouse/gossamer-*-py3-none-manylinux_*_x86_64.whl: any CPython >= 3.10, torch >= 2.10.
set -euo pipefail
cd "$(dirname "$0")/.."
rm -rf dist wheelhouse
mkdir -p build
if ! CMAKE_GENERATOR=Ninja .venv/bin/python -m pip --disable-pip-version-check wheel -q --no-deps \
  --no-build-isolation -v -w dist . >build/wheel.log 2>&1; then
  tail -40 build/wheel.log >&2
  exit 1
fi
# torch is already in the process that loads us; libgossamer.so lies beside _C.so in the package.
.venv/bin/python -m auditwheel -q repair -w wheelhouse --exclude 'libtorch*.so' --exclude 'libc10*.so' \
  --exclude libgossamer.so dist/*.whl
ls wheelhouse/*.whl
