# SPDX-License-Identifier: BSD-3-Clause
"""Which weights a model has, and what stands in the way of packing each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from gossamer._convolution import Convolution
from gossamer._fusion_modules import FusedConv2d, FusedLinear
from gossamer.prune.matrix import is_conv1d
from gossamer.weight import SparseWeight

__all__ = ["Layer", "find_layers", "is_linear"]

_LINEAR_FORWARDS = (nn.Linear.forward, FusedLinear.forward)
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Layer:
    """One weight of a model.

    Attributes:
        name: the module's name; the parameter's where it is not called `weight`.
        module: who owns it.
        parameter: its name in the module.
        transposed: the module stores [in, out].
        linear: the module computes F.linear, its twin with a transposed weight, or F.conv2d: it
            may take a packed weight.
        obstacle: why it has to stay plain, None where it may be packed.
        tied: names of the layers that share the parameter, itself not included.
    """

    name: str
    module: nn.Module
    parameter: str
    transposed: bool
    linear: bool
    obstacle: str | None = None
    tied: tuple[str, ...] = ()

    @property
    def convolution(self) -> Convolution | None:
        """The numbers of an `nn.Conv2d`; None for a linear layer."""
        return Convolution.of(self.module) if isinstance(self.module, nn.Conv2d) else None

    @property
    def weight(self) -> Tensor | None:
        """What the module holds or computes as its weight; None where it has no shape yet."""
        value = getattr(self.module, self.parameter, None)
        if isinstance(value, UninitializedParameter):
            return None
        return value if isinstance(value, Tensor) else None

    @property
    def type_name(self) -> str:
        """The module's class."""
        return type(self.module).__name__.removeprefix("Parametrized")


def is_linear(module: nn.Module) -> bool:
    """True for what may hold a packed weight: linear layers and convolutions in two dimensions.

    These are `nn.Linear` and `nn.Conv2d`, their subclasses, and the `Conv1D` of Hugging Face's
    GPT-2.
    """
    return isinstance(module, (nn.Linear, nn.Conv2d)) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # Known by its shape, not its import: x·W + b with W [in, out] and nf = out.
    if not is_conv1d(module):
        return False
    weight = _stored_weight(module)
    return weight is not None and weight.dim() == 2 and weight.shape[1] == module.nf


def _stored_weight(module: nn.Module) -> Tensor | None:
    """What holds a weight's shape, a parametrized one uncomputed where it can be."""
    if parametrize.is_parametrized(module, "weight"):
        original = getattr(module.parametrizations["weight"], "original", None)  # type: ignore[index]
        if isinstance(original, Tensor):
            return original
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, Tensor) else None


def find_layers(model: nn.Module, *, values_follow: bool = False) -> list[Layer]:
    """Every weight of two dimensions or more, in the order of `model.named_modules()`.

    Args:
        model: any module.
        values_follow: the weights are about to be loaded, so that having no values yet (on the meta
            device) stands in no way.
    """
    context = _Context(model, values_follow)
    layers = []
    for name, module in model.named_modules():
        if is_linear(module):
            layer = Layer(name, module, "weight", _is_conv1d(module), linear=True)
            layer.obstacle = context.linear_obstacle(layer)
            layer.tied = context.tied(layer)
            layers.append(layer)
        else:
            layers += [
                Layer(
                    _join(name, key),
                    module,
                    key,
                    False,
                    linear=False,
                    obstacle=_reason(module, key),
                )
                for key in _weights(module)
            ]
    return layers


def _join(name: str, key: str) -> str:
    if key == "weight":
        return name
    return f"{name}.{key}" if name else key


def _weights(module: nn.Module) -> Iterator[str]:
    """The weights of a module that is no linear layer, parametrized ones by their own names."""
    if isinstance(module, parametrize.ParametrizationList):
        return
    if parametrize.is_parametrized(module):
        yield from module.parametrizations  # type: ignore[misc]
    for key, value in module._parameters.items():
        if value is not None and not isinstance(value, UninitializedParameter) and value.dim() >= 2:
            yield key


def _reason(module: nn.Module, key: str) -> str:
    if isinstance(module, nn.MultiheadAttention):
        return f"nn.MultiheadAttention reads {key} itself, not through a linear layer"
    return f"{type(module).__name__} is not a linear layer"


class _Context:
    """What can only be seen from outside a layer: who else uses its weight, who owns it."""

    def __init__(self, model: nn.Module, values_follow: bool) -> None:
        self._values_follow = values_follow
        self._users: dict[int, list[tuple[str, str, nn.Module]]] = {}
        self._attention: dict[int, str] = {}
        self._adapted: dict[int, str] = {}
        for name, module in model.named_modules():
            for key, value in module._parameters.items():
                if value is not None:
                    self._users.setdefault(id(value), []).append((name, key, module))
            if isinstance(module, nn.MultiheadAttention):
                self._attention[id(module.out_proj)] = name
            if hasattr(module, "lora_A") and isinstance(
                getattr(module, "base_layer", None), nn.Module
            ):
                self._adapted[id(module.base_layer)] = name

    def tied(self, layer: Layer) -> tuple[str, ...]:
        users = self._users.get(id(layer.module._parameters.get(layer.parameter)), [])
        return tuple(_join(name, key) for name, key, module in users if module is not layer.module)

    def linear_obstacle(self, layer: Layer) -> str | None:
        return (
            self._owner_obstacle(layer.module)
            or _module_obstacle(layer.module)
            or _weight_obstacle(layer, self._values_follow)
            or self._tie_obstacle(layer)
        )

    def _owner_obstacle(self, module: nn.Module) -> str | None:
        if id(module) in self._attention:
            return (
                f"nn.MultiheadAttention '{self._attention[id(module)]}' reads out_proj.weight "
                "itself, not through the layer"
            )
        if id(module) in self._adapted:
            return (
                f"it is the base layer of the LoRA adapter '{self._adapted[id(module)]}', which "
                "adds to the dense weight; merge the adapter first"
            )
        return None

    def _tie_obstacle(self, layer: Layer) -> str | None:
        for name, key, module in self._users[id(layer.module._parameters["weight"])]:
            if module is layer.module and key == "weight":
                continue
            if not is_linear(module) or key != "weight":
                return (
                    f"its weight is shared with '{_join(name, key)}' ({type(module).__name__}), "
                    "which needs it dense"
                )
            if isinstance(module, nn.Conv2d) and layer.convolution != Convolution.of(module):
                return (
                    f"its weight is shared with '{name}', which has another stride, padding or "
                    "dilation"
                )
            if _is_conv1d(module) != layer.transposed:
                return f"its weight is shared with '{name}', which reads it the other way round"
            other = self._owner_obstacle(module) or _module_obstacle(module)
            if other:
                return f"its weight is shared with '{name}', which stays plain: {other}"
        return None


