"""A user's module for hand-overs: steps that take their time, and one thread wherever they run."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import torch
from torch import Tensor, nn

Split = tuple[Tensor, Tensor]


def model() -> nn.Module:
    torch.set_num_threads(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))


def data(seed: int) -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(70, 4, generator=generator)
    return (x, (x.sum(1) > 0).long()), (x[:8], (x[:8].sum(1) > 0).long())


class Unhurried:
    """Cross-entropy; in a seat of one thread or two each step takes its time."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        time.sleep(0.01 if os.environ.get("OMP_NUM_THREADS") in ("1", "2") else 0.0)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def measure(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")}


unhurried = Unhurried()


def train(model: nn.Module, data: object) -> None:
    """A whole call that outlasts every other task."""
    time.sleep(1.5)


class Private:
    """A trainer whose state cannot leave its process."""

    def setup(self, model: nn.Module, data: object, config: object, device: object) -> None:
        self.left, self.lock = 80, threading.Lock()

    def step(self) -> int:
        time.sleep(0.01)
        self.left -= 1
        return 16 if self.left >= 0 else 0

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, object]:
        return {"left": self.left, "lock": self.lock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.left = state["left"]


class Strict:
    """A trainer that has a state once it has begun, and can be given one once; SGD with momentum."""

    def setup(self, model: nn.Module, data: Split, config: object, device: object) -> None:
        self.model, self.data, self.left, self.given = model, data, 4, False
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(self) -> int:
        if not self.left:
            return 0
        self.optimizer.zero_grad()
        unhurried.loss(self.model, self.data).backward()
        self.optimizer.step()
        self.left -= 1
        return len(self.data[0])

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, object]:
        if self.left == 4:
            raise LookupError("no state before the first step")
        return {"left": self.left, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.given:
            raise RuntimeError("a second state")
        self.given, self.left = True, state["left"]
        self.optimizer.load_state_dict(state["optimizer"])


class Open(Strict):
    """The same, but it has a state from the beginning."""

    def state_dict(self) -> dict[str, object]:
        return {"left": self.left, "optimizer": self.optimizer.state_dict()}
