"""Others on the device slow all its tasks: R_v falls, and rounds recover when they have gone (§ III-B)."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from fedmt_flower.bench.engine_rounds import Rounds, makespan
from fedmt_flower.bench.mixes import synthetic_task
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.allocation import Allocation, Objective, Policy
from fedmt_flower.domain.device import Backend, DeviceSettings

_VOLUME = 128 * 12
_ROUNDS = 15
_UNDER_LOAD = 60
"""At most: workers for other budgets start beside the rounds, slowly then."""
_SETTLED = 5
"""Rounds from which one tells how long they usually are."""

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


class Seen(NamedTuple):
    """What a round came to: its R_v in per cent, and its length."""

    virtual_resource: float
    makespan_s: float


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
def test_an_outside_load_lowers_the_virtual_resource_and_leaves_nothing_behind(home: Path) -> None:
    tasks = [synthetic_task(name) for name in ("R18", "M3", "S2")]
    volumes = {task.name: _VOLUME for task in tasks}
    fedmt = Allocation(policy=Policy.FEDMT, objective=Objective.MAKESPAN, reallocate=False)
    engine = connect(DeviceSettings(backend=Backend.MPS, idle_timeout_s=120))
    assert isinstance(engine, EngineClient)
    rounds = Rounds(engine, "outside-load", tasks)

    def until(reached: Callable[[Seen], bool], most: int = _ROUNDS) -> list[Seen]:
        found: list[Seen] = []
        while not (found and reached(found[-1])) and len(found) < most:
            report = rounds.run(volumes, fedmt)
            found.append(Seen(sum(place.budget for place in report.plan.tasks), makespan(report)))
        return found

    before = until(lambda _: False)[-_SETTLED:]
    resource, usual_s = before[-1].virtual_resource, statistics.median(one.makespan_s for one in before)
    with outside_load():
        under = until(lambda one: one.virtual_resource <= 0.85 * resource + 1e-6, _UNDER_LOAD)
    # Budgets that are as good as those from before may stay; a round may not stay slower.
    after = until(lambda one: one.makespan_s <= 1.25 * usual_s)
    engine.stop()
    assert under[-1].virtual_resource <= 0.85 * resource + 1e-6, (before, under)
    assert after[-1].makespan_s <= 1.25 * usual_s, (before, under, after)
