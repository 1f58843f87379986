# SPDX-License-Identifier: BSD-3-Clause
"""Why a GPU cannot be used, each reason in a sentence of its own."""

from __future__ import annotations

import torch

from gossamer import _ops_cuda
from gossamer._errors import first_line

__all__ = ["no_device", "no_kernels", "no_products"]

_MAJOR_OF_SPARSE_TENSOR_CORES = 8
_MAJORS = (8, 9, 12)
_MAJOR_OF_FLOAT8 = 9


def no_device() -> str | None:
    """Why torch reaches no CUDA device; None where it does."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return (
            f"torch {torch.__version__} was built without CUDA; install a build with CUDA "
            "(https://pytorch.org/get-started)"
        )
    # torch tells an old driver, no driver and no device apart.
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"no CUDA device can be used: {first_line(error)}"
    return "torch sees no CUDA device; look at CUDA_VISIBLE_DEVICES and nvidia-smi"


def no_kernels() -> str | None:
    """Why this build cannot compute on a GPU; None where it can."""
    if hasattr(torch.ops.gossamer, "cuda_kernel"):
        return None
    if _ops_cuda.load_failure is not None:
        return f"gossamer's CUDA kernels (_C_cuda.so) do not load: {_ops_cuda.load_failure}"
    return "this build of gossamer has no CUDA kernels (_C_cuda.so)"


def no_products(device: torch.device, values: torch.dtype) -> str | None:
    """Why a GPU multiplies no 2:4 weights; None where it does.

    What the rows of the kernel table say of a generation (src/cuda/sm80, src/cuda/sm90), before
    there is anything on the GPU to ask them with.

    Args:
        device: the GPU.
        values: the dtype of what is kept, that of 8 bits where a weight is quantized.
    """
    major, minor = torch.cuda.get_device_capability(device)
    gpu = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor})"
    if major < _MAJOR_OF_SPARSE_TENSOR_CORES:
        return f"{gpu} has no sparse tensor cores; those of 8.0 and later have them"
    if major not in _MAJORS:
        return f"no kernel multiplies 2:4 weights on {gpu}; kernels are for 8.x, 9.x and 12.x"
    if values is torch.float8_e4m3fn and major != _MAJOR_OF_FLOAT8:
        return f"no kernel multiplies float8 weights on {gpu}; kernels for these are for 9.x"
    return None
