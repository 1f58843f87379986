"""A packed weight as a tensor: `SparseWeight` takes a dense parameter's place in any module.

The tensor has the shape and dtype of the dense parameter; what it holds is one byte tensor
(`packed`) in one of the formats or layouts of the core. `torch.nn.functional.linear` and the
products that modules write out by hand run on it directly; everything else either keeps its meaning
(copying, casting, saving) or is refused with the operation's name.

For a program that others load without this package, export the model and let torch unwrap the
weights into plain tensors, `torch.export.export(model, …).run_decompositions({})`; an AOTInductor
package needs no such step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing

from gossamer import _ops

__all__ = ["SparseWeight", "linear"]

_ACTIVATIONS = {None: 0, "relu": _ops.RELU}
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.float8_e4m3fn,
        torch.int8,
    )
}

# Looked up once: a name in torch.ops costs as much as the call. `_linear_eager` is what calling
# `_linear_op` calls, one Python frame earlier; Dynamo follows only the latter.
_linear_op: Any = torch.ops.gossamer.linear.default
_linear_autograd_op: Any = torch.ops.gossamer.linear_autograd.default
_linear_dx_op: Any = torch.ops.gossamer.linear_dx.default
_linear_eager: Any = _linear_op._op
_F_linear = torch.nn.functional.linear
_is_grad_enabled = torch.is_grad_enabled
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling


class _Facts(NamedTuple):
    """What does not change with the bytes: enough to rebuild the tensor around other bytes."""

    batch: int
    out: int
    inputs: int
    dtype: torch.dtype
    layout_code: int
    transposed: bool

    @property
    def logical_shape(self) -> tuple[int, ...]:
        """[out, in] or [batch, out, in], whatever the module stores."""
        shape = (self.out, self.inputs)
        return shape if self.batch == 1 else (self.batch, *shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The dense parameter's: [in, out] where it is transposed."""
        shape = (self.inputs, self.out) if self.transposed else (self.out, self.inputs)
        return shape if self.batch == 1 else (self.batch, *shape)


def _facts(packed: Tensor) -> _Facts:
    info = _ops.info(packed)
    return _Facts(
        info["batch"],
        info["out"],
        info["in"],
        _DTYPES[info["dtype"]],
        info["layout_code"],
        info["transposed"],
    )


