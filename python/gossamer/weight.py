# SPDX-License-Identifier: BSD-3-Clause
"""A packed weight as a tensor: `SparseWeight` takes a dense parameter's place in any module.

The tensor has the shape and dtype of the dense parameter; what it holds is one byte tensor
(`packed`) in one of the formats or layouts of the core. `torch.nn.functional.linear`, the products
that modules write out by hand and, for a weight of four dimensions, `torch.nn.functional.conv2d`
run on it directly; everything else either keeps its meaning (copying, casting, saving) or is
refused with the operation's name. `load_state_dict(…, assign=True)` puts a packed weight into an
ordinary model or one on the meta device; it is frozen there, whatever the parameter was.

For a program that others load without this package, export the model and let torch unwrap the
weights into plain tensors, `torch.export.export(model, …).run_decompositions({})`; an AOTInductor
package needs no such step.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer import _ops
from gossamer._quantization import (
    VALUE_DTYPES,
    checked_scale,
    dequantized,
    quantized_dtypes,
)
from gossamer._weight_facts import Facts, facts_of
from gossamer._weight_pickle import canonical_form, current_plan, with_float8
from gossamer._weight_tables import FUNCTIONS, OPERATORS, refuse

__all__ = ["SparseWeight", "conv2d", "linear"]

_F_linear = torch.nn.functional.linear
_F_conv2d = torch.nn.functional.conv2d
_addmm = torch.addmm


class SparseWeight(torch.Tensor):
    """A packed weight in the place of a dense parameter.

    Attributes:
        packed: uint8 [bytes], the weight in its layout.
        dense: the dense values [[batch,] out, in] where the plan keeps them too, else None.
        scale: float32 [out], of a quantized weight: row r is `scale[r]` times its int8 or float8
            values. None where the values are the weight itself.
        layout_code: the number of the layout (`layout_name` is its name), the first of two where
            the plan needs two. `layout` itself is torch's and says `torch.strided`.
        transposed: True where the module stores [in, out], as GPT-2's `Conv1D` does.
        in_features: inputs, whatever the orientation; of a convolution channels times taps.
        out_features: outputs, whatever the orientation.
    """

    packed: Tensor
    dense: Tensor | None
    scale: Tensor | None
    layout_code: int
    transposed: bool
    in_features: int
    out_features: int
    _facts: Facts
    _is_direct: bool
    _is_direct_transposed: bool
    _dense_buckets: int
    _layout_argument: int
    _linear_arguments: tuple[Tensor, int, int, Tensor | None]
    _plain_arguments: tuple[Tensor, int, int] | None

    # --- Making one ---------------------------------------------------------------------------

    def __new__(
        cls,
        packed: Tensor,
        facts: Facts,
        dense: Tensor | None = None,
        scale: Tensor | None = None,
    ) -> SparseWeight:
        """Wraps bytes that are known to be what `facts` says; see `from_packed`."""
        self = torch.Tensor._make_wrapper_subclass(
            cls, facts.shape, dtype=facts.apparent_dtype, device=packed.device, requires_grad=False
        )
        self._adopt(packed, facts, dense, scale)
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        """`__new__` did it all."""

    def _adopt(
        self, packed: Tensor, facts: Facts, dense: Tensor | None, scale: Tensor | None = None
    ) -> None:
        self.packed = packed
        self.dense = dense
        self.scale = scale
        self.layout_code = facts.layout_code
        self.transposed = facts.transposed
        self.out_features = facts.out
        self.in_features = facts.inputs
        self._facts = facts
        # What the shortest path of F.linear asks: nothing to transpose, no dense copy to pass on.
        self._is_direct = dense is None and not facts.transposed and not facts.input_scale
        self._is_direct_transposed = (
            dense is None and scale is None and facts.transposed and facts.batch == 1
        )
        is_plain_dense = dense is not None and not facts.transposed and facts.batch == 1
        is_plain_dense &= facts.kernel is None and facts.inputs > 0
        is_forced = bool(os.environ.get("GOSSAMER_KERNEL"))
        self._dense_buckets = facts.dense_buckets if is_plain_dense and not is_forced else 0
        self._layout_argument = facts.layout_argument(packed.device)
        # In one place: each attribute of a tensor's subclass costs a tenth of a microsecond.
        self._linear_arguments = (packed, self._layout_argument, facts.out, scale)
        self._plain_arguments = self._linear_arguments[:3] if scale is None else None

    @classmethod
    def from_dense(
        cls,
        values: Tensor,
        pattern: str | None = None,
        *,
        mask: Tensor | None = None,
        layout: str = "format",
        transposed: bool = False,
        name: str = "weight",
    ) -> SparseWeight:
        """Packs a dense weight after verifying it against its pattern.

        Args:
            values: [[batch,] out, in], or [[batch,] in, out] with `transposed`, or a convolution's
                [out, channels, height, width]; float64, float32, float16, bfloat16, float8_e4m3fn
                or int8. Zeros mark what is pruned. A convolution's pattern speaks of the matrix
                [out, height·width·channels]; groups of N:M lie along its channels, and where these
                are no multiple of M the weight is checked tap by tap and packed as unstructured.
            pattern: `unstructured:S`, `N:M`, `block:RxC:S`, `vnm:V:N:M` or `fanin:S`; None takes
                the tightest that the zeros satisfy.
            mask: bool, shape of `values`: what is kept, zeros included. None keeps the non-zeros.
            layout: "format" for what is saved, the name of a layout, or two names with a plus
                between them.
            transposed: the module stores [in, out].
            name: what error messages call the weight.

        Raises:
            ValueError: the weight breaks the pattern (with the place), or a shape, dtype, pattern
                or layout is not accepted.
            TypeError: `values` is no tensor.
        """
        if not isinstance(values, Tensor):
            raise TypeError(
                f"{name} is a {type(values).__name__}: a torch.Tensor is accepted; convert it with "
                "torch.as_tensor(values)"
            )
        with torch.no_grad():
            values = values.detach()
            if transposed and values.dim() == 4:
                raise ValueError(
                    f"{name} is {list(values.shape)} and transposed: a convolution's weight is "
                    "packed as [out, channels, height, width] only; pass transposed=False"
                )
            if transposed:
                values = values.mT
                mask = None if mask is None else mask.mT
            packed = torch.ops.gossamer.pack(values, mask, pattern or "", layout, transposed, name)
        return cls(packed, facts_of(packed))

    @classmethod
    def from_packed(cls, packed: Tensor, *, dense: Tensor | None = None) -> SparseWeight:
        """Wraps a packed byte tensor, checking its header.

        Args:
            packed: uint8 [bytes] from `torch.ops.gossamer.pack` or another operator; bytes from
                elsewhere go through `torch.ops.gossamer.validate` first.
            dense: [[batch,] out, in] or [out, channels, height, width], the same values, run where
                the plan says dense.

        Raises:
            ValueError: the bytes are not a packed weight, or `dense` does not match it.
        """
        facts = facts_of(packed)
        if dense is not None and (
            tuple(dense.shape) != facts.logical_shape or dense.dtype != facts.dtype
        ):
            raise ValueError(
                f"dense is {list(dense.shape)} {dense.dtype}, the packed weight "
                f"{list(facts.logical_shape)} {facts.dtype} ([[batch,] out, in]); both must be the "
                "same"
            )
        return cls(packed, facts, dense)

    @classmethod
    def from_quantized(
        cls,
        packed: Tensor,
        scale: Tensor,
        dtype: torch.dtype = torch.float32,
        *,
        dense: Tensor | None = None,
        accurate: bool = False,
        input_scale: float = 0.0,
    ) -> SparseWeight:
        """Wraps packed 8-bit values and scales: row r of the weight is `scale[r]` times row r.

        Args:
            packed: uint8 [bytes], int8 or float8_e4m3fn [out, in] that is not transposed, or a
                convolution's int8 [out, channels, height, width]. Float8 is multiplied on a GPU
                only.
            scale: float32 [out].
            dtype: of the parameter that it stands for: float32, float16 or bfloat16; a
                convolution's float32.
            dense: in the shape of the weight and in `dtype`, what the plan runs where it says
                dense.
            accurate: sums of float8 products in float32 throughout; int8's are exact anyhow.
            input_scale: what inputs are rounded at, of an int8 weight on the CPU; 0 gives each
                token (image) a scale of its own in every call.

        Raises:
            ValueError: one of them is something else.
        """
        facts = facts_of(packed)
        accepted = (torch.int8,) if facts.kernel else tuple(VALUE_DTYPES.values())
        if facts.dtype not in accepted or facts.batch != 1 or facts.transposed:
            raise ValueError(
                f"packed is a weight {list(facts.shape)} of {facts.dtype}: a quantized weight is "
                "int8 or float8_e4m3fn [out, in], or a convolution's in int8; pack such values, "
                "not transposed"
            )
        if tuple(scale.shape) != (facts.out,) or scale.dtype != torch.float32:
            raise ValueError(
                f"scale is {list(scale.shape)} {scale.dtype}: float32 [{facts.out}], one for each "
                "output, is accepted"
            )
        accepted = quantized_dtypes(facts.kernel is not None)
        if dtype not in accepted:
            raise ValueError(
                f"a quantized {'convolution' if facts.kernel else 'weight'} cannot stand for "
                f"{dtype}; {', '.join(map(str, accepted))} are accepted"
            )
        if dense is not None and (tuple(dense.shape) != facts.shape or dense.dtype != dtype):
            raise ValueError(
                f"dense is {list(dense.shape)} {dense.dtype}: {list(facts.shape)} {dtype} is "
                "accepted"
            )
        input_scale = checked_scale("input_scale", input_scale) if input_scale else 0.0
        if input_scale and (facts.dtype is not torch.int8 or packed.device.type != "cpu"):
            raise ValueError(
                f"input_scale is {input_scale} for {facts.dtype} values on {packed.device}: int8 "
                "weights on the CPU take one; leave it at 0"
            )
        facts = facts._replace(quantized=dtype, accurate=accurate, input_scale=input_scale)
        return cls(packed, facts, dense, scale.contiguous())

    def _replace(
        self, packed: Tensor, dense: Tensor | None = None, plan: int | None = None
    ) -> SparseWeight:
        """A new weight around other bytes, in this one's orientation and with its scales.

        `plan` is that of `Facts`; None keeps it where shape, dtype and layout are the same.
        """
        facts = facts_of(packed)
        if plan is None:
            plan = self._facts.plan if facts[:5] == self._facts[:5] else 0
        facts = facts._replace(
            transposed=self.transposed,
            quantized=self._facts.quantized,
            accurate=self._facts.accurate,
            plan=plan,
            input_scale=self._facts.input_scale,
        )
        return type(self)(packed, facts, dense, self.scale)

    def _clone(self) -> SparseWeight:
        dense = None if self.dense is None else self.dense.clone()
        scale = None if self.scale is None else self.scale.clone()
        return SparseWeight(self.packed.clone(), self._facts, dense, scale)

    # --- What it is ---------------------------------------------------------------------------

    @property
    def kernel_size(self) -> tuple[int, int] | None:
        """Height and width of a convolution's kernel; None for a matrix."""
        return self._facts.kernel

    @property
    def pattern(self) -> str:
        """The pattern it was packed with, e.g. `unstructured:0.9`."""
        return _ops.info(self.packed)["pattern"]

    @property
    def density(self) -> float:
        """Kept positions over all positions, padding of N:M and fan-in included."""
        kept = _ops.info(self.packed)["kept"]
        return kept / self.numel() if self.numel() else 0.0

    @property
    def packed_bytes(self) -> int:
        """Bytes of the packed weight in memory, scales included."""
        return self.packed.numel() + (0 if self.scale is None else 4 * self.scale.numel())

    @property
    def layout_name(self) -> str:
        """The layout it is held in, e.g. `kcsr128`, or a format's name; `first+second` of two."""
        return _ops.info(self.packed)["layout"]

    @property
    def quantization(self) -> str | None:
        """The word of `SparseConfig.quantize` for a quantized weight, else None."""
        if self.scale is None:
            return None
        if self._facts.dtype is torch.int8:
            return "int8"
        return "float8-accurate" if self._facts.accurate else "float8"

    @property
    def input_scale(self) -> float | None:
        """What inputs of an int8 weight are rounded at; None where each token gets its own."""
        return self._facts.input_scale or None

    @property
    def plan(self) -> list[str]:
        """The kernel chosen for each bucket of token counts; empty strings where none was.

        A convolution's tokens are the pixels of its result, of all images.
        """
        return [name or "" for name in _ops.info(self.packed)["plan"]]

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """The dense parameter again: its shape, zeros where nothing is kept.

        Of a quantized weight these are its 8-bit values times their scales, rounded to the dtype.

        Args:
            dtype: of the result; None keeps the weight's own.
        """
        values = self._logical_values()
        values = values.mT.contiguous() if self.transposed else values
        return values if dtype is None else values.to(dtype)

    def _logical_values(self) -> Tensor:
        """[[batch,] out, in] or a convolution's four dimensions, whatever the orientation."""
        values = torch.ops.gossamer.unpack(
            self.packed, self._facts.logical_shape, self._facts.dtype
        )
        return values if self.scale is None else dequantized(values, self.scale).to(self.dtype)

    def mask(self) -> Tensor:
        """Bool, shape of the dense parameter: True where a value is kept, zeros included."""
        mask = torch.ops.gossamer.unpack_mask(self.packed, self._facts.logical_shape)
        return mask.mT.contiguous() if self.transposed else mask

    def canonical(self) -> SparseWeight:
        """The same weight in its format, the one that is saved."""
        return self._replace(torch.ops.gossamer.convert(self.packed, "format"))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """One line: shape, dtype, pattern, density, layout, size."""
        shape = f"{list(self.shape)}, {str(self.dtype).removeprefix('torch.')}"
        if type(self.packed) is not torch.Tensor:  # a compiler's fake has no bytes to read
            return f"SparseWeight({shape}, {self.packed})"
        info = _ops.info(self.packed)
        values = "" if self.scale is None else f"{info['dtype']} with a scale a row, "
        return (
            f"SparseWeight({shape}, {values}{_short(info['pattern'])}, "
            f"{100 * self.density:.1f} % kept, "
            f"{info['layout']}, {self.packed_bytes / 1e6:.2f} MB)"
        )

    # --- Copies, files ------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseWeight:
        """A copy with bytes of its own."""
        if id(self) in memo:
            return memo[id(self)]
        new = self._clone()
        if getattr(self, "_is_param", False):
            new._is_param = True
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles the canonical format, and by name what it was laid out and planned as."""
        info = _ops.info(self.packed)
        form, arrays = canonical_form(self.packed, self.transposed)
        state = (
            form,
            arrays,
            info["layout"],
            json.dumps(info["plan"]),
            self.dense is not None,
            bool(getattr(self, "_is_param", False)),
        )
        if self.scale is not None:
            return _rebuild_quantized_weight, (
                *state,
                self.scale,
                self.dtype,
                self._facts.accurate,
                self._facts.input_scale,
            )
        return _rebuild_sparse_weight, state

    def __tensor_flatten__(self) -> tuple[list[str], Facts]:
        """The inner tensors' names and the rest, for torch.compile and torch.export."""
        names = ("packed", "dense", "scale")
        return [name for name in names if getattr(self, name) is not None], self._facts

    def _stable_hash_for_caching(self) -> str:
        """What a compiled graph depends on: everything but the bytes."""
        return f"{self._facts}, {tuple(self.packed.shape)}, {self.dense is not None}"

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], facts: Facts, outer_size: object, outer_stride: object
    ) -> SparseWeight:
        """The inverse of `__tensor_flatten__`."""
        return SparseWeight(inner["packed"], facts, inner.get("dense"), inner.get("scale"))

    # --- Operations ---------------------------------------------------------------------------

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs `F.linear` at once; sends the rest to its handler or below autograd."""
        if func is _F_linear and not kwargs and type(args[1]) is SparseWeight:
            return linear_as_torch(*args)
        if func is _addmm and not kwargs and type(args[2]) is SparseWeight:
            return addmm_as_torch(*args)
        if func is _F_conv2d and len(args) == 7 and type(args[1]) is SparseWeight:
            return convolution_as_torch(*args)
        handler = FUNCTIONS.get(func)
        if handler is not None:
            return handler(func, args, kwargs or {})
        # Not super(): with it an export succeeds, but the loaded program fails.
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """The few operators that a packed weight answers below autograd."""
        handler = OPERATORS.get(func)
        if handler is None:
            refuse(func)
        return handler(func, args, kwargs or {})


def _short(pattern: str) -> str:
    """A pattern's text with its sparsity rounded to four digits."""
    kind, separator, last = pattern.rpartition(":")
    return f"{kind}:{float(last):.4g}" if separator and "." in last else pattern


