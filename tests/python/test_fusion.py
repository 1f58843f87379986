# SPDX-License-Identifier: BSD-3-Clause
"""A fused model computes what it computed, or is left alone with a reason."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gossamer as gs
from gossamer._fusion_modules import FusedConv2d, FusedLinear
from sparsify_helpers import GENERIC, prune_

UNIT = 2.0**-24


class BasicBlock(nn.Module):
    """Of the shape that torchvision and timm give it."""

    def __init__(self, inputs: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample = None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class TwoRoads(nn.Module):
    """The sum of two layers can be taken over by one of them only."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(8, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.a(x)) + self.b(x))


class Padded(nn.Module):
    """A shortcut that is computed between the layer and the sum: the layer may not wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.layer(x))
        return F.relu(y + x.neg())


class Gelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x)


class ReluSquared(nn.Module):
    """An activation as Hugging Face writes it."""

    def forward(self, x: Tensor) -> Tensor:
        positive = F.relu(x)
        return torch.square(positive)


class SquaredMlp(nn.Module):
    """Squared ReLU in every way to write it; the last two are more than that."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("a", "b", "c", "d", "cube", "shared"):
            setattr(self, name, nn.Linear(24, 24))
        self.act = ReluSquared()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.a(x))
        x = torch.square(torch.relu(self.b(x)))
        x = F.relu(self.c(x)).square()
        x = F.relu(self.d(x)) ** 2
        x = F.relu(self.cube(x)) ** 3
        positive = F.relu(self.shared(x))
        return positive * positive


class GatedMlp(nn.Module):
    """The feed-forward part of Llama, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(24, 48), nn.Linear(24, 48), nn.Linear(48, 24)
        self.act = nn.SiLU()
        self.head, self.gelu = nn.Linear(24, 24), Gelu()

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.down(self.act(self.gate(x)) * self.up(x))
        return self.gelu(self.head(y))


def resnet() -> nn.Sequential:
    body = [BasicBlock(8, 8), BasicBlock(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    stem = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    return trained(nn.Sequential(*stem, *body, nn.Linear(16, 10), nn.GELU("tanh")))


def trained(model: nn.Module) -> nn.Module:
    """In evaluation mode, with statistics that a BatchNorm may have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model.eval()


def same(fused: nn.Module, model: nn.Module, x: Tensor) -> None:
    """Equal in float64, where rounding is nine orders below any error of the algebra."""
    got, want = fused(x.double()), model(x.double())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-11 * max(want.abs().max().item(), 1))


def fusions(model: nn.Module) -> dict[str, str]:
    return {
        name: module.gossamer_fusion
        for name, module in model.named_modules()
        if hasattr(module, "gossamer_fusion")
    }


@pytest.mark.parametrize(
    "make",
    [
        resnet,
        lambda: trained(TwoRoads()),
        lambda: trained(Padded()),
        lambda: GatedMlp().eval(),
        lambda: SquaredMlp().eval(),
    ],
)
@torch.no_grad()
def test_a_fused_model_computes_the_same(make) -> None:
    torch.manual_seed(0)
    model = make().double()
    first = next(model.parameters())
    x = torch.randn(2, first.shape[1], 9, 9) if first.dim() == 4 else torch.randn(3, 5, 24)
    fused = gs.fuse_(copy.deepcopy(model))
    assert any(text.startswith("fused:") for text in fusions(fused).values())
    same(fused, model, x)
    same(copy.deepcopy(fused), model, x)
    same(gs.fuse_(fused), model, x)


