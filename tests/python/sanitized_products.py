# SPDX-License-Identifier: BSD-3-Clause
"""Products of every kind of kernel, for compute-sanitizer (scripts/sanitize_cuda.sh).

Rows of the kernel table are forced, and cut so that blocks exchange sums and tiles end inside.
"""

from __future__ import annotations

import os

os.environ["GOSSAMER_CACHE"] = "off"

import torch

import gossamer as gs  # noqa: F401
from gossamer._quantization import VALUE_DTYPES, pack_quantized

TILES = 33
NAMES = {"bfloat16": "bf16", "int8": "i8", "float8": "f8e4m3"}
CUTS = (
    ("sm90_gemm_sp24_{}_128x64", "4x1", 1024, 256, 33),
    ("sm90_gemm_sp24_{}_128x64", "2x2", 512, 512, 17),
    ("sm90_gemm_sp24_{}_128x128", "2x1", 768, 256, 129),
    ("sm90_gemm_sp24_{}_128x32", "1x4", 256, 1024, 40),
    ("sm90_gemm_sp24_{}_128x256", "2x1", 512, 256, 300),
    ("sm90_gemm_sp24_{}_256x128", "1x2", 256, 512, 130),
    ("sm90_decode_sp24_{}_64", "1x2", 128, 512, 50),
    ("sm90_decode_sp24_{}_16", "1x4", 128, 1024, 9),
    ("sm80_mma_sp24_{}_128x64", "", 256, 256, 40),
    ("sm80_mma_sp24_{}_128x16", "", 192, 320, 9),
)


def multiply(kind: str, out: int, inputs: int, tokens: int) -> torch.Tensor:
    """One product of random values in the row and cut that the environment names."""
    ops = torch.ops.gossamer
    w = torch.randn(out, inputs, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, inputs, device="cuda", dtype=torch.bfloat16)
    packed = ops.prune_pack_24(w)
    if kind == "bfloat16":
        return ops.linear(x, packed, TILES, out)
    values = ops.unpack(packed, w.shape, w.dtype)
    tiles, scale = pack_quantized(values, "2:4", dtype=VALUE_DTYPES[kind], layout="nm24_tiles")
    q, x_scale = ops.quantize_rows(x, VALUE_DTYPES[kind])
    dtype = torch.float32 if tokens % 2 else torch.bfloat16
    return ops.linear_quantized(q, x_scale, tiles, TILES, out, scale, None, 0, None, dtype, False)


def main() -> None:
    torch.manual_seed(0)
    count = 0
    for kind, name in NAMES.items():
        for row, cut, out, inputs, tokens in CUTS:
            if kind == "float8" and row.startswith("sm80"):
                continue
            os.environ["GOSSAMER_KERNEL"], os.environ["GOSSAMER_CUT"] = row.format(name), cut
            y = multiply(kind, out, inputs, tokens)
            torch.cuda.synchronize()
            assert torch.isfinite(y).all(), (row, cut)
            count += 1
    print(f"{count} products")


if __name__ == "__main__":
    main()
