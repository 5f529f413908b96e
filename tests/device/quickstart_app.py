"""The functions of an ordinary Flower app, as its template writes them, and some that go wrong."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

Split = tuple[Tensor, Tensor]
LOADED: list[int] = []


class Net(nn.Module):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(4, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 3)
        )
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        return self.layers(x) + 0.01 * self.calls


def samples(partition_id: int, n: int = 97) -> Split:
    generator = torch.Generator().manual_seed(partition_id)
    x = torch.randn(n, 4, generator=generator)
    return x, (x[:, 0] > 0).long()


def load_data(partition_id: int, num_partitions: int, batch_size: int) -> tuple[Any, Any]:
    LOADED.append(partition_id)
    data = TensorDataset(*samples(partition_id, 96))
    generator = torch.Generator().manual_seed(num_partitions)
    trainloader = DataLoader(data, batch_size, shuffle=True, generator=generator)
    return trainloader, DataLoader(data, batch_size)


def load_tensors(partition_id: int = 0) -> tuple[Split, Split]:
    split = samples(partition_id)
    return split, split


def load_much_to_judge() -> tuple[Split, Split]:
    return samples(0), samples(1, 600)


class Rows(Dataset[Any]):
    """A data set that is not in memory, with a transform from the global generator of numpy."""

    def __init__(self, n: int = 33) -> None:
        self.x, self.y = samples(0, n)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + float(np.random.normal(scale=0.01)), self.y[i]


def load_rows() -> tuple[Rows, Rows]:
    return Rows(), Rows()


def load_nothing() -> tuple[Split, Split]:
    return samples(0, 0), samples(0)


def load_three() -> tuple[Split, Split, int]:
    return samples(0), samples(0), 97


def train(net: nn.Module, trainloader: Any, epochs: int, lr: float, device: torch.device) -> float:
    net.to(device)
    assert net.training
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    total = 0.0
    for _ in range(epochs):
        for x, y in trainloader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x.to(device)), y.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(trainloader) / epochs


def train_at(
    net: nn.Module, trainloader: Any, batch_size: int = 32, learning_rate: float = 0.5, epochs: int = 1
) -> float:
    """Train as `train` does, at defaults of its own."""
    assert trainloader.batch_size == batch_size
    return train(net, trainloader, epochs, learning_rate, torch.device("cpu"))


def test(net: nn.Module, testloader: Any, device: torch.device) -> tuple[float, float]:
    assert not net.training
    loss, correct, n = 0.0, 0, 0
    with torch.no_grad():
        for x, y in testloader:
            scores = net(x.to(device))
            loss += nn.functional.cross_entropy(scores, y).item() * len(y)
            correct += int((scores.argmax(1) == y).sum())
            n += len(y)
    return loss / n, correct / n


def train_exits(net: nn.Module, data: Any) -> None:
    sys.exit(3)


def train_nan(net: nn.Module, data: Any) -> float:
    return float("nan")


def train_text(net: nn.Module, data: Any) -> str:
    return "well"


class Countdown:
    """A stepped trainer of the user's own: it counts its steps in the weights."""

    def __init__(self, steps: int = 3) -> None:
        self.left = steps

    def setup(self, model: nn.Module, data: Split, config: dict[str, Any], device: torch.device) -> None:
        self.model, self.data, self.config = model, data, config

    def step(self) -> int:
        if self.left == 0:
            return 0
        self.left -= 1
        with torch.no_grad():
            for weight in self.model.parameters():
                weight += 1
        return 5

    def metrics(self) -> dict[str, float]:
        return {"left": self.left, "round": self.config["round"]}
