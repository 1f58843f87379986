# SPDX-License-Identifier: BSD-3-Clause
"""`fuse_` on blocks as torchvision, timm and Hugging Face write them: nothing is left to fuse."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gossamer as gs
from sparsify_helpers import close


def conv3x3(inputs: int, out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, 3, stride=stride, padding=1, bias=False)


class VisionBottleneck(nn.Module):
    """torchvision.models.resnet.Bottleneck."""

    expansion = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = norm_layer(planes)
        self.conv2 = conv3x3(planes, planes, stride)
        self.bn2 = norm_layer(planes)
        self.conv3 = nn.Conv2d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        identity = x

        out = self.conv1(x)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)
        out = self.relu(out)

        out = self.conv3(out)
        out = self.bn3(out)

        if self.downsample is not None:
            identity = self.downsample(x)

        out += identity
        out = self.relu(out)

        return out


class VisionResNet(nn.Module):
    """torchvision.models.ResNet: a stem, a stage, and a forward that calls another method."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        shortcut = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.layer1 = nn.Sequential(
            VisionBottleneck(8, 4, downsample=shortcut), VisionBottleneck(16, 4)
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 5)

    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)
        x = self.layer1(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        x = self.fc(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self._forward_impl(x)


class TimmBasicBlock(nn.Module):
    """timm.models.resnet.BasicBlock with its places for parts that most models leave out."""

    def __init__(self, planes: int, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = conv3x3(planes, planes)
        self.bn1 = nn.BatchNorm2d(planes)
        self.drop_block = nn.Identity()
        self.act1 = nn.ReLU(inplace=True)
        self.aa = None
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.se = None
        self.act2 = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.drop_path = None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x

        x = self.conv1(x)
        x = self.bn1(x)
        x = self.drop_block(x)
        x = self.act1(x)
        if self.aa is not None:
            x = self.aa(x)

        x = self.conv2(x)
        x = self.bn2(x)

        if self.se is not None:
            x = self.se(x)

        if self.drop_path is not None:
            x = self.drop_path(x)

        if self.downsample is not None:
            shortcut = self.downsample(shortcut)
        x += shortcut
        x = self.act2(x)

        return x


class DropPath(nn.Module):
    """timm.layers.DropPath."""

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_prob == 0.0 or not self.training:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(1 - self.drop_prob)
        return x * keep


class TimmMlp(nn.Module):
    """timm.layers.Mlp."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.drop1 = nn.Dropout(0.1)
        self.norm = nn.Identity()
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        x = self.act(x)
        x = self.drop1(x)
        x = self.norm(x)
        x = self.fc2(x)
        x = self.drop2(x)
        return x


class NewGELUActivation(nn.Module):
    """transformers.activations.NewGELUActivation."""

    def forward(self, input: Tensor) -> Tensor:
        return (
            0.5
            * input
            * (
                1.0
                + torch.tanh(math.sqrt(2.0 / math.pi) * (input + 0.044715 * torch.pow(input, 3.0)))
            )
        )


class BertIntermediate(nn.Module):
    """transformers' BertIntermediate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, hidden)
        self.intermediate_act_fn = nn.functional.gelu

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.intermediate_act_fn(hidden_states)
        return hidden_states


class BertOutput(nn.Module):
    """transformers' BertOutput: the residual comes behind a Dropout."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, width)
        self.LayerNorm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        hidden_states = self.dense(hidden_states)
        hidden_states = self.dropout(hidden_states)
        hidden_states = self.LayerNorm(hidden_states + input_tensor)
        return hidden_states


class BertFeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.intermediate = BertIntermediate(12, 24)
        self.output = BertOutput(24, 12)

    def forward(self, attention_output: Tensor) -> Tensor:
        intermediate_output = self.intermediate(attention_output)
        layer_output = self.output(intermediate_output, attention_output)
        return layer_output


class LlamaMlp(nn.Module):
    """transformers' LlamaMLP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(12, 24, bias=False)
        self.up_proj = nn.Linear(12, 24, bias=False)
        self.down_proj = nn.Linear(24, 12, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        down_proj = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return down_proj


class Gpt2LikeMlp(nn.Module):
    """An MLP with the tanh approximation written out, as GPT-2's and BigBird's."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(12, 24)
        self.c_proj = nn.Linear(24, 12)
        self.act = NewGELUActivation()
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor | None) -> Tensor:
        hidden_states = self.c_fc(hidden_states)
        hidden_states = self.act(hidden_states)
        hidden_states = self.c_proj(hidden_states)
        hidden_states = self.dropout(hidden_states)
        return hidden_states


class ViTBlock(nn.Module):
    """timm.models.vision_transformer.Block without its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(12)
        self.mlp = TimmMlp(12, 24)
        self.ls2 = nn.Identity()
        self.drop_path2 = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return x


IMAGE, ROWS = (2, 3, 32, 32), (2, 5, 12)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, str]]] = {
    "torchvision resnet": (
        VisionResNet,
        IMAGE,
        {
            "conv1": "BatchNorm 'bn1', relu",
            "layer1.0.conv1": "BatchNorm 'bn1', relu",
            "layer1.0.conv2": "BatchNorm 'bn2', relu",
            "layer1.0.conv3": "BatchNorm 'bn3', residual, relu",
            "layer1.0.downsample.0": "BatchNorm '1'",
            "layer1.1.conv3": "BatchNorm 'bn3', residual, relu",
        },
    ),
    "timm basic block": (
        lambda: TimmBasicBlock(8),
        (2, 8, 6, 6),
        {"conv1": "BatchNorm 'bn1', relu", "conv2": "BatchNorm 'bn2', residual, relu"},
    ),
    "timm basic block with a shortcut": (
        lambda: TimmBasicBlock(8, nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))),
        (2, 8, 6, 6),
        {"conv2": "BatchNorm 'bn2', residual, relu", "downsample.0": "BatchNorm '1'"},
    ),
    "timm mlp": (lambda: TimmMlp(12, 24), ROWS, {"fc1": "gelu"}),
    "vit block": (ViTBlock, ROWS, {"mlp.fc1": "gelu"}),
    "bert feed forward": (
        BertFeedForward,
        ROWS,
        {"intermediate.dense": "gelu", "output.dense": "residual"},
    ),
    "llama mlp": (LlamaMlp, ROWS, {"gate_proj": "silu"}),
    "gpt-2-like mlp": (Gpt2LikeMlp, ROWS, {"c_fc": "gelu_tanh"}),
}


