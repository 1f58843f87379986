# SPDX-License-Identifier: BSD-3-Clause
"""From one dense weight to a packed and planned one, or to the reason why it stays plain."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gossamer import _ops, _plan_cuda
from gossamer._convolution import Convolution
from gossamer._errors import first_line
from gossamer._quantization import VALUE_DTYPES, pack_quantized, quantized_dtypes
from gossamer._weight_facts import LEAST_ZEROS, count_nonzeros
from gossamer.weight import SparseWeight

__all__ = ["LEAST_ZEROS", "Decision", "Request", "decide", "decide_packed", "plain_report", "swap"]

_MOST_INPUTS = 65536
"""Of a quantized filter: the products of more may not fit 32 bits."""

Report = dict[str, Any]
"""What was decided for a layer, in plain JSON types; `module.gossamer_report` keeps it."""


@dataclass(frozen=True)
class Request:
    """How a weight is to be packed: the arguments of `sparsify_` as they apply to one layer."""

    pattern: str | None = None
    plan: str = "measure"
    memory: str = "default"
    layout: str | None = None
    quantize: str | None = None
    input_scale: float = 0.0
    channels_last: bool = False
    """The model's images are channels-last: what the weight of a 1×1 convolution cannot say."""


@dataclass(frozen=True)
class Decision:
    """A packed weight, or None where the layer stays plain; and why."""

    weight: SparseWeight | None
    report: Report


def plain_report(reason: str) -> Report:
    """What is kept of a layer that stays plain."""
    return {"packed": False, "reason": reason, "pattern": None, "trainable": False, "plan": []}


def decide(
    values: Tensor,
    name: str,
    request: Request,
    *,
    transposed: bool,
    bias: bool,
    convolution: Convolution | None = None,
) -> Decision:
    """Packs and plans a dense weight.

    Args:
        values: [out, in], [in, out] with `transposed`, or a convolution's [out, channels, height,
            width].
        name: what error messages call the weight.
        request: what was asked for.
        transposed: the module stores [in, out].
        bias: the layer adds one.
        convolution: the layer's numbers, None for a linear layer.

    Raises:
        ValueError: the weight breaks the pattern that was asked for.
    """
    values = values.detach()
    if request.quantize is not None:
        why = _quantization_obstacle(values, request, transposed, convolution)
        if why is not None:
            return Decision(None, plain_report(why))
    if _is_on_gpu(values):
        return _decide_cuda(values, name, request, transposed, bias, convolution)
    if request.pattern is None:
        zeros = 1.0 - torch.ops.gossamer.count_nonzeros(_rows(values)) / values.numel()
        if zeros < LEAST_ZEROS:
            return Decision(
                None,
                plain_report(_not_sparse(zeros)),
            )
    if request.quantize is not None:
        packed, scale = pack_quantized(values, request.pattern, name=name)
        weight = SparseWeight.from_quantized(
            packed, scale, values.dtype, input_scale=request.input_scale
        )
    else:
        weight = SparseWeight.from_dense(values, request.pattern, transposed=transposed, name=name)
    decision = decide_packed(
        weight, values, request, bias=bias, convolution=convolution, consumes=True
    )
    note = _taps_note(values, request.pattern)
    if note is not None:
        decision.report["reason"] = f"{note}: {decision.report['reason']}"
    return decision


def _taps_note(values: Tensor, pattern: str | None) -> str | None:
    """Why a convolution is packed as another pattern than was asked for; None where it is not."""
    if pattern is None or values.dim() != 4 or values.shape[2] * values.shape[3] == 1:
        return None
    group = _group_size(pattern)
    if values.shape[1] % group == 0:
        return None
    return (
        f"it satisfies {pattern} tap by tap, and is packed as unstructured because {group} does "
        f"not divide its {values.shape[1]} input channels"
    )


def _quantization_obstacle(
    values: Tensor, request: Request, transposed: bool, convolution: Convolution | None
) -> str | None:
    """Why a weight is not quantized; None where it may be."""
    if request.input_scale and _is_on_gpu(values):
        return "inputs are rounded at a calibrated scale on the CPU only; use a dynamic config"
    if transposed or values.dim() != (2 if convolution is None else 4):
        return "weights stored as [in, out] and stacks are not quantized, matrices [out, in] are"
    if convolution is not None and values[0].numel() > _MOST_INPUTS:
        return f"its filters have {values[0].numel()} inputs; at most {_MOST_INPUTS} are quantized"
    if request.quantize != "int8" and not _is_on_gpu(values):
        return f"float8 weights are multiplied on CUDA devices, and this one is on {values.device}"
    accepted = quantized_dtypes(convolution is not None)
    if values.dtype not in accepted:
        return f"a {values.dtype} layer is not quantized; {', '.join(map(str, accepted))} ones are"
    # Not isfinite() of all: that is another copy. NaN wins both comparisons.
    if values.numel() and not all(bool(torch.isfinite(end)) for end in values.aminmax()):
        return "its weight holds NaN or infinity and cannot be quantized"
    return None


