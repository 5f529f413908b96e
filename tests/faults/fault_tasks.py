"""The tasks of the campaign, as their workers import them: one of them meets with misfortune."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Split = tuple[Tensor, Tensor]
_ROOM = 256 << 20
_LINES = 1000


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))


def data(site: str, seed: int) -> tuple[Split, Split]:
    generator = torch.Generator().manual_seed(seed + len(site))
    x = torch.randn(320, 16, generator=generator)
    y = x[:, :4].argmax(1)
    return (x[:256], y[:256]), (x[256:], y[256:])


def train(
    model: nn.Module, data: Split, lr: float, fault: str = "", begun: str = "", go: str = ""
) -> dict[str, float]:
    """Two epochs, with what `fault` names between them."""
    metrics = _epoch(model, data, lr)
    if fault:
        metrics |= FAULTS[fault](model, Path(begun), Path(go)) or {}
    return metrics | _epoch(model, data, lr)


def _epoch(model: nn.Module, data: Split, lr: float) -> dict[str, float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    order = torch.randperm(len(data[0]))
    loss = torch.zeros(())
    for batch in torch.split(order, 32):
        optimizer.zero_grad()
        loss = cross_entropy(model(data[0][batch]), data[1][batch])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {"loss": float(loss)}


def wait(model: nn.Module, begun: Path, go: Path) -> None:
    """Say that training is under way, and go on when told to."""
    begun.touch()
    while not go.exists():
        time.sleep(0.002)


def wait_with_children(model: nn.Module, begun: Path, go: Path) -> None:
    """As `wait`, with processes and a thread at work meanwhile, as data loaders have them."""
    sleeping = [sys.executable, "-S", "-c", "import time; time.sleep(1000)"]
    for _ in range(2):
        subprocess.Popen(sleeping)
    wait(model, begun, go)


def hang(model: nn.Module, begun: Path, go: Path) -> None:
    time.sleep(1000)


def hang_with_the_gil(model: nn.Module, begun: Path, go: Path) -> None:
    """Hang in C: no other thread of the process runs meanwhile, and no handler of Python's."""
    ctypes.PyDLL(None).sleep(1000)


def raise_cuda_error(model: nn.Module, begun: Path, go: Path) -> None:
    raise RuntimeError(
        "CUDA error: device-side assert triggered\n"
        "CUDA kernel errors might be asynchronously reported at some other API call"
    )


def exhaust_memory(model: nn.Module, begun: Path, go: Path) -> None:
    """Allocate beyond the limit, in torch's allocator."""
    _limit_memory()
    torch.ones(4 * _ROOM, dtype=torch.uint8)


def exhaust_python_memory(model: nn.Module, begun: Path, go: Path) -> None:
    """The same in Python's."""
    _limit_memory()
    bytearray(4 * _ROOM)


def _limit_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _ROOM, resource.RLIM_INFINITY))


def spoil_weights(model: nn.Module, begun: Path, go: Path) -> None:
    nn.init.constant_(model[0].weight, float("nan"))  # type: ignore[index]


def lose_the_loss(model: nn.Module, begun: Path, go: Path) -> dict[str, float]:
    return {"accuracy": float("nan")}


def reshape(model: nn.Module, begun: Path, go: Path) -> None:
    model[0] = nn.Linear(16, 32, bias=False)  # type: ignore[operator]


def leave(model: nn.Module, begun: Path, go: Path) -> None:
    os._exit(3)


def crash(model: nn.Module, begun: Path, go: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang_up(model: nn.Module, begun: Path, go: Path) -> None:
    """Close every file, the conversation with the engine among them."""
    os.closerange(3, 1024)
    time.sleep(1000)


def talk(model: nn.Module, begun: Path, go: Path) -> None:
    """Print more than any buffer holds."""
    for number in range(_LINES):
        sys.stdout.write(f"step {number}: all is well, and the loss is going down nicely\n")


Fault = Callable[[nn.Module, Path, Path], dict[str, float] | None]

FAULTS: dict[str, Fault] = {
    function.__name__: function
    for function in (
        wait,
        wait_with_children,
        hang,
        hang_with_the_gil,
        raise_cuda_error,
        exhaust_memory,
        exhaust_python_memory,
        spoil_weights,
        lose_the_loss,
        reshape,
        leave,
        crash,
        hang_up,
        talk,
    )
}
