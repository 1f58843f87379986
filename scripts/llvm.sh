# SPDX-License-Identifier: BSD-3-Clause
# Sourced: `llvm_tool NAME` prints the newest installed NAME-<version> up to 19, or nothing.
llvm_tool() {
  local version
  for version in 19 18 17 16 15 14; do
    if command -v "$1-$version" >/dev/null 2>&1; then
      echo "$1-$version"
      return
    fi
  done
}
