# SPDX-License-Identifier: BSD-3-Clause
"""A packed weight as a tensor: `SparseWeight` takes a dense parameter's place in any module.

The tensor has the shape and dtype of the dense parameter; what it holds is one byte tensor
(`packed`) in one of the formats or layouts of the core. `torch.nn.functional.linear`, the products
that modules write out by hand and, for a weight of four dimensions, `torch.nn.functional.conv2d`
run on it directly; everything else either keeps its meaning (copying, casting, saving) or is
refused with the operation's name. `copy_`, and `load_state_dict` with it, writes where the bytes
lie if the new ones are as many. `load_state_dict(…, assign=True)` puts a packed weight into an
ordinary model or one on the meta device; it is frozen there, whatever the parameter was.

For a program that others load without this package, export the model and let torch unwrap the
weights into plain tensors, `torch.export.export(model, …).run_decompositions({})`; an AOTInductor
package needs no such step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gossamer import _ops
from gossamer._weight_checks import check_dense, checked_quantized
from gossamer._weight_description import DescribedWeight
from gossamer._weight_facts import Facts, QuickCall, facts_of, quick_call
from gossamer._weight_pickle import canonical_form, current_plan, with_float8
from gossamer._weight_tables import FUNCTIONS, OPERATORS, refuse

__all__ = ["SparseWeight", "conv2d", "linear"]

_F_linear = torch.nn.functional.linear
_F_conv2d = torch.nn.functional.conv2d
_addmm = torch.addmm


class SparseWeight(DescribedWeight):
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

    _is_direct: bool
    _is_direct_transposed: bool
    _quick: QuickCall | None
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
        self._is_direct = dense is None and not facts.transposed and not facts.input_scale
        self._is_direct_transposed = (
            dense is None and scale is None and facts.transposed and facts.batch == 1
        )
        self._layout_argument = facts.layout_argument(packed.device)
        self._linear_arguments = (packed, self._layout_argument, facts.out, scale)
        self._plain_arguments = self._linear_arguments[:3] if scale is None else None
        self._quick = quick_call(facts, dense, self._linear_arguments)

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
        check_dense(facts, dense)
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
        input_scale = checked_quantized(facts, scale, dtype, dense, input_scale, packed.device)
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
        # Other bytes have scales of their own: `copy_` writes to both where they lie.
        scale = self.scale if packed is self.packed else _cloned(self.scale)
        return type(self)(packed, facts, dense, scale)

    def _clone(self) -> SparseWeight:
        dense, scale = _cloned(self.dense), _cloned(self.scale)
        return SparseWeight(self.packed.clone(), self._facts, dense, scale)

    # --- Copies, files ------------------------------------------------------------------------

    def canonical(self) -> SparseWeight:
        """The same weight in its format, the one that is saved."""
        return self._replace(torch.ops.gossamer.convert(self.packed, "format"))

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


def _cloned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


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
