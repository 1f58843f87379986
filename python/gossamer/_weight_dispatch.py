# SPDX-License-Identifier: BSD-3-Clause
"""What a `SparseWeight` answers below autograd: operators of aten."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from gossamer import _ops
from gossamer._cuda_device import no_device, no_kernels, no_products
from gossamer._quantization import pack_quantized, quantized_dtypes
from gossamer._weight_convolution import convolution, convolution_call
from gossamer._weight_facts import DTYPES, LEAST_ZEROS
from gossamer._weight_functions import addmm, linear_call, matmul
from gossamer._weight_overwrite import overwrite
from gossamer._weight_tables import operator, refuse
from gossamer.weight import SparseWeight

_aten = torch.ops.aten


# A copy that keeps so many times the values is another problem than the one that was planned.
_MUCH_DENSER = 1.25


@operator(_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default)
def _dispatch_alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    alias = SparseWeight(weight.packed, weight._facts, weight.dense, weight.scale)
    return return_and_correct_aliasing(func, args, kwargs, alias)


@operator(_aten.view.default, _aten._unsafe_view.default)
def _dispatch_view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight, shape = args
    if tuple(shape) != tuple(weight.shape):
        raise NotImplementedError(
            f"{func}: a packed weight {list(weight.shape)} cannot be viewed as {list(shape)}; take "
            ".to_dense() first"
        )
    return _dispatch_alias(func, args, kwargs)


@operator(_aten.t.default, _aten.transpose.int, _aten.permute.default)
def _dispatch_transpose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    if weight.kernel_size is not None:
        raise NotImplementedError(
            f"{func}: the dimensions of a packed convolution weight cannot be swapped; take "
            ".to_dense() first"
        )
    order = list(range(weight.dim()))
    if func is _aten.permute.default:
        order = [dim % weight.dim() for dim in args[1]]
    else:
        first, second = args[1:] if func is _aten.transpose.int else (-1, -2)
        order[first], order[second] = order[second], order[first]
    kept = list(range(weight.dim()))
    if order == kept:
        return _dispatch_alias(func, args, kwargs)
    if order != [*kept[:-2], kept[-1], kept[-2]]:
        raise NotImplementedError(
            f"{func}: only the last two dimensions of a packed weight can be swapped; take "
            ".to_dense() first"
        )
    facts = weight._facts._replace(transposed=not weight.transposed)
    flipped = SparseWeight(weight.packed, facts, weight.dense, weight.scale)
    return return_and_correct_aliasing(func, args, kwargs, flipped)


@operator(_aten.clone.default)
def _dispatch_clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]._clone()


@operator(_aten._to_copy.default)
def _dispatch_to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    device = kwargs.get("device")
    dtype = kwargs.get("dtype") or weight.dtype
    if device is not None and _resolved(device) != weight.device:
        if dtype != weight.dtype:
            weight = _cast(weight, dtype) if weight.scale is None else _restated(weight, dtype)
        return _moved(weight, _resolved(device))
    if dtype == weight.dtype:
        return weight._clone()
    if weight.scale is not None:
        return _restated(weight, dtype)
    if dtype not in DTYPES.values():
        raise ValueError(
            f"a packed weight cannot be {dtype}; {', '.join(map(str, DTYPES.values()))} are "
            "accepted"
        )
    if weight.device.type == "cuda":
        return _cast_on_gpu(weight, dtype)
    return _replanned(weight, _cast(weight, dtype))


def _restated(weight: SparseWeight, dtype: torch.dtype) -> SparseWeight:
    """A quantized weight that stands for another dtype; values and scales are what they were."""
    accepted = quantized_dtypes(weight.kernel_size is not None)
    if dtype not in accepted:
        raise ValueError(
            f"a quantized weight {list(weight.shape)} cannot stand for {dtype}; "
            f"{', '.join(map(str, accepted))} are accepted; take weight.to_dense() for others"
        )
    copy = weight._clone()
    dense = None if copy.dense is None else copy.dense.to(dtype)
    return SparseWeight(copy.packed, copy._facts._replace(quantized=dtype), dense, copy.scale)


def _resolved(device: Any) -> torch.device:
    """A device with its index: "cuda" is the current one."""
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _moved(weight: SparseWeight, device: torch.device) -> SparseWeight:
    """On another device, in a layout that is computed there.

    A GPU takes 2:4 weights in float16 and bfloat16, and quantized ones that stand for these, in
    tiles; on the CPU a weight arrives in its format, which every machine computes (but for float8
    values, which are only kept there).
    """
    if device.type == "cpu":
        return _around(weight, torch.ops.gossamer.convert(weight.packed, "format").cpu())
    if device.type != "cuda":
        raise NotImplementedError(
            f"a packed weight cannot be moved to {device}: packed weights are computed on the CPU "
            "and on CUDA devices; unpack the model first (gossamer.desparsify_), or take "
            "weight.to_dense()"
        )
    if weight.kernel_size is not None:
        raise NotImplementedError(
            f"a packed convolution weight cannot be moved to {device}: convolutions are computed "
            "packed on the CPU only; unpack the model first (gossamer.desparsify_)"
        )
    if weight.pattern != "2:4" or weight.dtype not in (torch.float16, torch.bfloat16):
        raise NotImplementedError(
            f"a packed weight of pattern {weight.pattern} and dtype {weight.dtype} cannot be moved "
            f"to {device}: 2:4 weights in float16 or bfloat16 (or quantized, for models in these) "
            "are computed there; convert it with .to(torch.bfloat16) first, unpack the model "
            "(gossamer.desparsify_), or take weight.to_dense()"
        )
    if weight.input_scale is not None:
        raise NotImplementedError(
            f"a packed weight with an input_scale cannot be moved to {device}: inputs are rounded "
            "at a calibrated scale on the CPU only; unpack the model (gossamer.desparsify_) and "
            "pack it there with Int8DynamicActivationSemiSparseWeightConfig"
        )
    why = no_device() or no_kernels() or no_products(device, weight._facts.dtype)
    if why is not None:
        raise NotImplementedError(
            f"a packed weight cannot be moved to {device}: {why}. On the CPU it is computed as it "
            "is; gossamer.desparsify_ unpacks the model for other devices"
        )
    if weight.scale is not None and weight.transposed:
        raise NotImplementedError(
            f"a quantized weight that is seen transposed cannot be moved to {device}; move it "
            "first, or take weight.to_dense()"
        )
    if weight.device.type == "cuda":
        return _around(weight, weight.packed.to(device))
    packed = torch.ops.gossamer.convert(weight.packed, "format")
    return _around(weight, torch.ops.gossamer.convert(packed.to(device), "nm24_tiles"))


def _around(weight: SparseWeight, packed: Tensor) -> SparseWeight:
    """`weight` around its bytes on another device, its scales beside them."""
    moved = weight._replace(packed)
    scale = None if weight.scale is None else weight.scale.to(packed.device)
    return SparseWeight(packed, moved._facts, None, scale)


def _replanned(planned: SparseWeight, weight: SparseWeight) -> SparseWeight:
    """`weight`, which takes the place of a planned one, with kernels of its own.

    The cost model chooses: a cast or a copy is no place to measure. Where it expects nothing to be
    faster than dense, a dense copy is kept and runs; `explain` says so.
    """
    if not any(planned.plan) or weight.kernel_size is not None:
        return weight  # convolutions have kernels for one dtype only
    memory = "default" if planned.dense is None else "speed"
    values = weight._logical_values()
    if weight.density > 1.0 - LEAST_ZEROS:
        return _as_dense(weight, values)
    packed, text = torch.ops.gossamer.plan(weight.packed, values, False, 0, "model", memory, "", "")
    found = json.loads(text)
    if not found["sparse"]:
        return _as_dense(weight, values)
    if found["unfilled"]:
        torch.ops.gossamer.fill_second_(packed, found["second"])
    runs_dense = any(choice["kernel"] == "dense" for choice in found["choices"])
    return weight._replace(packed, values if memory == "speed" and runs_dense else None)


def _as_dense(weight: SparseWeight, values: Tensor) -> SparseWeight:
    """Keeps a dense copy and a plan that runs it at every token count."""
    everywhere = json.dumps(["dense"] * len(weight.plan))
    return weight._replace(torch.ops.gossamer.with_plan(weight.packed, everywhere), values)


def _cast(weight: SparseWeight, dtype: torch.dtype) -> SparseWeight:
    """In another dtype, in its format: a layout may have kernels for one dtype only."""
    values, mask = weight.to_dense(dtype), weight.mask()
    return SparseWeight.from_dense(values, weight.pattern, mask=mask, transposed=weight.transposed)


def _cast_on_gpu(weight: SparseWeight, dtype: torch.dtype) -> SparseWeight:
    """In another dtype, in tiles where those are multiplied; it runs dense where it did before."""
    cast = _cast(weight, dtype)
    if dtype not in (torch.float16, torch.bfloat16):
        return cast
    packed = torch.ops.gossamer.convert(cast.packed, "nm24_tiles")
    dense = None if weight.dense is None else weight.dense.to(dtype)
    return cast._replace(_with_plan(packed, weight.packed), dense)


def _pack_like(
    weight: SparseWeight, values: Tensor, mask: Tensor | None, pattern: str
) -> SparseWeight:
    """Packs values in `weight`'s orientation, and in its layout where that holds such a weight."""
    formed = SparseWeight.from_dense(values, pattern, mask=mask, transposed=weight.transposed)
    packed = _in_layout(formed.packed, weight.layout_name)
    return formed if packed is None else formed._replace(packed)