def with_statistics(model: nn.Module) -> nn.Module:
    """Running statistics and affine parameters that are not those of a new module."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_everything_is_fused_and_computes_the_same(name: str) -> None:
    make, shape, wanted = CASES[name]
    model = with_statistics(make())
    fused = gs.fuse_(copy.deepcopy(model))
    x = torch.randn(shape)
    close(fused(x), model, x)
    reports = gs.explain(fused)
    for layer, what in wanted.items():
        assert f"fused: {what}" in reports[layer].reason, reports[layer].reason
    gs.sparsify_(fused, "unstructured", layout="format")
    assert any(isinstance(p, gs.SparseWeight) for p in fused.parameters())
    close(fused(x), model, x)


class WrittenSilu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class WrittenGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0)))


class QuickGelu(nn.Module):
    """CLIP's, which is another function."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class NearGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(0.79788 * (x + 0.044715 * torch.pow(x, 3.0))))


class WithActivation(nn.Module):
    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.fc(x))


@pytest.mark.parametrize(
    ("act", "fused"),
    [(WrittenSilu, "silu"), (WrittenGelu, "gelu"), (QuickGelu, None), (NearGelu, None)],
)
def test_formulas_that_are_written_out(act: type[nn.Module], fused: str | None) -> None:
    model = WithActivation(act()).eval()
    x = 4 * torch.randn(50, 8)
    want = model(x)
    gs.fuse_(model)
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-6)
    reason = gs.explain(model)["fc"].reason
    assert (f"fused: {fused}" if fused else "nothing fused") in reason


def test_a_dropout_is_there_again_in_training_mode() -> None:
    """A fused forward refuses it; a Sequential, whose forward stays torch's, keeps its Dropout."""
    fused = gs.fuse_(BertFeedForward().eval())
    fused.train()
    with pytest.raises(RuntimeError, match="training mode"):
        fused(torch.randn(2, 5, 12))
    stack = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.ReLU()).eval()
    gs.fuse_(stack)
    assert type(stack[1]) is nn.Dropout
    assert type(stack[2]) is nn.ReLU
