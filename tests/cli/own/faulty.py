"""Tasks that go wrong, each in its own way, beside one that does not."""

from __future__ import annotations

import math
import os
import signal
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

Loader = DataLoader[tuple[torch.Tensor, ...]]


def model() -> nn.Module:
    return nn.Linear(4, 2)


def data(seed: int) -> tuple[Loader, Loader]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(32, 4, generator=generator)
    labels = (inputs.sum(1) > 0).long()
    return DataLoader(TensorDataset(inputs, labels), batch_size=8), DataLoader(TensorDataset(inputs, labels))


def empty() -> tuple[list[int], list[int]]:
    return [], []


def train(net: nn.Module, loader: Loader) -> dict[str, float]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    loss = torch.zeros(())
    for inputs, labels in loader:
        loss = nn.functional.cross_entropy(net(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"train_loss": float(loss.detach())}


def raises(net: nn.Module, loader: Loader) -> None:
    raise ValueError("the ward is closed")


def diverges(net: nn.Module, loader: Loader) -> None:
    with torch.no_grad():
        next(net.parameters()).fill_(math.nan)


def reshapes(net: nn.Linear, loader: Loader) -> None:
    net.weight = nn.Parameter(torch.zeros(3, 4))


def hangs(net: nn.Module, loader: Loader) -> None:
    time.sleep(3600)


def dies_once(net: nn.Module, loader: Loader, server_round: int) -> dict[str, float]:
    """As if somebody killed the worker in the middle of round 1."""
    if server_round == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return train(net, loader)