def _rebuild_sparse_weight(
    info: str, arrays: list[Tensor], layout: str, kernels: str, keeps_dense: bool, is_param: bool
) -> SparseWeight:
    """What a pickled weight becomes. The arrays may come from anywhere: each is checked."""
    ops = torch.ops.gossamer
    packed = ops.from_format_arrays(*with_float8(info, arrays))
    form = _ops.info(packed)
    # Tiles that were saved on a GPU and are loaded without one stay in their format: only that is
    # computed here.
    is_elsewhere = layout == "nm24_tiles" and packed.device.type == "cpu"
    if layout != form["layout"] and not is_elsewhere:
        packed = ops.convert(packed, layout)
    plan = current_plan(json.loads(kernels))
    if any(plan) and not is_elsewhere:
        packed = ops.with_plan(packed, json.dumps(plan))
    facts = facts_of(packed)
    dense = ops.unpack(packed, facts.logical_shape, facts.dtype) if keeps_dense else None
    weight = SparseWeight(packed, facts, dense)
    if is_param:
        weight._is_param = True
    return weight


def _rebuild_quantized_weight(
    info: str,
    arrays: list[Tensor],
    layout: str,
    kernels: str,
    keeps_dense: bool,
    is_param: bool,
    scale: Tensor,
    dtype: torch.dtype,
    accurate: bool = False,
    input_scale: float = 0.0,
) -> SparseWeight:
    """What a pickled quantized weight becomes."""
    values = _rebuild_sparse_weight(info, arrays, layout, kernels, False, False)
    weight = SparseWeight.from_quantized(
        values.packed, scale, dtype, accurate=accurate, input_scale=input_scale
    )
    if keeps_dense:
        weight = SparseWeight(weight.packed, weight._facts, weight.to_dense(), weight.scale)
    if is_param:
        weight._is_param = True
    return weight


torch.serialization.add_safe_globals([_rebuild_sparse_weight, _rebuild_quantized_weight])

# What it answers names the class and so comes after it.
from gossamer import (  # noqa: E402
    _weight_dispatch,  # noqa: F401
    _weight_functions,  # noqa: F401
    _weight_memory,  # noqa: F401
)
from gossamer._weight_convolution import conv2d, convolution_as_torch  # noqa: E402
from gossamer._weight_functions import addmm_as_torch  # noqa: E402
from gossamer._weight_products import linear, linear_as_torch  # noqa: E402