class SparseWeight(torch.Tensor):
    """A packed weight in the place of a dense parameter.

    Attributes:
        packed: uint8 [bytes], the weight in its layout.
        dense: the dense values [[batch,] out, in] where the plan keeps them too, else None.
        layout_code: the number of the layout (`layout_name` is its name). `layout` itself is
            torch's and says `torch.strided`.
        transposed: True where the module stores [in, out], as GPT-2's `Conv1D` does.
        in_features: inputs, whatever the orientation.
        out_features: outputs, whatever the orientation.
    """

    packed: Tensor
    dense: Tensor | None
    layout_code: int
    transposed: bool
    in_features: int
    out_features: int
    _facts: _Facts
    _is_direct: bool

    # --- Making one ---------------------------------------------------------------------------

    def __new__(cls, packed: Tensor, facts: _Facts, dense: Tensor | None = None) -> SparseWeight:
        """Wraps bytes that are known to be what `facts` says; see `from_packed`."""
        self = torch.Tensor._make_wrapper_subclass(
            cls, facts.shape, dtype=facts.dtype, device=packed.device, requires_grad=False
        )
        self._adopt(packed, facts, dense)
        return self

    def __init__(self, *args: object, **kwargs: object) -> None:
        """`__new__` did it all."""

    def _adopt(self, packed: Tensor, facts: _Facts, dense: Tensor | None) -> None:
        self.packed = packed
        self.dense = dense
        self.layout_code = facts.layout_code
        self.transposed = facts.transposed
        self.out_features = facts.out
        self.in_features = facts.inputs
        self._facts = facts
        # What the shortest path of F.linear asks: nothing to transpose, no dense copy to pass on.
        self._is_direct = dense is None and not facts.transposed

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
            values: [[batch,] out, in], or [[batch,] in, out] with `transposed`; float64, float32,
                float16, bfloat16, float8_e4m3fn or int8. Zeros mark what is pruned.
            pattern: `unstructured:S`, `N:M`, `block:RxC:S`, `vnm:V:N:M` or `fanin:S`; None takes
                the tightest that the zeros satisfy.
            mask: bool, shape of `values`: what is kept, zeros included. None keeps the non-zeros.
            layout: "format" for what is saved, or the name of a layout.
            transposed: the module stores [in, out].
            name: what error messages call the weight.

        Raises:
            ValueError: the weight breaks the pattern (with the place), or a shape, dtype, pattern
                or layout is not accepted.
        """
        with torch.no_grad():
            values = values.detach()
            if transposed:
                values = values.mT
                mask = None if mask is None else mask.mT
            packed = torch.ops.gossamer.pack(values, mask, pattern or "", layout, transposed, name)
        return cls(packed, _facts(packed))

    @classmethod
    def from_packed(cls, packed: Tensor, *, dense: Tensor | None = None) -> SparseWeight:
        """Wraps a packed byte tensor, checking its header.

        Args:
            packed: uint8 [bytes] from `torch.ops.gossamer.pack` or another operator; bytes from
                elsewhere go through `torch.ops.gossamer.validate` first.
            dense: [[batch,] out, in], the same values, run where the plan says dense.

        Raises:
            ValueError: the bytes are not a packed weight, or `dense` does not match it.
        """
        facts = _facts(packed)
        if dense is not None and (
            tuple(dense.shape) != facts.logical_shape or dense.dtype != facts.dtype
        ):
            raise ValueError(
                f"dense is {list(dense.shape)} {dense.dtype}, the packed weight "
                f"{list(facts.logical_shape)} {facts.dtype} ([[batch,] out, in]); both must be the "
                f"same"
            )
        return cls(packed, facts, dense)

    def _replace(self, packed: Tensor, dense: Tensor | None = None) -> SparseWeight:
        """A new weight around other bytes, in this one's orientation."""
        return type(self)(packed, _facts(packed)._replace(transposed=self.transposed), dense)

    # --- What it is ---------------------------------------------------------------------------

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
        """Bytes of the packed weight in memory."""
        return self.packed.numel()

    @property
    def layout_name(self) -> str:
        """The layout it is held in, e.g. `kcsr128`, or a format's name."""
        return _ops.info(self.packed)["layout"]

    @property
    def plan(self) -> list[str]:
        """The kernel chosen for each bucket of token counts; empty strings where none was."""
        return [name or "" for name in _ops.info(self.packed)["plan"]]

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:  # type: ignore[override]
        """The dense parameter again: its shape, zeros where nothing is kept.

        Args:
            dtype: of the result; None keeps the weight's own.
        """
        values = torch.ops.gossamer.unpack(self.packed, self._facts.logical_shape, self.dtype)
        values = values.mT.contiguous() if self.transposed else values
        return values if dtype is None else values.to(dtype)

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
        return (
            f"SparseWeight({shape}, {_short(info['pattern'])}, {100 * self.density:.1f} % kept, "
            f"{info['layout']}, {self.packed_bytes / 1e6:.2f} MB)"
        )

    # --- Copies, files ------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseWeight:
        """A copy with bytes of its own."""
        if id(self) in memo:
            return memo[id(self)]
        new = _clone(self)
        if getattr(self, "_is_param", False):
            new._is_param = True
        memo[id(self)] = new
        return new

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickles the canonical format, and by name what it was laid out and planned as."""
        info = _ops.info(self.packed)
        canonical = torch.ops.gossamer.convert(self.packed, "format")
        form = _ops.info(canonical)
        form["transposed"] = self.transposed
        state = (
            json.dumps(form),
            torch.ops.gossamer.format_arrays(canonical),
            info["layout"],
            json.dumps(info["plan"]),
            self.dense is not None,
            bool(getattr(self, "_is_param", False)),
        )
        return _rebuild_sparse_weight, state

    def __tensor_flatten__(self) -> tuple[list[str], _Facts]:
        """The inner tensors' names and the rest, for torch.compile and torch.export."""
        return ["packed"] if self.dense is None else ["packed", "dense"], self._facts

    def _stable_hash_for_caching(self) -> str:
        """What a compiled graph depends on: everything but the bytes."""
        return f"{self._facts}, {tuple(self.packed.shape)}, {self.dense is not None}"

    @staticmethod
    def __tensor_unflatten__(
        inner: dict[str, Tensor], facts: _Facts, outer_size: object, outer_stride: object
    ) -> SparseWeight:
        """The inverse of `__tensor_flatten__`."""
        return SparseWeight(inner["packed"], facts, inner.get("dense"))

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
            return _linear(*args)
        handler = _FUNCTIONS.get(func)
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
        handler = _DISPATCH.get(func)
        if handler is None:
            _refuse(func)
        return handler(func, args, kwargs or {})


def _short(pattern: str) -> str:
    """A pattern's text with its sparsity rounded to four digits."""
    kind, separator, last = pattern.rpartition(":")
    return f"{kind}:{float(last):.4g}" if separator and "." in last else pattern


