# SPDX-License-Identifier: BSD-3-Clause
"""Loads the operators of `torch.ops.gossamer` and gives them shapes and gradients.

The operators themselves are C++ (`_C.so`, on PyTorch's stable ABI). Importing this module is all
that is needed to use them; loading `_C.so` with `torch.ops.load_library` alone is enough to run
programs that were exported with them.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor
from torch.nn.grad import conv2d_input

from gossamer import _ops_cuda
from gossamer._cuda_argument import FLOAT8_SHIFT, RESULT_SHIFT

_OLDEST_TORCH = (2, 10)

_RESULT_DTYPES = (None, torch.bfloat16, torch.float16, torch.float32)

_Fake = TypeVar("_Fake", bound=Callable[..., Any])


class Activation(enum.IntEnum):
    """The `activation` argument of `linear`; the numbers are those of gossamer/activation.h."""

    NONE = 0
    RELU = 1
    GELU = 2
    GELU_TANH = 3
    SILU = 4
    RELU2 = 5


def apply_activation(y: Tensor, activation: int) -> Tensor:
    """act(y) by torch's own operators, of any shape and floating dtype."""
    match activation:
        case Activation.NONE:
            return y
        case Activation.RELU:
            return y.relu()
        case Activation.GELU:
            return torch.nn.functional.gelu(y)
        case Activation.GELU_TANH:
            return torch.nn.functional.gelu(y, approximate="tanh")
        case Activation.SILU:
            return torch.nn.functional.silu(y)
        case Activation.RELU2:
            return y.relu().square()
    accepted = ", ".join(f"{int(a)} ({a.name.lower()})" for a in Activation)
    raise ValueError(f"activation {activation}: accepted are {accepted}")


def with_result_dtype(layout: int, x: Tensor, dtype: torch.dtype) -> int:
    """The argument `layout` of a product on a GPU whose result has another dtype than x.

    Raises:
        ValueError: no kernel writes that dtype.
    """
    if dtype == x.dtype:
        return layout
    if x.device.type != "cuda":
        raise ValueError(
            f"output_dtype {dtype} of x {x.dtype} on {x.device.type}: kernels outside of a GPU "
            f"write x's dtype; convert x or the result with .to({dtype})"
        )
    if dtype not in _RESULT_DTYPES:
        raise ValueError(
            f"output_dtype {dtype}: torch.bfloat16, torch.float16 and torch.float32 are accepted"
        )
    return layout | _RESULT_DTYPES.index(dtype) << RESULT_SHIFT


def _result_dtype(layout: int, x: Tensor) -> torch.dtype:
    return _RESULT_DTYPES[layout >> RESULT_SHIFT & 3] or x.dtype


def _library_path() -> Path:
    override = os.environ.get("GOSSAMER_LIBRARY")
    return Path(override) if override else Path(__file__).with_name("_C.so")


def _check_torch() -> None:
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        raise ImportError(
            f"gossamer needs torch >= {oldest} (its operators use the stable ABI of that release); "
            f"this is torch {torch.__version__}. Upgrade it: pip install -U torch"
        )


def _load(path: Path) -> None:
    if not path.is_file():
        raise ImportError(
            f"gossamer's operators are not there: {path} does not exist. Install the package "
            "(pip install gossamer, or `make install` in a checkout), or set GOSSAMER_LIBRARY to a "
            "built _C.so"
        )
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"gossamer's operators could not be loaded from {path}: {error}. They need "
            f"libgossamer.so beside them and torch >= 2.10 (this is {torch.__version__}); rebuild "
            "with `make install`"
        ) from error


_check_torch()
_load(_library_path())
_cuda_library = _library_path().with_name("_C_cuda.so")
if torch.cuda.is_available() and _cuda_library.is_file():
    try:
        _load(_cuda_library)
        _ops_cuda.register()
    except ImportError as error:  # such as torch for another vendor's GPUs; the CPU is unharmed
        _ops_cuda.load_failure = str(error)

_ops = torch.ops.gossamer


def info(packed: Tensor) -> dict[str, Any]:
    """What a packed weight says of itself.

    Args:
        packed: uint8 [bytes], as `torch.ops.gossamer.pack` returns it.

    Returns:
        `layout` (`"first+second"` of a block of two layouts), `layout_code` (of the first),
        `format`, `pattern`, `dtype`, `shape` ([out, in] or
        [batch, out, in]), `batch`, `out`, `in`, `kept`, `bytes`, `transposed`, `plan` (a kernel's
        name or None for each bucket of token counts), and `arrays` (`name`, `dtype`, `shape`; empty
        where the layout is not a format). Of a convolution also `kernel` ([height, width]); its
        `in` counts taps times channels.

    Raises:
        ValueError: the bytes are not a packed weight.
    """
    return json.loads(_ops.info(packed))