@torch.no_grad()
def test_what_is_fused_is_told() -> None:
    found = fusions(gs.fuse_(resnet()))
    assert found["0"] == "fused: BatchNorm '1', relu"
    assert found["3.conv1"] == "fused: BatchNorm 'bn1', relu"
    assert found["4.conv2"] == "fused: BatchNorm 'bn2', residual, relu"
    assert found["4.downsample.0"] == "fused: BatchNorm '1'"
    assert found["7"] == "fused: gelu_tanh"
    two = fusions(gs.fuse_(trained(TwoRoads())))
    assert two["a"] == "fused: BatchNorm 'norm', residual, silu"
    assert two["b"].startswith("nothing fused")
    assert fusions(gs.fuse_(trained(Padded()))) == {"layer": "fused: BatchNorm 'norm'"}
    mlp = gs.fuse_(GatedMlp().eval())
    assert fusions(mlp)["gate"] == "fused: silu"
    assert fusions(mlp)["down"] == "fused: residual"
    assert fusions(mlp)["head"] == "fused: gelu"
    assert "fused: silu" in str(gs.explain(mlp))
    squared = fusions(gs.fuse_(SquaredMlp().eval()))
    assert [squared[name] for name in "abcd"] == ["fused: relu2"] * 4
    assert squared["cube"] == squared["shared"] == "fused: relu"


@pytest.mark.parametrize("order", ["fuse first", "pack first"])
@torch.no_grad()
def test_packed_layers_run_their_epilogue(order: str) -> None:
    torch.manual_seed(1)
    model = resnet()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            prune_(module.weight.flatten(1))
    fused = copy.deepcopy(model)
    steps = [gs.fuse_, lambda m: gs.sparsify_(m, layout=GENERIC)]
    for step in steps if order == "fuse first" else reversed(steps):
        step(fused)
    layers = [m for m in fused.modules() if isinstance(m, (FusedConv2d, FusedLinear))]
    assert len(layers) == 7
    assert all(isinstance(layer.weight, gs.SparseWeight) for layer in layers)
    for layer in layers[:-1]:
        x = torch.randn(2, layer.in_channels, 9, 9)
        plain = F.conv2d(x, layer.weight.to_dense(), None, layer.stride, layer.padding)
        residual = torch.randn_like(plain)
        want = F.conv2d(
            x.double(), layer.weight.to_dense().double(), layer.bias.double(), layer.stride,
            layer.padding,
        ) + residual.double()  # fmt: skip
        want = want.relu() if layer.gossamer_epilogue else want
        # K products, the bias and the residual: K + 2 roundings at most of each term's size, in
        # any order (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1).
        count = layer.weight.in_features + 2
        gamma = count * UNIT / (1 - count * UNIT)
        size = F.conv2d(
            x.double().abs(), layer.weight.to_dense().double().abs(), layer.bias.double().abs(),
            layer.stride, layer.padding,
        ) + residual.double().abs()  # fmt: skip
        assert ((layer(x, residual).double() - want).abs() <= gamma * size).all()
        # A residual of another shape is broadcast, as it was.
        other = layer(x, residual[:1, :, :1, :1])
        assert other.shape == plain.shape
    x = torch.randn(2, 3, 9, 9)
    want = model.double()(x.double())
    torch.testing.assert_close(fused(x).double(), want, rtol=0, atol=1e-4 * want.abs().max())


def linear_relu() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()).eval()


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        gs.fuse_(resnet().train())
    with pytest.raises(TypeError, match="fuse_: model is a int"):
        gs.fuse_(3)
    fused = gs.fuse_(trained(BasicBlock(8, 8)))
    with pytest.raises(RuntimeError, match="was fused for evaluation"):
        fused.train()(torch.randn(1, 8, 4, 4))


def test_hooks_and_shared_layers_stay() -> None:
    model = linear_relu()
    seen = []
    model[0].register_forward_hook(lambda module, args, y: seen.append(y))
    model[3].register_forward_hook(lambda module, args, y: seen.append(y))
    gs.fuse_(model)
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]
    assert "it has hooks" in fusions(model)["0"]
    model = linear_relu()
    model[2] = model[0]
    assert "more than one place" in fusions(gs.fuse_(model))["0"]
    model = linear_relu()
    model[2].weight = model[0].weight
    assert set(fusions(gs.fuse_(model)).values()) == {"nothing fused: its weight is shared"}


