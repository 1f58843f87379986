#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# A clean virtual environment with nothing of ours but the wheel.
#   tests/consume/wheel.sh WHEEL
set -euo pipefail
wheel=$(realpath "$1")
root=$(cd "$(dirname "$0")/../.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip --disable-pip-version-check -q "$@"; }
# The torch of the checkout's environment, so that the wheel's range does not fetch another build.
cp -r "$("$root/.venv/bin/python" -c 'import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])')"/{torch,torch-*.dist-info,torchgen,functorch} \
  "$("$scratch/venv/bin/python" -c 'import site; print(site.getsitepackages()[0])')"
pip install "$wheel"
cd "$scratch"
export GOSSAMER_CACHE=$scratch/plans
venv/bin/python - <<'PY'
import torch, gossamer
layer = torch.nn.Linear(256, 128)
with torch.no_grad():
    layer.weight.copy_(torch.where(torch.rand(128, 256) < 0.9, 0.0, layer.weight))
x = torch.randn(7, 256)
expected = layer(x).detach()
weight = gossamer.SparseWeight.from_dense(layer.weight.detach())
actual = torch.nn.functional.linear(x, weight, layer.bias.detach())
torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
gossamer.sparsify_(layer)
torch.testing.assert_close(layer(x).detach(), expected, rtol=1e-4, atol=1e-5)
gossamer.save(layer, "layer.safetensors")
print(gossamer.explain(layer))
PY
venv/bin/gossamer verify layer.safetensors --pattern unstructured:0.8
echo "consume: wheel ok"
