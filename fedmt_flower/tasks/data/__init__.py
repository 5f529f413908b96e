"""The built-in data, whole or one site's share of it, as tensors in memory."""

from __future__ import annotations

from fedmt_flower.tasks.data.images import cifar10, cifar100, fashion_mnist
from fedmt_flower.tasks.data.synthetic import synthetic
from fedmt_flower.tasks.data.tables import breast_cancer, diabetes, digits, wine

__all__ = [
    "breast_cancer",
    "cifar10",
    "cifar100",
    "diabetes",
    "digits",
    "fashion_mnist",
    "synthetic",
    "wine",
]