def _is_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def _rows(values: Tensor) -> Tensor:
    """A weight as [[batch,] out, in]; a convolution's taps and channels in any order."""
    return values.flatten(1) if values.dim() == 4 else values


def _group_size(pattern: str) -> int:
    """How many inputs a group of the pattern has: M of `N:M` and `vnm:V:N:M`, else 1."""
    *before, last = pattern.split(":")
    is_grouped = before and (before[0].isdecimal() or before[0] == "vnm") and last.isdecimal()
    return max(int(last), 1) if is_grouped else 1


def _decide_cuda(
    values: Tensor,
    name: str,
    request: Request,
    transposed: bool,
    bias: bool,
    convolution: Convolution | None,
) -> Decision:
    """Packs and plans a dense weight on a GPU: 2:4 or not at all."""
    try:
        return _decide_24(values, name, request, transposed, bias, convolution)
    except ValueError:  # the weight breaks its pattern
        raise
    except Exception as error:  # such as a full memory; the layer still works as it is
        return Decision(None, plain_report(f"plain: packing it failed: {first_line(error)}"))


def _decide_24(
    values: Tensor,
    name: str,
    request: Request,
    transposed: bool,
    bias: bool,
    convolution: Convolution | None,
) -> Decision:
    pattern = request.pattern
    if pattern is None:
        zeros = 1.0 - count_nonzeros(values) / max(values.numel(), 1)
        if zeros < LEAST_ZEROS:
            return Decision(None, plain_report(_not_sparse(zeros)))
    elif pattern not in ("2:4", "nm:2:4"):
        return Decision(None, plain_report(f"pattern {pattern} is not multiplied on a GPU, 2:4 is"))
    if convolution is not None or values.dim() != 2:
        kind = "convolutions" if convolution is not None else "stacks of matrices"
        return Decision(None, plain_report(f"{kind} are not multiplied packed on a GPU"))
    why = _plan_cuda.obstacle(values.dtype, values.device, request.quantize)
    if why is not None:
        return Decision(None, plain_report(why))
    if pattern is None and not _is_24(values.mT if transposed else values):
        text = "its zeros are not 2:4, the pattern that is multiplied on a GPU"
        return Decision(None, plain_report(text))
    if request.quantize is not None:
        weight = _quantized_tiles(values, request.quantize, name)
    else:
        weight = SparseWeight.from_dense(
            values, "2:4", layout="nm24_tiles", transposed=transposed, name=name
        )
    return decide_packed(weight, values, request, bias=bias)


def _quantized_tiles(values: Tensor, quantization: str, name: str) -> SparseWeight:
    kind, _, how = quantization.partition("-")
    packed, scale = pack_quantized(
        values, "2:4", name=name, dtype=VALUE_DTYPES[kind], layout="nm24_tiles"
    )
    return SparseWeight.from_quantized(packed, scale, values.dtype, accurate=how == "accurate")


def _is_24(values: Tensor) -> bool:
    """Whether no group of four inputs has more than two non-zeros; [out, in]."""
    if values.is_cuda:
        return bool((torch.ops.gossamer.verify_24(values) < 0).all())
    padded = torch.nn.functional.pad(values != 0, (0, -values.shape[1] % 4))
    return int(padded.unflatten(1, (-1, 4)).sum(-1).amax()) <= 2 if padded.numel() else True


def _not_sparse(zeros: float) -> str:
    return f"not sparse: {zeros:.1%} of the weights are zero, under {LEAST_ZEROS:.0%}"


def _plan_on_cuda(
    weight: SparseWeight, logical: Tensor, request: Request, bias: bool, report: Report
) -> Decision:
    """Plans tiles that are on a GPU already."""
    dense = logical.contiguous()
    found = _plan_cuda.plan_24(weight, dense, bias=bias, mode=request.plan, memory=request.memory)
    report["reason"] = _quantized_note(weight) + found.reason
    if found.choices:
        ends = _plan_cuda.BUCKET_ENDS
        report["plan"] = _buckets({"bucket_ends": ends, "choices": found.choices})
    if not found.sparse:
        report["packed"] = False
        return Decision(None, report)
    packed = weight.packed
    kept = None
    if any(found.dense_buckets):
        packed = torch.ops.gossamer.with_plan(packed, json.dumps(found.dense_buckets))
        kept = dense.clone()
    planned = weight._replace(packed, kept, found.plan)
    return Decision(planned, _with_facts(report, packed))


def _quantized_note(weight: SparseWeight) -> str:
    """What a report says of a quantized weight before the plan's reason."""
    if weight.quantization is None:
        return ""
    kind, _, how = weight.quantization.partition("-")
    sums = f" with {how} sums" if how else ""
    unit = "a token" if weight.kernel_size is None else "an image"
    if weight.input_scale is not None:
        return f"{kind} weights, inputs quantized at the scale {weight.input_scale:.4g}: "
    return f"{kind} weights{sums}, inputs quantized {unit} at a time: "