def _module_obstacle(module: nn.Module) -> str | None:
    kind = parametrize.type_before_parametrizations(module).__name__
    if parametrize.is_parametrized(module, "weight"):
        return _parametrization_obstacle(module)
    if module._parameters.get("weight") is None:
        return _computed_obstacle(module)
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance, which may read the weight itself"
    if isinstance(module, nn.Conv2d):
        obstacle = _convolution_obstacle(module, kind)
        if obstacle is not None:
            return obstacle
    elif not _is_conv1d(module) and type(module).forward not in _LINEAR_FORWARDS:
        return f"{kind} has a forward of its own; only nn.Linear's is known to take a packed weight"
    if parametrize.is_parametrized(module):
        return "its bias is parametrized; remove that first"
    return None


def _convolution_obstacle(module: nn.Conv2d, kind: str) -> str | None:
    cls = type(module)
    if (
        cls.forward not in (nn.Conv2d.forward, FusedConv2d.forward)
        or cls._conv_forward is not nn.Conv2d._conv_forward
        or "_conv_forward" in module.__dict__
    ):
        return f"{kind} has a forward of its own; only nn.Conv2d's is known to take a packed weight"
    if module.groups != 1:
        return f"it has {module.groups} groups; convolutions with one group are packed"
    if module.padding_mode != "zeros":
        return f"its padding_mode is {module.padding_mode!r}; only 'zeros' is computed packed"
    return None


def _parametrization_obstacle(module: nn.Module) -> str:
    chain = list(module.parametrizations["weight"])  # type: ignore[index]
    names = ", ".join(type(step).__name__ for step in chain)
    if any(hasattr(step, "mask") for step in chain):
        return (
            f"its mask is live ({names}): call squash_mask() of the sparsifier first, which leaves "
            "a plain weight with zeros"
        )
    return (
        f"its weight is computed on every call ({names}); make it plain first: "
        "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
    )


def _computed_obstacle(module: nn.Module) -> str:
    sources = [key for key in (*module._parameters, *module._buffers) if key.startswith("weight_")]
    if not sources:
        return "it has no parameter called weight"
    remedy = {
        "weight_mask": "torch.nn.utils.prune.remove(module, 'weight')",
        "weight_g": "torch.nn.utils.remove_weight_norm(module)",
        "weight_u": "torch.nn.utils.remove_spectral_norm(module)",
    }
    how = next((text for key, text in remedy.items() if key in sources), "")
    return (
        f"its weight is computed on every call from {', '.join(sources)}"
        f"{'; make it plain first: ' + how if how else ''}"
    )


def _device_obstacle(device: torch.device, values_follow: bool) -> str | None:
    if device.type in ("cpu", "meta") or (device.type == "cuda" and not values_follow):
        return None
    if device.type == "cuda":
        return (
            f"its weight is on {device}, and a file's packed weights are laid out on the CPU: load "
            "into the model there and move it with .to('cuda'), or pack it here with sparsify_"
        )
    return (
        f"its weight is on {device}; packed weights run on the CPU, and 2:4 ones in float16 or "
        "bfloat16 on CUDA devices: move it with .cpu() or .to('cuda')"
    )


def _weight_obstacle(layer: Layer, values_follow: bool) -> str | None:
    weight = layer.module._parameters["weight"]
    assert weight is not None
    is_convolution = isinstance(layer.module, nn.Conv2d)
    if isinstance(weight, UninitializedParameter):
        return "its weight has no shape yet; run the model once first"
    if isinstance(weight, SparseWeight):
        return None
    if type(weight) not in (nn.Parameter, Tensor):
        return f"its weight is a {type(weight).__name__}, not a plain tensor"
    dims = 4 if is_convolution else 2
    if weight.dim() != dims:
        return (
            f"its weight has {weight.dim()} dimensions; {dims} are known to a "
            f"{'convolution' if is_convolution else 'linear layer'}"
        )
    if weight.layout is not torch.strided:
        return f"its weight is {weight.layout}, not a strided tensor"
    is_meta = weight.device.type == "meta"
    if is_meta and not values_follow:
        return "its weight is on the meta device and has no values; load them first"
    obstacle = _device_obstacle(weight.device, values_follow)
    if obstacle is not None:
        return obstacle
    dtypes = (torch.float32,) if is_convolution else _DTYPES
    if weight.dtype not in dtypes:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; kernels take {accepted}"
    if weight.numel() == 0:
        return "its weight is empty"
    return None
