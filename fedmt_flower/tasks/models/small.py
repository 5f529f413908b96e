"""Small models for small data."""

from __future__ import annotations

from torch import nn


def lenet(num_classes: int = 10, in_channels: int = 1) -> nn.Module:
    """LeNet-5 for images of 28×28 or 32×32 pixels."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 6, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(5),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, num_classes),
    )


def cnn(num_classes: int = 10, in_channels: int = 1, width: int = 32) -> nn.Module:
    """Two pairs of convolutions with BatchNorm, for images from 8×8 pixels."""

    def pair(before: int, after: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for channels in (before, after):
            layers += [nn.Conv2d(channels, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        return [*layers, nn.MaxPool2d(2)]

    return nn.Sequential(
        *pair(in_channels, width),
        *pair(width, 2 * width),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 4, num_classes),
    )


def mlp(in_features: int = 10, out_features: int = 1, hidden: int = 64, dropout: float = 0.0) -> nn.Module:
    """Two hidden layers of `hidden` units, each followed by `dropout`."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_features, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(hidden, out_features),
    )


def autoencoder(in_features: int = 30, code: int = 6, hidden: int = 64) -> nn.Module:
    """From `in_features` to `code` numbers and back, each way by a hidden layer; outputs are flat."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(in_features, hidden),
        nn.ReLU(),
        nn.Linear(hidden, code),
        nn.Linear(code, hidden),
        nn.ReLU(),
        nn.Linear(hidden, in_features),
    )