def decide_packed(
    weight: SparseWeight,
    values: Tensor,
    request: Request,
    *,
    bias: bool,
    convolution: Convolution | None = None,
    consumes: bool = False,
) -> Decision:
    """Plans a weight that is packed in its format.

    Args:
        weight: in any layout.
        values: the dense parameter, zeros where nothing is kept, in the module's orientation.
        request: what was asked for; its pattern is not looked at.
        bias: the layer adds one.
        convolution: the layer's numbers, None for a linear layer.
        consumes: nobody needs `weight` any more. Its bytes are let go before the second layout of a
            large one is made, and packing stays below two and a half times the layer.
    """
    ops = torch.ops.gossamer
    report: Report = {
        "packed": True,
        "reason": "",
        "pattern": weight.pattern,
        "trainable": False,
        "plan": [],
    }
    if request.layout is not None:
        packed = ops.convert(weight.packed, request.layout)
        report["reason"] = f"layout {request.layout} was asked for; not compared with dense"
        return Decision(weight._replace(packed), _with_facts(report, packed))
    logical = values.detach().mT if weight.transposed else values.detach()
    if weight.layout_name == "nm24_tiles" and _is_on_gpu(weight.packed):
        return _plan_on_cuda(weight, logical, request, bias, report)
    if weight.quantization not in (None, "int8"):
        report["reason"] = (
            "float8 weights are multiplied on CUDA devices only: move the model there with "
            ".to('cuda'), or unpack it with gossamer.desparsify_(model)"
        )
        return Decision(weight, _with_facts(report, weight.packed))
    wishes = (bias, 0, request.plan, request.memory, "", "")
    if convolution is None:
        packed, text = ops.plan(weight.packed, logical, *wishes)
    else:
        last = _is_channels_last(logical, request.channels_last)
        numbers = (convolution.stride, convolution.padding, convolution.dilation)
        packed, text = ops.plan_conv2d(weight.packed, logical, *numbers, last, *wishes)
    found = json.loads(text)
    report["reason"] = _quantized_note(weight) + found["reason"]
    if found["unfilled"]:
        if consumes:
            weight._adopt(packed, weight._facts, None, weight.scale)
        ops.fill_second_(packed, found["second"])
    if request.memory == "low":
        report["reason"] += '; memory="low" admits layouts of at most 1.15 times the format'
    report["plan"] = _buckets(found)
    if not found["sparse"]:
        report["packed"] = False
        return Decision(None, report)
    # Only a plan that runs dense somewhere, and may hold two copies, gets the second one.
    runs_dense = any(choice["kernel"] == "dense" for choice in found["choices"])
    dense = _dense_copy(logical) if request.memory == "speed" and runs_dense else None
    return Decision(weight._replace(packed, dense), _with_facts(report, packed))


def is_channels_last(model: nn.Module) -> bool:
    """Whether a model's images are channels-last: the weight of a convolution is."""
    modules = (module for module in model.modules() if isinstance(module, nn.Conv2d))
    weights = (module._parameters.get("weight") for module in modules)
    # Packed, lazy and other special ones say nothing.
    plain = (w for w in weights if type(w) is nn.Parameter and w.layout is torch.strided)
    return any(_is_channels_last(weight, False) for weight in plain)


def _is_channels_last(weight: Tensor, undecided: bool) -> bool:
    """Whether a convolution's weight is; `undecided` where its memory is the same either way."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return last and (undecided or not weight.is_contiguous())


def _dense_copy(logical: Tensor) -> Tensor:
    """A matrix in row order; of a convolution its memory format stays."""
    return logical.clone() if logical.dim() == 4 else logical.contiguous().clone()


def _with_facts(report: Report, packed: Tensor) -> Report:
    """What the decision holds for: `explain` tells by it whether the weight has changed since."""
    info = _ops.info(packed)
    return {**report, **{key: info[key] for key in ("dtype", "kept", "layout")}}


def _buckets(plan: dict[str, Any]) -> list[dict[str, Any]]:
    ends = plan["bucket_ends"]
    starts = [1, *(end + 1 for end in ends)]
    names = [
        str(start) if start == end else f"{start}–{end}"
        for start, end in zip(starts, ends, strict=False)
    ]
    names.append(f"{starts[-1]}+")
    return [
        {
            "tokens": name,
            "timed_at": choice["tokens"],
            "kernel": choice["kernel"],
            "ms": choice["milliseconds"],
            "dense_ms": choice["dense_milliseconds"],
            "reason": choice["reason"],
        }
        for name, choice in zip(names, plan["choices"], strict=True)
    ]


def swap(module: nn.Module, parameter: str, weight: Tensor, *, requires_grad: bool = False) -> None:
    """Puts a tensor in a parameter's place; one that is a Parameter already is put as it is."""
    if not isinstance(weight, nn.Parameter):
        weight = nn.Parameter(weight, requires_grad=requires_grad)
    module._parameters[parameter] = weight