def _in_layout(packed: Tensor, layout: str) -> Tensor | None:
    """The same weight in a layout; None where that holds no such pattern."""
    try:
        return torch.ops.gossamer.convert(packed, layout)
    except ValueError as error:
        names = layout.split("+")
        if not str(error).startswith(tuple(f"layout {name} holds " for name in names)):
            raise
        return None


@operator(_aten.copy_.default)
def _dispatch_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, SparseWeight):
        return target.copy_(source.to_dense())
    if tuple(source.shape) != tuple(target.shape):
        raise ValueError(
            f"copy_: the packed weight is {list(target.shape)}, the source {list(source.shape)}; "
            "both must be the same"
        )
    if target.scale is not None:
        new = _copy_quantized(target, source)
    elif isinstance(source, SparseWeight):
        if source.scale is not None:
            source = _cast(source, target.dtype)
        new = _copy_packed(target, source)
    else:
        pattern = target.pattern
        if pattern.startswith("unstructured"):
            pattern = ""  # any number of non-zeros is one; the record says how many
        values = source.detach().to(device=target.device, dtype=target.dtype)
        new = _pack_like(target, values, None, pattern)
        if new.layout_name == target.layout_name:
            new = new._replace(_with_plan(new.packed, target.packed))
    if new.density > _MUCH_DENSER * target.density and new.device.type == "cpu":
        new = _replanned(target, new)
    dense = new.dense
    if dense is None and target.dense is not None:
        dense = new._logical_values()
    overwrite(target, new, dense)
    return target