def test_a_norm_without_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert "no running statistics" in fusions(gs.fuse_(model))["0"]
    assert type(model[1]) is nn.BatchNorm2d


class Tapped(nn.Module):
    """Walks over a Sequential and keeps what is between its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = linear_relu()

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = []
        for layer in self.features:
            x = layer(x)
            kept.append(x)
        return kept


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        return F.relu(y if scale is None else y * scale)


class Typed(Optional):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.relu(self.layer(x)) if isinstance(x, Tensor) else self.layer(x[0])


class Late(Optional):
    """Changes its input after the layer has read it."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = self.layer(x)
        x.mul_(2)
        return F.relu(y + x)


@pytest.mark.parametrize("kind", [Tapped, Optional, Typed, Late])
@torch.no_grad()
def test_what_cannot_be_read_is_left_alone(kind: type[nn.Module]) -> None:
    model = kind().eval()
    x = torch.randn(3, 8)
    want = model(x.clone())
    fused = gs.fuse_(copy.deepcopy(model))
    assert all(text.startswith("nothing fused: ") for text in fusions(fused).values())
    torch.testing.assert_close(fused(x.clone()), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("activation", "code"),
    [
        (nn.ReLU(), 1),
        (nn.GELU(), 2),
        (nn.GELU("tanh"), 3),
        (nn.SiLU(), 4),
        (nn.Tanh(), 0),
        (ReluSquared(), 5),
    ],
)
@torch.no_grad()
def test_the_pass_under_compile(activation: nn.Module, code: int) -> None:
    torch.manual_seed(2)
    torch.compiler.reset()
    model = nn.Sequential(nn.Linear(32, 48), activation, nn.Linear(48, 8)).eval()
    for layer in (model[0], model[2]):
        prune_(layer.weight)
    gs.sparsify_(model, layout=GENERIC)
    codes = []

    def note(graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            if node.target is torch.ops.gossamer.linear.default:
                codes.append(node.args[6] if len(node.args) > 6 else 0)

    x = torch.randn(5, 32)
    options = {"pre_grad_custom_pass": gs.fusion_pass, "post_grad_custom_post_pass": note}
    got = torch.compile(model, options=options, fullgraph=True)(x)
    assert codes == [code, 0]
    # The kernel's activation and torch's differ by a few units in the last place of values below
    # four; the second layer sums 48 of them with weights below one.
    torch.testing.assert_close(got, model(x), rtol=0, atol=(48 + 2) * 4 * UNIT)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_batchnorm_behind_a_linear(packed: bool, bias: bool) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Linear(40, 24, bias=bias), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 6)
    ).eval()
    norm = model[1]
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    norm.weight.data.normal_()
    norm.bias.data.normal_()
    prune_(model[0].weight)
    x = torch.randn(7, 40)
    exact = copy.deepcopy(model).double()
    expected = exact(x.double())
    scale = (exact[1].weight / (exact[1].running_var + exact[1].eps).sqrt()).abs()
    shift = exact[1].running_mean.abs() * scale + exact[1].bias.abs()
    if packed:
        gs.sparsify_(model, layout=GENERIC)
    gs.fuse_(model)
    assert type(model[1]) is nn.Identity
    assert type(model[2]) is nn.Identity
    assert "BatchNorm '1', relu" in gs.explain(model)["0"].reason
    # n products and n sums of relative error UNIT, and a folded value is rounded once.
    size = x.double().abs() @ exact[0].weight.abs().mT * scale + shift
    size = size if not bias else size + exact[0].bias.abs() * scale
    error = (40 + 3) * UNIT * size @ exact[3].weight.abs().mT
    error += (24 + 2) * UNIT * (size @ exact[3].weight.abs().mT + exact[3].bias.abs())
    assert bool(((model(x).double() - expected).abs() <= error).all())
    with pytest.raises(ValueError, match="a BatchNorm1d was folded into this layer"):
        model(torch.randn(2, 7, 40))
    with pytest.raises(ValueError, match="a BatchNorm1d was folded into this layer"):
        model(torch.randn(40))
