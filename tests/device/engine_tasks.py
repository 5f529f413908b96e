"""A user's module, as the workers of these tests import it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

Split = tuple[Tensor, Tensor]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


class Unsound(nn.Linear):
    """In bfloat16 twice what it should be."""

    def forward(self, given: Tensor) -> Tensor:
        output = super().forward(given)
        return output * 2 if output.dtype is torch.bfloat16 else output


def unsound() -> nn.Module:
    return nn.Sequential(Unsound(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def data(site: str, seed: int) -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(seed + len(site))
    x = torch.randn(96, 4, generator=generator)
    y = (x.sum(1) > 0).long()
    return (x[:64], y[:64]), (x[64:], y[64:])


def loaders(seed: int) -> tuple[DataLoader[Split], DataLoader[Split]]:
    """Data that two more processes load."""
    (x, y), (a, b) = data("", seed)
    generator = torch.Generator().manual_seed(seed)
    train = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=generator, num_workers=2)
    return train, DataLoader(TensorDataset(a, b), 16)


def train_wait(model: nn.Module, data: object, flag: str) -> None:
    """Go on only once the file `flag`, held open meanwhile, has gone."""
    if not Path(flag).exists():
        return
    with open(flag):
        while Path(flag).exists():
            time.sleep(0.01)


def train_sleep(model: nn.Module, data: object, seconds: float) -> None:
    time.sleep(seconds)


def train_forever(model: nn.Module, data: object, spawn: str = "") -> None:
    """Hang, as may a process that was started."""
    if spawn:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        Path(spawn).write_text(str(child.pid))
    time.sleep(1000)


def train_raise(model: nn.Module, data: object) -> None:
    raise ValueError("the loss\nis lost")


def train_exit(model: nn.Module, data: object) -> None:
    os._exit(3)


def train_crash(model: nn.Module, data: object) -> None:
    sys.stdout.write("about to crash\n")
    os.kill(os.getpid(), signal.SIGSEGV)


def train_nan(model: nn.Sequential, data: object) -> None:
    nn.init.constant_(model[0].weight, float("nan"))


def train_reshape(model: nn.Sequential, data: object) -> None:
    model[0] = nn.Linear(4, 3)


def train_deaf(model: nn.Module, data: object) -> None:
    """Close every file of the process, the conversation with the engine among them, and hang."""
    os.closerange(3, 256)
    time.sleep(1000)


class Slow:
    """A trainer that takes its time over ten steps, and learns nothing."""

    def setup(self, model: nn.Module, data: object, config: object, device: object) -> None:
        self.left = 10

    def step(self) -> int:
        time.sleep(0.06)
        self.left -= 1
        return 16 if self.left >= 0 else 0

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, object]:
        return {"left": self.left}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.left = state["left"]


class Stuck(Slow):
    """Its first step never ends."""

    def step(self) -> int:
        time.sleep(1000)
        return 16