def _copy_quantized(target: SparseWeight, source: Tensor) -> SparseWeight:
    """What a quantized weight becomes: the source, quantized where it is not."""
    if (
        isinstance(source, SparseWeight)
        and source.scale is not None
        and source._facts.dtype == target._facts.dtype
        and source.transposed == target.transposed
    ):
        formed = source.packed.to(target.device)
        scale = source.scale.to(target.device, copy=True)
        input_scale = source._facts.input_scale  # it belongs to these values
    else:
        formed, scale = _quantized_like(target, source)
        input_scale = target._facts.input_scale
    packed = _in_layout(formed, target.layout_name)
    if packed is None:
        packed = torch.ops.gossamer.convert(formed, "format")
    if _ops.info(packed)["layout"] == target.layout_name:
        packed = _with_plan(packed, target.packed)
    facts = target._replace(packed)._facts._replace(input_scale=input_scale)
    return SparseWeight(packed, facts, None, scale)


def _quantized_like(target: SparseWeight, source: Tensor) -> tuple[Tensor, Tensor]:
    """`source`, packed or dense, as int8 values in `target`'s pattern, and their scales."""
    pattern = target.pattern
    if pattern.startswith("unstructured"):
        pattern = ""  # any number of non-zeros is one; the record says how many
    mask = source.mask() if isinstance(source, SparseWeight) else None
    values = source.to_dense() if isinstance(source, SparseWeight) else source.detach()
    values = values.to(target.device)
    if target.transposed:
        values, mask = values.mT, None if mask is None else mask.mT
    return pack_quantized(values, pattern, mask=mask, dtype=target._facts.dtype)


def _copy_packed(target: SparseWeight, source: SparseWeight) -> SparseWeight:
    if source.transposed != target.transposed:
        raise ValueError(
            "copy_: source and target are stored in opposite orientations ([out, in] and [in, "
            "out]); copy source.to_dense() instead"
        )
    if source.dtype != target.dtype:
        source = _cast(source, target.dtype)
    if source.layout_name == target.layout_name:
        packed = source.packed.clone()
        return source._replace(_with_plan(packed, target.packed))
    converted = _in_layout(source.packed, target.layout_name)
    if converted is None:
        return source._clone()  # the plan goes with the layout
    return source._replace(_with_plan(converted, target.packed))


def _with_plan(packed: Tensor, planned: Tensor) -> Tensor:
    """`packed` with the kernels that `planned`, a weight of the same layout, was given."""
    kernels = _ops.info(planned)["plan"]
    if not any(kernels):
        return packed
    return torch.ops.gossamer.with_plan(packed, json.dumps(kernels))


@operator(_aten.mm.default, _aten.matmul.default, _aten.bmm.default)
def _dispatch_matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return matmul(*args)


@operator(_aten.addmm.default)
def _dispatch_addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return addmm(func, args, dict(kwargs))


@operator(_aten.linear.default)
def _dispatch_linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return linear_call(*args, **kwargs)


@operator(_aten.conv2d.default, _aten.conv2d.padding)
def _dispatch_conv2d(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return convolution_call(*args, **kwargs)


@operator(_aten.convolution.default)
def _dispatch_convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or not isinstance(weight, SparseWeight):
        refuse(func)
    return convolution(x, weight, bias, stride, padding, dilation, groups)


@operator(_aten.is_same_size.default)
def _dispatch_is_same_size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return tuple(args[0].shape) == tuple(args[1].shape)


@operator(
    _aten.empty_like.default,
    _aten.zeros_like.default,
    _aten.ones_like.default,
    _aten.full_like.default,
    _aten.rand_like.default,
    _aten.randn_like.default,
    _aten.new_empty.default,
    _aten.new_zeros.default,
    _aten.new_ones.default,
    _aten.new_full.default,
)
def _dispatch_like(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """Dense tensors made in the weight's image: only its shape, dtype and device matter."""
    weight = args[0]
    image = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
    return func(image, *args[1:], **kwargs)
