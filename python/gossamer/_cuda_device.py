# SPDX-License-Identifier: BSD-3-Clause
"""Why a GPU cannot be used, each reason in a sentence of its own."""

from __future__ import annotations

import torch

from gossamer import _ops_cuda
from gossamer._errors import first_line

__all__ = ["no_device", "no_kernels", "no_sparse_tensor_cores"]

_LEAST_CAPABILITY = (8, 0)


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


def no_sparse_tensor_cores(device: torch.device) -> str | None:
    """Why a GPU multiplies no 2:4 weights; None where its generation does."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= _LEAST_CAPABILITY:
        return None
    return (
        f"{torch.cuda.get_device_name(device)} (compute capability {capability[0]}."
        f"{capability[1]}) has no sparse tensor cores; those of 8.0 and later have"
    )
