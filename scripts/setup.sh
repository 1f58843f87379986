#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Brings a Debian or Ubuntu machine with python3 (>= 3.10) to where the project builds: system
# packages (installed as root, otherwise the one line to run is printed), .venv, torch, tools.
#   scripts/setup.sh          what `make demo` needs
#   scripts/setup.sh test     what `make test` needs beside it
set -euo pipefail
cd "$(dirname "$0")/.."
goal=${1:-demo}

needed=()
need_file() { [ -e "$1" ] || needed+=("$2"); }
need_tool() { command -v "$1" >/dev/null 2>&1 || needed+=("$2"); }
need_tool g++ g++
need_tool cmake cmake
need_tool ninja ninja-build
need_tool ccache ccache
need_file /usr/include/nlohmann/json.hpp nlohmann-json3-dev
need_file /usr/include/CLI/CLI.hpp libcli11-dev
need_file /usr/include/eigen3/Eigen/Core libeigen3-dev
need_file /usr/include/fmt/format.h libfmt-dev
python3 -c 'import ensurepip' 2>/dev/null || needed+=(python3-venv)
if [ "$goal" = test ]; then
  # torch.compile compiles against Python.h.
  need_file "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" python3-dev
  need_file /usr/include/gtest/gtest.h libgtest-dev
  need_file /usr/include/benchmark/benchmark.h libbenchmark-dev
  need_file /usr/include/rapidcheck.h librapidcheck-dev
  # The versions differ between distributions; checks that need one skip with a line where it is
  # missing. Without package lists (a fresh container) nothing would be found.
  if [ "$(id -u)" = 0 ] && ! apt-cache pkgnames clang-format- 2>/dev/null | grep -q .; then
    apt-get update -qq
  fi
  llvm=$(apt-cache pkgnames clang-format- 2>/dev/null | grep -oE '^clang-format-[0-9]+$' |
    grep -oE '[0-9]+' | sort -n | awk '$1<=19' | tail -1 || true)
  if [ -n "$llvm" ]; then
    need_tool "clang-format-$llvm" "clang-format-$llvm"
    need_tool "clang-tidy-$llvm" "clang-tidy-$llvm"
    need_tool "clang++-$llvm" "clang-$llvm"
    compgen -G "/usr/lib/llvm-$llvm/lib/clang/*/lib/linux/libclang_rt.fuzzer*" >/dev/null ||
      needed+=("libclang-rt-$llvm-dev")
    need_file "/usr/lib/llvm-$llvm/lib/libomp.so" "libomp-$llvm-dev"
  fi
fi
if [ ${#needed[@]} -gt 0 ]; then
  if [ "$(id -u)" = 0 ]; then
    echo "setup: installing ${needed[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${needed[@]}" >/dev/null
  else
    echo "setup: system packages are missing; run this once, then repeat your command:" >&2
    echo "  sudo apt-get install -y ${needed[*]}" >&2
    exit 2
  fi
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
  { echo "setup: python3 is $(python3 -V | cut -d" " -f2); 3.10 or newer is needed" >&2; exit 2; }
[ -x .venv/bin/python ] || python3 -m venv .venv
pip() { .venv/bin/python -m pip --disable-pip-version-check -q "$@"; }

# PyTorch: the build with CUDA where there is a GPU, otherwise the CPU build. Package indexes that
# serve the CUDA build by default are recognised by the nvidia-* packages it asks for.
if ! .venv/bin/python - <<'PY'
import importlib.metadata as metadata, re, sys
pin = re.search(r"^torch==(\S+)", open("requirements-torch.txt").read(), re.M).group(1)
try:
    sys.exit(metadata.version("torch").split("+")[0] != pin)
except metadata.PackageNotFoundError:
    sys.exit(1)
PY
then
  torch_index=()
  if ! command -v nvidia-smi >/dev/null 2>&1; then
    plan=$(.venv/bin/python -m pip install --disable-pip-version-check -q --dry-run --report - \
      -r requirements-torch.txt 2>/dev/null || true)
    if grep -q '"name": "nvidia-' <<<"$plan"; then
      torch_index=(--index-url https://download.pytorch.org/whl/cpu)
    fi
  fi
  echo "setup: installing $(grep -oE '^torch==\S+' requirements-torch.txt)"
  pip install "${torch_index[@]}" -r requirements-torch.txt
fi

extras='demo'
[ "$goal" = test ] && extras='demo test'
wanted=$(.venv/bin/python - $extras <<'PY'
import re, sys
text = open("pyproject.toml").read()
def requirements(block):
    return re.findall(r'"([^"]+)"', block)
def array(name):
    return requirements(re.search(rf"^{name} = \[(.*?)\]", text, re.M | re.S).group(1))
names = array("dependencies") + array("requires")
for extra in sys.argv[1:]:
    names += array(extra)
print("\n".join(n for n in names if not n.startswith("torch>")))
PY
)
stamp=.venv/.requirements
if [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
  echo "setup: installing Python packages"
  xargs -d '\n' .venv/bin/python -m pip --disable-pip-version-check -q install <<<"$wanted"
  echo "$wanted" >$stamp
fi
