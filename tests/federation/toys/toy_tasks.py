"""Small models and data of unequal volumes, named by import path in the tests of this folder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_VOLUMES = (24, 40, 64)


def classifier() -> nn.Module:
    """With BatchNorm, whose state has an integer without dimensions."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def regressor() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


def autoencoder() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 2), nn.Linear(2, 7))


def labelled(partition_id: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    inputs = _inputs(partition_id, 6)
    return _halves(inputs, inputs[:, :3].argmax(dim=1))


def valued(partition_id: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    inputs = _inputs(partition_id, 5)
    return _halves(inputs, inputs.sum(dim=1, keepdim=True))


def plain(partition_id: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    inputs = _inputs(partition_id, 7)
    return _halves(inputs, inputs)


def raising(model: nn.Module, data: object) -> None:
    raise RuntimeError("the disk is on fire")


def _inputs(partition_id: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(partition_id)
    return torch.randn(_VOLUMES[partition_id] + 8, width, generator=generator)


def _halves(inputs: Tensor, targets: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return (inputs[:-8], targets[:-8]), (inputs[-8:], targets[-8:])
