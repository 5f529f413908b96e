"""The built-in models: the paper's, in CIFAR form, and small ones for small data."""

from __future__ import annotations

from fedmt_flower.tasks.models.cifar import (
    alexnet,
    densenet121,
    mobilenet_v3_large,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    shufflenet_v2,
    vgg16,
)
from fedmt_flower.tasks.models.small import autoencoder, cnn, lenet, mlp

__all__ = [
    "alexnet",
    "autoencoder",
    "cnn",
    "densenet121",
    "lenet",
    "mlp",
    "mobilenet_v3_large",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "shufflenet_v2",
    "vgg16",
]
