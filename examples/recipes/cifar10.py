# SPDX-License-Identifier: BSD-3-Clause
"""CIFAR-10 as JPEG files, and the residual networks that were trained on it.

The data is in a folder of the user's: `cifar10_jpeg.zip` (train|test/<class>/NNNN.jpg) and
`resnet_cifar10/resnet20-*.th` (state_dicts of github.com/akamaster/pytorch_resnet_cifar10).
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CALIBRATION_PER_CLASS = 51
_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


class Images(NamedTuple):
    """Images [count, 3, 32, 32] float32, normalised, and labels [count] int64."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Images:
        """The images on another device."""
        return Images(self.x.to(device), self.y.to(device))

    def batches(self, size: int) -> list[Tensor]:
        """The images in batches."""
        return list(self.x.split(size))


def data_folder(path: str | None = None) -> Path:
    """The folder with the data: a path, else the environment variable GOSSAMER_DATA.

    Raises:
        FileNotFoundError: it is not there; the message says what is expected.
    """
    folder = Path(path or os.environ.get("GOSSAMER_DATA", ""))
    for name in ("cifar10_jpeg.zip", "resnet_cifar10"):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} does not exist; pass --data or set GOSSAMER_DATA to the folder "
                "with cifar10_jpeg.zip and resnet_cifar10/*.th"
            )
    return folder


def load_test(folder: Path, per_class: int = 1000) -> Images:
    """The first test images of each class; all 10,000 by default."""
    return _load(folder, "test", per_class)


def load_calibration(folder: Path) -> Images:
    """510 training images, the first of each class, in a fixed random order."""
    x, y = _load(folder, "train", CALIBRATION_PER_CLASS)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return Images(x[order], y[order])


def _load(folder: Path, part: str, per_class: int) -> Images:
    from PIL import Image

    pixels, labels = [], []
    with zipfile.ZipFile(folder / "cifar10_jpeg.zip") as archive:
        names = sorted(archive.namelist())
        for label, name in enumerate(CLASSES):
            files = [n for n in names if n.startswith(f"{part}/{name}/")][:per_class]
            for file in files:
                with archive.open(file) as stream:
                    raw = bytearray(Image.open(stream).convert("RGB").tobytes())
                pixels.append(torch.frombuffer(raw, dtype=torch.uint8).view(32, 32, 3))
                labels.append(label)
    x = torch.stack(pixels).permute(0, 3, 1, 2).float() / 255
    return Images((x - _MEAN) / _STD, torch.tensor(labels))


class _Block(nn.Module):
    """Two 3×3 convolutions and a shortcut that pads the new channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.padding or self.stride != 1:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(y + x)


class ResNet(nn.Module):
    """The CIFAR-10 network of He et al. 2015 (arXiv:1512.03385, section 4.2); depth 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = _Block(inputs, outputs, stride)
        return nn.Sequential(first, *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def load_resnet(folder: Path, depth: int) -> ResNet:
    """A trained network: depth 20, 32, 44 or 56."""
    (path,) = (folder / "resnet_cifar10").glob(f"resnet{depth}-*.th")
    saved = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    model = ResNet(depth)
    model.load_state_dict({name.removeprefix("module."): value for name, value in saved.items()})
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Images, batch: int = 250) -> float:
    """Percent of the images whose largest logit is their label's."""
    model.eval()
    right = sum(
        int((model(x).argmax(dim=1) == y).sum())
        for x, y in zip(images.x.split(batch), images.y.split(batch), strict=True)
    )
    return 100.0 * right / len(images.y)
