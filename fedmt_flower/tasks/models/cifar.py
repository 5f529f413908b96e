"""The paper's models (§ VI-A) in CIFAR form.

Each is torchvision's class, for images of 32×32 pixels (28×28 also fit): the stem is a 3×3 convolution of
stride 1 and there is no pooling before the first block, so that the last feature map has 4×4 pixels, not
one. Sizes are those of the `state_dict` with ten classes and three channels.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vgg import cfgs, make_layers


def _stem(channels: int, width: int, *, bias: bool = False) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, width, kernel_size=3, stride=1, padding=1, bias=bias)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _resnet(
    block: type[BasicBlock | Bottleneck], depths: list[int], num_classes: int, in_channels: int
) -> nn.Module:
    model: nn.Module = ResNet(block, depths, num_classes=num_classes)
    model.conv1 = _stem(in_channels, 64)
    model.maxpool = nn.Identity()
    return model


def resnet18(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-18, 45 MB."""
    return _resnet(BasicBlock, [2, 2, 2, 2], num_classes, in_channels)


def resnet34(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-34, 85 MB."""
    return _resnet(BasicBlock, [3, 4, 6, 3], num_classes, in_channels)


def resnet50(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-50, 94 MB."""
    return _resnet(Bottleneck, [3, 4, 6, 3], num_classes, in_channels)


def resnet101(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ResNet-101, 170 MB."""
    return _resnet(Bottleneck, [3, 4, 23, 3], num_classes, in_channels)


def vgg16(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """VGG-16 with BatchNorm and a linear classifier, 59 MB.

    The two hidden layers of 4096 units, made for 7×7 feature maps, would be nine tenths of the model.
    """
    features: nn.Sequential = make_layers(cfgs["D"], batch_norm=True)
    features[0] = nn.Conv2d(in_channels, 64, kernel_size=3, padding=1)
    features[-1] = nn.MaxPool2d(2, ceil_mode=True)  # the same for 32×32 pixels, and fits 28×28
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512, num_classes))


def densenet121(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """DenseNet-121, 28 MB."""
    model: nn.Module = models.densenet121(num_classes=num_classes)
    features = _at(model, "features")
    features.conv0 = _stem(in_channels, 64)
    features.pool0 = nn.Identity()
    return model


def mobilenet_v3_large(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """MobileNetV3-Large, 17 MB; its first strided block keeps the resolution too."""
    model: nn.Module = models.mobilenet_v3_large(num_classes=num_classes)
    _at(model, "features.0")[0] = _stem(in_channels, 16)
    for layer in _at(model, "features.2").modules():
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            # torchvision's 0.01 averages over more steps than a short federation has: after 110 steps the
            # model was right in 10 % of cases, with the statistics of its data in 59 %.
            layer.momentum = 0.1
    return model


def shufflenet_v2(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """ShuffleNetV2 ×1.5, 10 MB."""
    model: nn.Module = models.shufflenet_v2_x1_5(num_classes=num_classes)
    _at(model, "conv1")[0] = _stem(in_channels, 24)
    model.maxpool = nn.Identity()
    return model


def alexnet(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """AlexNet with hidden layers of 1024 units, 24 MB."""
    widths = (64, 192, 384, 256, 256)
    features: list[nn.Module] = [_stem(in_channels, widths[0], bias=True), nn.ReLU(inplace=True)]
    for before, after, kernel in zip(widths, widths[1:], (5, 3, 3, 3), strict=False):
        if before in widths[:2]:
            features.append(nn.MaxPool2d(3, stride=2))
        features += [nn.Conv2d(before, after, kernel, padding=kernel // 2), nn.ReLU(inplace=True)]
    return nn.Sequential(
        *features,
        nn.AdaptiveMaxPool2d(3),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(256 * 3 * 3, 1024),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(1024, 1024),
        nn.ReLU(inplace=True),
        nn.Linear(1024, num_classes),
    )


def _at(parent: nn.Module, name: str) -> nn.Sequential:
    return cast(nn.Sequential, parent.get_submodule(name))