def linear(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """act(x·Wᵀ + bias + residual) in one operator.

    Args:
        x: [..., in], dtype of the weight; [batch, tokens, in] where the weight is a stack.
        weight: [out, in], or a transposed [in, out].
        bias: [out], or [batch, out] for a stack.
        activation: None or "relu".
        residual: shape of the result, added before the activation.

    Returns:
        [..., out], dtype of x.

    Raises:
        ValueError: shapes, dtypes or the activation do not fit.
    """
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: None and 'relu' are accepted")
    return _product(x, weight, bias, _ACTIVATIONS[activation], residual)


def _linear(x: Tensor, weight: SparseWeight, bias: Tensor | None = None) -> Tensor:
    """`F.linear`: x·weightᵀ + bias. What a model spends its calls on."""
    if not weight._is_direct or _is_any_autocast_enabled() or type(x) is SparseWeight:
        return _linear_general(x, weight, bias)
    if _is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        op = _linear_autograd_op
    elif _is_dynamo_compiling():
        op = _linear_op
    else:
        op = _linear_eager
    # Every argument costs, None too.
    return op(x, weight.packed, weight.layout_code, weight.out_features, None, bias)


def _linear_general(x: Tensor, weight: SparseWeight, bias: Tensor | None) -> Tensor:
    """`F.linear` under autocast, with a dense copy, or with a weight stored transposed."""
    if isinstance(x, SparseWeight):
        raise NotImplementedError(
            "linear: x is a SparseWeight too; a product of two packed weights is not computed, use "
            "x.to_dense()"
        )
    if weight.transposed:
        y = _times_logical(x, weight)
        return y if bias is None else y + bias
    return _product(x, weight, bias, 0, None)


def _product(
    x: Tensor,
    weight: SparseWeight,
    bias: Tensor | None,
    activation: int,
    residual: Tensor | None,
) -> Tensor:
    """act(x·Wᵀ + bias + residual) with W the logical [out, in], whatever the orientation."""
    result_dtype = None
    if torch.is_autocast_enabled("cpu"):
        # F.linear would cast the weight; a packed weight keeps its dtype and the inputs follow,
        # which is exact. The result has autocast's dtype, as the layers behind it expect.
        result_dtype = torch.get_autocast_dtype("cpu")
        x = x.to(weight.dtype)
        bias = None if bias is None else bias.to(weight.dtype)
        residual = None if residual is None else residual.to(weight.dtype)
    operands = (x, bias, residual)
    needs_grad = _is_grad_enabled() and any(t is not None and t.requires_grad for t in operands)
    y = (_linear_autograd_op if needs_grad else _linear_op)(
        x,
        weight.packed,
        weight.layout_code,
        weight.out_features,
        None,
        bias,
        activation,
        residual,
        weight.dense,
    )
    return y if result_dtype is None else y.to(result_dtype)


def _times_logical(x: Tensor, weight: SparseWeight) -> Tensor:
    """x·W with W the logical [out, in]: the product that dX needs."""
    return _linear_dx_op(x, weight.packed, weight.layout_code, weight.in_features, weight.dense)


# --- Functions above autograd ---------------------------------------------------------------------

_FUNCTIONS: dict[Any, Callable[..., Any]] = {}
_DISPATCH: dict[Any, Callable[..., Any]] = {}


def _function(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _FUNCTIONS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def _operator(*operators: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _DISPATCH.update(dict.fromkeys(operators, handler))
        return handler

    return register


def _name(func: Any) -> str:
    return getattr(func, "__qualname__", None) or getattr(func, "__name__", None) or str(func)


def _refuse(func: Any) -> NoReturn:
    name = str(func) if isinstance(func, torch._ops.OpOverload) else _name(func)
    raise NotImplementedError(
        f"{name} is not computed on a packed weight; use it as the weight of a linear layer, or "
        f"take "
        "weight.to_dense() (gossamer.desparsify_(model) unpacks a whole model)"
    )


def _refuse_gradient() -> NoReturn:
    raise RuntimeError(
        "a packed weight has no gradient of its own (the gradient of x flows through it): keep it "
        "with "
        "requires_grad=False, unpack it with gossamer.desparsify_(model), or train the dense "
        "weight under a "
        "mask with a sparsifier (gossamer.Magnitude and its kind: prepare, step, squash_mask)"
    )


@_function(_F_linear)
def _handle_linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _linear_call(*args, **kwargs)


def _linear_call(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if isinstance(weight, SparseWeight):
        return _linear(input, weight, bias)
    y = _matmul(input, weight.mT)  # input or bias is packed; the same product written the other way
    return y if bias is None else y + bias


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    if isinstance(b, SparseWeight):
        if isinstance(a, SparseWeight):
            raise NotImplementedError(
                "matmul: a product of two packed weights is not computed; unpack one with "
                ".to_dense()"
            )
        return _product(a, b, None, 0, None) if b.transposed else _times_logical(a, b)
    assert isinstance(a, SparseWeight)
    # A·b = (bᵀ·Aᵀ)ᵀ; a vector is its own transpose.
    return _matmul(b, a.mT) if b.dim() == 1 else _matmul(b.mT, a.mT).mT


@_function(
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm
)
def _handle_matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if kwargs.get("out") is not None or len(args) != 2:
        _refuse(func)
    return _matmul(args[0], args[1])


@_function(Tensor.__rmatmul__)
def _handle_rmatmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _matmul(args[1], args[0])


@_function(torch.addmm, Tensor.addmm)
def _handle_addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    scales = {"alpha": kwargs.pop("alpha", 1), "beta": kwargs.pop("beta", 1)}
    if kwargs or len(args) != 3 or isinstance(args[0], SparseWeight):
        _refuse(func)
    bias, a, b = args
    if (
        isinstance(b, SparseWeight)
        and not isinstance(a, SparseWeight)
        and b.transposed
        and bias.shape == (b.out_features,)
        and scales == {"alpha": 1, "beta": 1}
    ):
        return _product(a, b, bias, 0, None)
    return torch.add(scales["beta"] * bias, _matmul(a, b), alpha=scales["alpha"])


@_function(Tensor.requires_grad_)
def _handle_requires_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if (args[1] if len(args) > 1 else kwargs.get("requires_grad", True)) is not False:
        _refuse_gradient()
    return args[0]


@_function(Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
def _handle_set_requires_grad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args[1]:
        _refuse_gradient()


@_function(Tensor.data.__set__)  # type: ignore[attr-defined]
def _handle_set_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args
    if not isinstance(target, SparseWeight) or not isinstance(source, SparseWeight):
        raise RuntimeError(
            "x.data = y with a packed weight on one side only would leave one of them with the "
            "other's "
            "shape and no values; use copy_(), or assign the module's parameter anew"
        )
    if target.shape != source.shape or target.dtype != source.dtype:
        raise RuntimeError(
            f"x.data = y: x is {list(target.shape)} {target.dtype}, y {list(source.shape)} "
            f"{source.dtype}; "
            "a packed weight takes bytes of its own shape and dtype only"
        )
    target._adopt(source.packed, source._facts, source.dense)


# --- Operators below autograd ---------------------------------------------------------------------

_aten = torch.ops.aten


@_operator(_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default)
def _dispatch_alias(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    alias = SparseWeight(weight.packed, weight._facts, weight.dense)
    return return_and_correct_aliasing(func, args, kwargs, alias)


@_operator(_aten.view.default, _aten._unsafe_view.default)
def _dispatch_view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight, shape = args
    if tuple(shape) != tuple(weight.shape):
        raise NotImplementedError(
            f"{func}: a packed weight {list(weight.shape)} cannot be viewed as {list(shape)}; take "
            ".to_dense() first"
        )
    return _dispatch_alias(func, args, kwargs)


@_operator(_aten.t.default, _aten.transpose.int, _aten.permute.default)
def _dispatch_transpose(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
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
            f".to_dense() first"
        )
    facts = weight._facts._replace(transposed=not weight.transposed)
    flipped = SparseWeight(weight.packed, facts, weight.dense)
    return return_and_correct_aliasing(func, args, kwargs, flipped)


def _clone(weight: SparseWeight) -> SparseWeight:
    dense = None if weight.dense is None else weight.dense.clone()
    return SparseWeight(weight.packed.clone(), weight._facts, dense)


@_operator(_aten.clone.default)
def _dispatch_clone(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _clone(args[0])


@_operator(_aten._to_copy.default)
def _dispatch_to_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    weight = args[0]
    device = kwargs.get("device")
    if device is not None and torch.device(device) != weight.device:
        raise NotImplementedError(
            f"a packed weight on {weight.device} cannot be moved to {device}: this build computes "
            f"packed "
            f"weights on the CPU only; unpack the model first (gossamer.desparsify_) or "
            f"weight.to_dense()"
        )
    dtype = kwargs.get("dtype") or weight.dtype
    if dtype == weight.dtype:
        return _clone(weight)
    if dtype not in _DTYPES.values():
        raise ValueError(
            f"a packed weight cannot be {dtype}; {', '.join(map(str, _DTYPES.values()))} are "
            f"accepted"
        )
    return _cast(weight, dtype)


def _cast(weight: SparseWeight, dtype: torch.dtype) -> SparseWeight:
    """In another dtype, in its format: a layout may have kernels for one dtype only."""
    values, mask = weight.to_dense(dtype), weight.mask()
    return SparseWeight.from_dense(values, weight.pattern, mask=mask, transposed=weight.transposed)


def _pack_like(
    weight: SparseWeight, values: Tensor, mask: Tensor | None, pattern: str
) -> SparseWeight:
    """Packs values in `weight`'s orientation, and in its layout where that holds such a weight."""
    formed = SparseWeight.from_dense(values, pattern, mask=mask, transposed=weight.transposed)
    if formed.layout_name == weight.layout_name:
        return formed
    try:
        return formed._replace(torch.ops.gossamer.convert(formed.packed, weight.layout_name))
    except (ValueError, RuntimeError):
        return formed  # an execution layout of another dtype or pattern; the format always computes


@_operator(_aten.copy_.default)
def _dispatch_copy(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    target, source = args[0], args[1]
    if not isinstance(target, SparseWeight):
        return target.copy_(source.to_dense())
    if tuple(source.shape) != tuple(target.shape):
        raise ValueError(
            f"copy_: the packed weight is {list(target.shape)}, the source {list(source.shape)}; "
            f"both must "
            "be the same"
        )
    if isinstance(source, SparseWeight):
        new = _copy_packed(target, source)
    else:
        pattern = target.pattern
        if pattern.startswith("unstructured"):
            pattern = ""  # any number of non-zeros is one; the record says how many
        values = source.detach().to(device=target.device, dtype=target.dtype)
        new = _pack_like(target, values, None, pattern)
        if new.layout_code == target.layout_code:
            new = new._replace(_with_plan(new.packed, target.packed))
    dense = None
    if target.dense is not None:
        dense = torch.ops.gossamer.unpack(new.packed, new._facts.logical_shape, new.dtype)
    target._adopt(new.packed, new._facts, dense)
    return target


def _copy_packed(target: SparseWeight, source: SparseWeight) -> SparseWeight:
    if source.transposed != target.transposed:
        raise ValueError(
            "copy_: source and target are stored in opposite orientations ([out, in] and [in, "
            "out]); copy "
            "source.to_dense() instead"
        )
    if source.dtype != target.dtype:
        source = _cast(source, target.dtype)
    if source.layout_code == target.layout_code:
        packed = source.packed.clone()
        return source._replace(_with_plan(packed, target.packed))
    try:
        packed = torch.ops.gossamer.convert(source.packed, target.layout_name)
    except (ValueError, RuntimeError):
        return _clone(source)  # of a pattern that the target's layout cannot hold
    return source._replace(_with_plan(packed, target.packed))


def _with_plan(packed: Tensor, planned: Tensor) -> Tensor:
    """`packed` with the kernels that `planned`, a weight of the same layout, was given."""
    kernels = _ops.info(planned)["plan"]
    if not any(kernels):
        return packed
    return torch.ops.gossamer.with_plan(packed, json.dumps(kernels))


@_operator(_aten.mm.default, _aten.matmul.default, _aten.bmm.default)
def _dispatch_matmul(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _matmul(*args)


@_operator(_aten.addmm.default)
def _dispatch_addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _handle_addmm(func, args, dict(kwargs))


@_operator(_aten.linear.default)
def _dispatch_linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _linear_call(*args, **kwargs)


@_operator(_aten.is_same_size.default)
def _dispatch_is_same_size(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return tuple(args[0].shape) == tuple(args[1].shape)


@_operator(
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


# --- Files ----------------------------------------------------------------------------------------


def _rebuild_sparse_weight(
    info: str, arrays: list[Tensor], layout: str, kernels: str, keeps_dense: bool, is_param: bool
) -> SparseWeight:
    """What a pickled weight becomes. The arrays may come from anywhere: each is checked."""
    ops = torch.ops.gossamer
    packed = ops.from_format_arrays(info, arrays)
    form = _ops.info(packed)
    if layout != form["layout"]:
        packed = ops.convert(packed, layout)
    if any(json.loads(kernels)):
        packed = ops.with_plan(packed, kernels)
    facts = _facts(packed)
    dense = ops.unpack(packed, facts.logical_shape, facts.dtype) if keeps_dense else None
    weight = SparseWeight(packed, facts, dense)
    if is_param:
        weight._is_param = True
    return weight


torch.serialization.add_safe_globals([_rebuild_sparse_weight])