# --- Shapes: what torch.compile and torch.export see instead of the operators ---------------------


def _shape_of(name: str) -> Callable[[_Fake], _Fake]:
    def register(fake: _Fake) -> _Fake:
        torch.library.register_fake(f"gossamer::{name}", fake)
        return fake

    return register


def _linear_fake(
    x: Tensor,
    packed: Tensor,
    layout: int,
    out: int,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: int = 0,
    residual: Tensor | None = None,
    dense: Tensor | None = None,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out), dtype=_result_dtype(layout, x))


_shape_of("linear")(_linear_fake)
_shape_of("linear_autograd")(_linear_fake)


@_shape_of("linear_plain")
def _linear_plain_fake(
    x: Tensor, packed: Tensor, layout: int, out: int, bias: Tensor | None
) -> Tensor:
    return _linear_fake(x, packed, layout, out)


@_shape_of("linear_dx")
def _linear_dx_fake(
    grad: Tensor, packed: Tensor, layout: int, inputs: int, dense: Tensor | None = None
) -> Tensor:
    return grad.new_empty((*grad.shape[:-1], inputs))


def _output_side(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    return (size + padding - dilation * (kernel - 1) - 1) // stride + 1


def _paddings(padding: Sequence[int]) -> tuple[int, int, int, int]:
    """Top, bottom, left, right, of [height, width] or of the four."""
    if len(padding) == 4:
        return padding[0], padding[1], padding[2], padding[3]
    return padding[0], padding[0], padding[1], padding[1]


def _conv2d_fake(
    x: Tensor,
    packed: Tensor,
    layout: int,
    out: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    bias: Tensor | None = None,
    activation: int = 0,
    residual: Tensor | None = None,
    dense: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    top, bottom, left, right = _paddings(padding)
    height = _output_side(x.shape[-2], kernel[0], stride[0], top + bottom, dilation[0])
    width = _output_side(x.shape[-1], kernel[1], stride[1], left + right, dilation[1])
    shape = (*x.shape[:-3], out, height, width)
    is_last = (
        x.dim() == 4
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    memory = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory)


_shape_of("conv2d")(_conv2d_fake)
_shape_of("conv2d_autograd")(_conv2d_fake)


def _new_bytes(like: Tensor) -> Tensor:
    """A packed weight whose size depends on the data."""
    size = torch.library.get_ctx().new_dynamic_size(min=256)
    return like.new_empty((size,), dtype=torch.uint8)


@_shape_of("pack")
def _pack_fake(
    values: Tensor, mask: Tensor | None, pattern: str, layout: str, transposed: bool, name: str
) -> Tensor:
    return _new_bytes(values)


@_shape_of("convert")
def _convert_fake(packed: Tensor, layout: str) -> Tensor:
    return _new_bytes(packed)


@_shape_of("slice_rows")
def _slice_rows_fake(packed: Tensor, begin: int, end: int) -> Tensor:
    return _new_bytes(packed)


@_shape_of("concat_rows")
def _concat_rows_fake(parts: Sequence[Tensor]) -> Tensor:
    return _new_bytes(parts[0])


@_shape_of("from_format_arrays")
def _from_format_arrays_fake(info: str, arrays: Sequence[Tensor]) -> Tensor:
    return _new_bytes(arrays[0])


@_shape_of("with_plan")
def _with_plan_fake(packed: Tensor, kernels: str) -> Tensor:
    return torch.empty_like(packed)


@_shape_of("pack_")
def _pack_in_place_fake(packed: Tensor, values: Tensor, mask: Tensor | None = None) -> None:
    return None


@_shape_of("fill_second_")
def _fill_second_fake(packed: Tensor, layout: str) -> None:
    return None


@_shape_of("unpack_")
def _unpack_in_place_fake(packed: Tensor, values: Tensor, mask: Tensor | None = None) -> None:
    return None


@_shape_of("unpack")
def _unpack_fake(packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return packed.new_empty(shape, dtype=dtype)


@_shape_of("unpack_mask")
def _unpack_mask_fake(packed: Tensor, shape: Sequence[int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bool)


@_shape_of("validate")
def _validate_fake(packed: Tensor) -> None:
    return None


@_shape_of("select_masks")
def _select_masks_fake(scores: Sequence[Tensor], pattern: str, scope: str) -> list[Tensor]:
    return [score.new_empty(score.shape, dtype=torch.bool) for score in scores]


@_shape_of("magnitude_mask")
def _magnitude_mask_fake(values: Tensor, pattern: str, scope: str) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.bool)


@_shape_of("gram_")
def _gram_fake(gram: Tensor, x: Tensor, y: Tensor) -> None:
    return None


@_shape_of("obs_sweep")
def _obs_sweep_fake(
    weight: Tensor, factor: Tensor, mask: Tensor | None, pattern: str, block: int, segment: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(weight), weight.new_empty(weight.shape, dtype=torch.bool)


@_shape_of("lamp_scores")
def _lamp_scores_fake(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape, dtype=torch.float64)


@_shape_of("transposable_mask")
def _transposable_mask_fake(scores: Tensor, n: int = 2, m: int = 4) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


def _reads_data(name: str) -> None:
    """Answers in Python values that depend on the data: they have no fake, and say so."""

    def fake(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"torch.ops.gossamer.{name} returns a Python value that depends on the tensor's data; "
            "call it outside of torch.compile and torch.export"
        )

    torch.library.register_fake(f"gossamer::{name}", fake)


for _name in (
    "info",
    "format_arrays",
    "plan",
    "plan_conv2d",
    "find_violation",
    "infer_pattern",
    "count_nonzeros",
    "refit",
    "admm",
    "swap_refine",
):
    _reads_data(_name)


# --- Gradients: of the input, the bias and the residual; a packed weight has none -----------------


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, layout, out, scale, bias, activation, residual, dense = inputs
    # ReLU's gradient follows from its result; the smooth ones need what they were applied to, which
    # is computed again.
    relu = output if activation == Activation.RELU else None
    smooth = (x, bias, residual) if activation > Activation.RELU else (None, None, None)
    ctx.save_for_backward(packed, relu, dense, scale, *smooth)
    ctx.layout = layout
    ctx.out = out
    ctx.activation = activation
    ctx.inputs = x.shape[-1]
    ctx.x_dtype = x.dtype
    ctx.bias_dims = None if bias is None else bias.dim()
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.x_scale = 0.0


def _smooth_backward(grad: Tensor, y: Tensor, activation: int) -> Tensor:
    """The gradient of act(y), y [..., out], for the activations that are not piecewise linear."""
    if activation == Activation.RELU2:
        return grad * (2 * y.relu())
    if activation == Activation.SILU:
        return torch.ops.aten.silu_backward(grad, y)
    approximate = "none" if activation == Activation.GELU else "tanh"
    return torch.ops.aten.gelu_backward(grad, y, approximate=approximate)


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, output, dense, scale, x, bias, residual = ctx.saved_tensors
    # Arguments that a call left out have no entry.
    needs_grad = (*ctx.needs_input_grad, *[False] * 9)
    if needs_grad[8]:
        raise RuntimeError(
            "the dense copy of a packed weight has no gradient: train the dense weight under a "
            "mask (a gossamer.Sparsifier prepared on the model), or unpack the model with "
            "gossamer.desparsify_(model)"
        )
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    elif ctx.activation > Activation.RELU:
        weight = (packed, ctx.layout, ctx.out, scale)
        if ctx.x_scale:
            rounding = (ctx.x_scale, 0.0, grad.dtype)
            y = _ops.linear_int8(x, *weight, *rounding, bias, 0, residual, dense)
        else:
            y = _ops.linear(x, *weight, bias, 0, residual, dense)
        grad = _smooth_backward(grad, y, ctx.activation)
    grad_x = grad_bias = None
    grad_product = grad.to(ctx.x_dtype)  # of another dtype where the result was asked in another
    if needs_grad[0] and scale is not None:
        # Straight through the rounding of x: the gradient of the product with the weight as it is.
        is_float8 = ctx.layout >> FLOAT8_SHIFT & 1
        kind = torch.float8_e4m3fn if is_float8 else torch.int8
        values = _ops.unpack(packed, [ctx.out, ctx.inputs], kind)
        grad_x = (grad_product * scale.to(ctx.x_dtype)) @ values.to(ctx.x_dtype)
    elif needs_grad[0]:
        grad_x = _ops.linear_dx(grad_product, packed, ctx.layout, ctx.inputs, dense)
    if needs_grad[5]:
        # A stack's bias is [batch, out] and its result [batch, tokens, out].
        grad_bias = grad.sum(dim=1) if ctx.bias_dims == 2 else grad.flatten(0, -2).sum(dim=0)
        grad_bias = grad_bias.to(ctx.bias_dtype)
    grad_residual = grad if needs_grad[7] else None
    return grad_x, None, None, None, None, grad_bias, None, grad_residual, None


def _linear_dx_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, packed, layout, _, dense = inputs
    ctx.save_for_backward(packed, dense)
    ctx.layout = layout
    ctx.out = grad.shape[-1]


def _linear_dx_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, dense = ctx.saved_tensors
    y = _ops.linear_autograd(grad, packed, ctx.layout, ctx.out, dense=dense)
    return y, None, None, None, None


torch.library.register_autograd(
    "gossamer::linear_autograd", _linear_backward, setup_context=_linear_setup
)
torch.library.register_autograd(
    "gossamer::linear_dx", _linear_dx_backward, setup_context=_linear_dx_setup
)


def _conv2d_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, layout, out, kernel, stride, padding, dilation, *operands = inputs
    bias, activation, residual, dense, scale = operands
    relu = output if activation == Activation.RELU else None
    smooth = (x, bias, residual) if activation > Activation.RELU else (None, None, None)
    ctx.save_for_backward(packed, relu, dense, scale, *smooth)
    ctx.layout = layout
    ctx.out = out
    ctx.kernel = list(kernel)
    ctx.stride = list(stride)
    ctx.padding = list(padding)
    ctx.dilation = list(dilation)
    ctx.activation = activation
    ctx.input_shape = x.shape
    ctx.x_scale = 0.0


def _conv2d_dx(ctx: Any, grad: Tensor, values: Tensor) -> Tensor:
    """The gradient of x: the transposed convolution with the unpacked weight."""
    *images, channels, height, width = ctx.input_shape
    top, bottom, left, right = _paddings(ctx.padding)
    batch = images[0] if images else 1
    padded = conv2d_input(
        (batch, channels, height + top + bottom, width + left + right),
        values,
        grad if images else grad.unsqueeze(0),
        stride=ctx.stride,
        dilation=ctx.dilation,
    )
    grad_x = padded[:, :, top : top + height, left : left + width]
    return grad_x if images else grad_x.squeeze(0)


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, output, dense, scale, x, bias, residual = ctx.saved_tensors
    # Arguments that a call left out have no entry.
    needs_grad = (*ctx.needs_input_grad, *[False] * 13)
    if needs_grad[11]:
        raise RuntimeError(
            "the dense copy of a packed weight has no gradient: train the dense weight under a "
            "mask (a gossamer.Sparsifier prepared on the model), or unpack the model with "
            "gossamer.desparsify_(model)"
        )
    numbers = (ctx.layout, ctx.out, ctx.kernel, ctx.stride, ctx.padding, ctx.dilation)
    if output is not None:
        grad = torch.ops.aten.threshold_backward(grad, output, 0)
    elif ctx.activation > Activation.RELU:
        if ctx.x_scale:
            rounding = (scale, ctx.x_scale, 0.0)
            y = _ops.conv2d_int8(x, packed, *numbers, *rounding, bias, 0, residual, dense)
        else:
            y = _ops.conv2d(x, packed, *numbers, bias, 0, residual, dense, scale)
        grad = _smooth_backward(grad, y, ctx.activation)
    grad_x = grad_bias = None
    if needs_grad[0]:
        shape = (ctx.out, ctx.input_shape[-3], *ctx.kernel)
        if scale is not None:
            # Straight through the rounding of x, as for linear.
            values = _ops.unpack(packed, shape, torch.int8) * scale.reshape(-1, 1, 1, 1)
        else:
            values = dense if dense is not None else _ops.unpack(packed, shape, grad.dtype)
        grad_x = _conv2d_dx(ctx, grad, values)
    if needs_grad[8]:
        grad_bias = grad.sum(dim=(-2, -1)) if grad.dim() == 3 else grad.sum(dim=(0, 2, 3))
    grad_residual = grad if needs_grad[10] else None
    return grad_x, *[None] * 7, grad_bias, None, grad_residual, None, None


torch.library.register_autograd(
    "gossamer::conv2d_autograd", _conv2d_backward, setup_context=_conv2d_setup
)
