"""What others do on the device slows all its tasks: R_v falls, and rises when they have gone (§ III-B)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedmt_flower.bench.engine_rounds import Rounds
from fedmt_flower.bench.mixes import synthetic_task
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.allocation import Allocation, Objective, Policy
from fedmt_flower.domain.device import Backend, DeviceSettings

_VOLUME = 128 * 12
_ROUNDS = 15
"""At most: workers for other budgets start beside the rounds, slowly under a load."""

_LOAD = """
import torch
a = torch.randn(8192, 8192, device="cuda:0", dtype=torch.bfloat16)
torch.cuda.synchronize()
print("busy", flush=True)
while True:
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
"""
"""Keeps the GPU busy; no client of the engine's MPS, so that the two take turns on it."""


@contextmanager
def outside_load() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", _LOAD], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "busy\n"
            yield
        finally:
            process.kill()


@pytest.mark.gpu
@pytest.mark.timeout(280)
def test_an_outside_load_lowers_the_virtual_resource_until_it_has_gone(home: Path) -> None:
    tasks = [synthetic_task(name) for name in ("R18", "M3", "S2")]
    volumes = {task.name: _VOLUME for task in tasks}
    fedmt = Allocation(policy=Policy.FEDMT, objective=Objective.MAKESPAN, reallocate=False)
    engine = connect(DeviceSettings(backend=Backend.MPS, idle_timeout_s=120))
    assert isinstance(engine, EngineClient)
    rounds = Rounds(engine, "outside-load", tasks)

    def virtual_resource() -> float:
        return sum(place.budget for place in rounds.run(volumes, fedmt).plan.tasks)

    def until(reached: Callable[[float], bool]) -> list[float]:
        seen: list[float] = []
        while not (seen and reached(seen[-1])) and len(seen) < _ROUNDS:
            seen.append(virtual_resource())
        return seen

    before = [virtual_resource() for _ in range(3)][-1]
    with outside_load():
        under = until(lambda r: r <= 0.85 * before + 1e-6)
    after = until(lambda r: r > under[-1])
    engine.stop()
    assert under[-1] <= 0.85 * before + 1e-6, (before, under)
    assert after[-1] > under[-1], (before, under, after)
