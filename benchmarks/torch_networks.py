"""Two networks for the benchmark of bncore.torch, of torch.nn's modules alone, with random weights.

ResNet-50 (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1) and one in
the way of MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks",
CVPR 2018, table 2).  Their activations work in place, as people write them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import bncore.torch

KINDS = {
    "torch": "PyTorch",
    "convert": "after `convert`",
    "fused": "after `convert(fuse=True)`",
    "in place": "after `convert(fuse=True, in_place=True)`",
}
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, first stride
INVERTED = (  # expansion, channels, blocks, first stride
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def normalized(channels: int) -> list[nn.Module]:
    """Batch norm and ReLU."""
    return [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with batch norm, and a shortcut."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.main = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            *normalized(width),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            *normalized(width),
            nn.Conv2d(width, outputs, 1, bias=False),
        )
        self.last = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.append(nn.Conv2d(inputs, outputs, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(outputs))

        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> Any:
        y: torch.Tensor = self.last(self.main(x))
        y += self.shortcut(x)
        return self.relu(y)


class Inverted(nn.Module):
    """A 1x1 convolution to more channels, one of each channel alone, and a 1x1 one back."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = expansion * inputs
        parts: list[nn.Module] = []
        if expansion > 1:
            parts += [nn.Conv2d(inputs, width, 1, bias=False), *normalized(width)]
        parts += [
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            *normalized(width),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        self.main = nn.Sequential(*parts)
        self.joined = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.main(x)
        return x + y if self.joined else y


def resnet50(stages: int = len(STAGES)) -> nn.Sequential:
    """Make a ResNet-50; fewer stages are its beginning, with a smaller last layer."""
    parts = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), *normalized(64), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, blocks, stride in STAGES[:stages]:
        for block in range(blocks):
            parts.append(Bottleneck(inputs, width, 1 if block else stride))
            inputs = 4 * width
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def mobilenet(stages: int = len(INVERTED)) -> nn.Sequential:
    """Make a network like MobileNetV2, with ReLU where the paper has ReLU6."""
    parts = [nn.Conv2d(3, 32, 3, 2, 1, bias=False), *normalized(32)]
    inputs = 32
    for expansion, channels, blocks, stride in INVERTED[:stages]:
        for block in range(blocks):
            parts.append(Inverted(inputs, channels, 1 if block else stride, expansion))
            inputs = channels
    parts += [nn.Conv2d(inputs, 1280, 1, bias=False), *normalized(1280)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def leaky(stages: int = len(STAGES)) -> nn.Sequential:
    """Make a ResNet-50 with leaky ReLUs of slope 0.01, which can be inverted."""
    made = resnet50(stages)
    for module in list(made.modules()):
        for name, inner in module.named_children():
            if isinstance(inner, nn.ReLU):
                setattr(module, name, nn.LeakyReLU(0.01, inplace=True))
    return made


NETWORKS = {"resnet50": resnet50, "mobilenet_v2": mobilenet, "resnet50_leaky": leaky}


def network(name: str, kind: str, stages: int | None = None) -> nn.Module:
    """Make one of NETWORKS with the batch norm of one of KINDS; all kinds get the same weights."""
    torch.manual_seed(0)
    make = NETWORKS[name]
    made = make() if stages is None else make(stages)
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if kind == "torch":
        return made
    example = torch.zeros(2, 3, 64, 64) if kind in ("fused", "in place") else None
    return bncore.torch.convert(
        made, fuse=example is not None, example=example, in_place=kind == "in place"
    )
