# SPDX-License-Identifier: BSD-3-Clause
"""What `sparsify_` is asked to do with a layer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Protocol, TypeAlias

import torch

from gossamer import _ops  # noqa: F401  (loads the operators)
from gossamer._quantization import checked_scale

__all__ = [
    "BlockSparseWeightConfig",
    "Config",
    "Float8DynamicActivationSemiSparseWeightConfig",
    "Int8DynamicActivationSemiSparseWeightConfig",
    "Int8DynamicActivationSparseWeightConfig",
    "Int8StaticActivationSparseWeightConfig",
    "LayerConfig",
    "SemiSparseWeightConfig",
    "SparseConfig",
]

PLANS = ("measure", "model")
MEMORIES = ("default", "speed", "low")
QUANTIZATIONS = ("int8", "float8", "float8-accurate")


class LayerConfig(Protocol):
    """Anything that says how a layer is to be packed."""

    def settings(self) -> SparseConfig:
        """The same wish as a `SparseConfig`."""
        ...


@dataclass(frozen=True)
class SparseConfig:
    """How a layer is packed and planned.

    Attributes:
        pattern: the pattern that the weight already satisfies (docs/patterns.md); None takes the
            tightest that its zeros satisfy. Nothing is pruned: a weight that breaks it is refused.
        memory: "default" (two layouts where few and many tokens want different ones), "speed" (any
            two, and a dense copy where the plan runs dense at some token counts) or "low" (one
            layout of at most 1.15 times the bytes that are saved); None takes the argument of
            `sparsify_`. On a GPU "default" keeps the copy as "speed" does.
        plan: "measure" or "model"; None takes the argument of `sparsify_`.
        quantize: "int8", "float8" or "float8-accurate" for weights and activations of eight bits
            (`Int8DynamicActivationSparseWeightConfig`,
            `Float8DynamicActivationSemiSparseWeightConfig`), None for the weight's own dtype.
        input_scales: with "int8": what the inputs of a layer are rounded at, one number for all or
            one for each layer's name (`Int8StaticActivationSparseWeightConfig`); None gives each
            token its own.

    Raises:
        ValueError: a pattern, memory, plan or quantization that does not exist, or a scale that is
            none.
    """

    pattern: str | None = None
    memory: str | None = None
    plan: str | None = None
    quantize: str | None = None
    input_scales: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.pattern is not None:
            check_pattern(self.pattern)
        if self.memory is not None:
            check_choice("memory", self.memory, MEMORIES)
        if self.plan is not None:
            check_choice("plan", self.plan, PLANS)
        if self.quantize is not None:
            check_choice("quantize", self.quantize, QUANTIZATIONS)
        if self.input_scales is not None:
            if self.quantize != "int8":
                raise ValueError(
                    f"input_scales are given with quantize={self.quantize!r}: they belong to "
                    "quantize='int8'"
                )
            scales = self.input_scales
            for name, value in scales.items() if isinstance(scales, Mapping) else [("", scales)]:
                checked_scale(f"input_scales{[name] if name else ''}", value)

    def settings(self) -> SparseConfig:
        """Itself."""
        return self

    def input_scale(self, names: Iterable[str]) -> float | None:
        """The scale of a layer known by these names (tied ones share a weight); None: none."""
        if not isinstance(self.input_scales, Mapping):
            return self.input_scales
        found = [self.input_scales[name] for name in names if name in self.input_scales]
        return max(found, default=None)


@dataclass(frozen=True)
class SemiSparseWeightConfig:
    """2:4 weights: of every 4 consecutive inputs, 2 kept.

    Attributes:
        alg_id: which algorithm cuSPARSELt should use; kernels here are chosen by the plan, so that
            0 is the only value that means something.

    Raises:
        ValueError: another `alg_id`.
    """

    alg_id: int = 0

    def __post_init__(self) -> None:
        if self.alg_id != 0:
            raise ValueError(
                f"alg_id={self.alg_id}: it numbers cuSPARSELt's algorithms, which are not called "
                "here; leave it at 0, the plan chooses the kernel (GOSSAMER_KERNEL forces one by "
                "name)"
            )

    def settings(self) -> SparseConfig:
        """The pattern `2:4`."""
        return SparseConfig(pattern="2:4")


@dataclass(frozen=True)
class BlockSparseWeightConfig:
    """Weights of square blocks that are kept or dropped whole.

    Attributes:
        blocksize: rows and columns of a block.

    Raises:
        ValueError: a block size that no pattern has.
    """

    blocksize: int = 64

    def __post_init__(self) -> None:
        check_pattern(f"block:{self.blocksize}x{self.blocksize}")

    def settings(self) -> SparseConfig:
        """The pattern `block:BxB`, whatever the fraction of zero blocks."""
        return SparseConfig(pattern=f"block:{self.blocksize}x{self.blocksize}")


@dataclass(frozen=True)
class Int8DynamicActivationSparseWeightConfig:
    """Sparse weights of eight bits, activations quantized as they come.

    A weight row w becomes int8 values q times s_w = max |w| / 127; each token x of the input, or
    each image x of a convolution's, becomes p times s_x = max |x| / 127, anew in every call. The
    integer sum of q·p is exact, then comes s_x·s_w, bias and activation in float32. With
    |w - s_w q| <= s_w / 2 and |x - s_x p| <= s_x / 2, an output differs from the unquantized one by
    at most

        sum over the kept inputs k of  |x_k| s_w / 2 + |w_k| s_x / 2 + s_w s_x / 4

    plus rounding in float32. What is pruned adds nothing to it. A token or image that holds NaN or
    infinity gives NaN in all its outputs.

    Linear layers are quantized (`nn.Linear` and its kind, in float32, float16 or bfloat16; on a GPU
    2:4 ones in float16 or bfloat16), and on the CPU convolutions (`nn.Conv2d` in float32);
    transposed weights stay as they are. A layer is quantized only where that is faster than the
    floating dense layer it replaces.

    Attributes:
        pattern: as in `SparseConfig`: `unstructured:S`, `block:1x4:S` and `2:4` have int8 kernels
            of their own, others run portably. A GPU multiplies `2:4`.
        memory: as in `SparseConfig`.
        plan: as in `SparseConfig`.

    Raises:
        ValueError: a pattern, memory or plan that does not exist.
    """

    pattern: str | None = None
    memory: str | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> SparseConfig:
        """The same wish as a `SparseConfig`."""
        return SparseConfig(self.pattern, self.memory, self.plan, quantize="int8")


@dataclass(frozen=True)
class Int8StaticActivationSparseWeightConfig:
    """`Int8DynamicActivationSparseWeightConfig` with activation scales that are fixed beforehand.

    The inputs of a layer are rounded at one scale in every call, s_x of its class's formula, and
    what lies beyond 127 of its steps becomes 127 of them. That lets a layer hand int8 to the
    next one (`gossamer.linear(..., out_scale=...)`). It is less exact where tokens differ much in
    size, and not faster in itself. On the CPU only.

        scales = gs.calibrate_input_scales(model, batches)
        gs.sparsify_(model, gs.Int8StaticActivationSparseWeightConfig(scales))

    Attributes:
        input_scales: a scale for each layer's name, as `calibrate_input_scales` gives them, or one
            number for all. A layer whose name is not there stays plain.
        pattern: as in `SparseConfig`.
        memory: as in `SparseConfig`.
        plan: as in `SparseConfig`. It counts the rounding of activations as if the largest of each
            token had to be found.

    Raises:
        ValueError: a scale that is not finite and above 0, or a pattern, memory or plan that does
            not exist.
    """

    input_scales: float | Mapping[str, float]
    pattern: str | None = None
    memory: str | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> SparseConfig:
        """The same wish as a `SparseConfig`."""
        return SparseConfig(self.pattern, self.memory, self.plan, "int8", self.input_scales)


@dataclass(frozen=True)
class Int8DynamicActivationSemiSparseWeightConfig:
    """`Int8DynamicActivationSparseWeightConfig` for 2:4 weights, the pattern of GPUs.

    Attributes:
        memory: as in `SparseConfig`.
        plan: as in `SparseConfig`.

    Raises:
        ValueError: a memory or plan that does not exist.
    """

    memory: str | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> SparseConfig:
        """The pattern `2:4` in int8."""
        return SparseConfig("2:4", self.memory, self.plan, quantize="int8")


@dataclass(frozen=True)
class Float8DynamicActivationSemiSparseWeightConfig:
    """2:4 weights in float8 (e4m3), activations quantized as they come; on a GPU only.

    A weight row w becomes float8 values q times s_w = max |w| / 448; each token x of the input
    becomes p times s_x = max |x| / 448, anew in every call; then comes s_x·s_w, bias and activation
    in float32. Rounding changes a value v by at most 2^-4 |v|, and 2^-10 of its scale where that is
    more. The tensor core adds products with 14 significant bits: each term of an instruction (64
    inputs) may lose a unit of the 14th bit of the largest.

    Linear layers in float16 or bfloat16 on a GPU with such kernels (compute capability 9.x) are
    quantized where that is faster than the floating dense layer they replace; all others stay as
    they are.

    Attributes:
        accurate: leaves only 256 inputs at a time to the tensor core and adds the rest in float32;
            slower for many tokens.
        memory: as in `SparseConfig`.
        plan: as in `SparseConfig`.

    Raises:
        ValueError: a memory or plan that does not exist.
    """

    accurate: bool = False
    memory: str | None = None
    plan: str | None = None

    def __post_init__(self) -> None:
        self.settings()

    def settings(self) -> SparseConfig:
        """The pattern `2:4` in float8."""
        quantize = "float8-accurate" if self.accurate else "float8"
        return SparseConfig("2:4", self.memory, self.plan, quantize=quantize)


Config: TypeAlias = "LayerConfig | str | Mapping[str, LayerConfig | str | None]"
"""One wish for all layers (a config or a pattern's text), or one for each glob of layer names; None
infers the pattern."""


def check_pattern(text: str) -> str:
    """The pattern's shortest text; ValueError says what would do."""
    if not isinstance(text, str):
        raise TypeError(
            f"pattern is a {type(text).__name__}: a text such as '2:4' or 'unstructured:0.9' is "
            "accepted"
        )
    return str(json.loads(torch.ops.gossamer.parse_pattern(text))["text"])


def check_choice(what: str, value: str, accepted: tuple[str, ...]) -> None:
    """Refuses a value that is not one of the accepted words."""
    if value not in accepted:
        *first, last = (f'"{word}"' for word in accepted)
        words = f"{', '.join(first)} and {last}"
        raise ValueError(f"{what}={value!r}: {words} are accepted")


@dataclass
class Wishes:
    """A config resolved: which settings a layer of a given name gets."""

    config: Config | None
    _globs: dict[str, SparseConfig] | None = field(init=False, default=None)
    _default: SparseConfig = field(init=False, default_factory=SparseConfig)

    def __post_init__(self) -> None:
        if isinstance(self.config, Mapping):
            self._globs = {glob: _settings(wish) for glob, wish in self.config.items()}
        else:
            self._default = _settings(self.config)

    def of(self, name: str) -> SparseConfig | None:
        """The settings of a layer: the first glob that matches decides, None where none does."""
        if self._globs is None:
            return self._default
        for glob, settings in self._globs.items():
            if fnmatchcase(name, glob):
                return settings
        return None

    def check_used(self, names: list[str]) -> None:
        """Refuses globs that match no layer: a misspelt name would be silently ignored."""
        for glob in self._globs or {}:
            if not any(fnmatchcase(name, glob) for name in names):
                shown = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                raise ValueError(
                    f"config: '{glob}' matches no linear layer of the model; its linear layers "
                    f"are: {shown or 'none'}"
                )
        for settings in (self._globs or {"": self._default}).values():
            scales = settings.input_scales
            unknown = set(scales) - set(names) if isinstance(scales, Mapping) else set()
            if unknown:
                raise ValueError(
                    f"input_scales: {', '.join(map(repr, sorted(unknown)))} is no linear layer of "
                    "the model; gossamer.calibrate_input_scales(model, batches) gives the names"
                )


def _settings(wish: LayerConfig | str | None) -> SparseConfig:
    if wish is None:
        return SparseConfig()
    if isinstance(wish, str):
        return SparseConfig(pattern=wish)
    if not isinstance(wish, type) and hasattr(wish, "settings"):
        return wish.settings()
    raise TypeError(
        f"config is {wish!r}: None, a pattern's text, a SparseConfig, SemiSparseWeightConfig, "
        "BlockSparseWeightConfig, Int8DynamicActivationSparseWeightConfig or another config of "
        "gossamer.config (an instance, with parentheses), or a dict of layer names to these is "
        "accepted"
    )
