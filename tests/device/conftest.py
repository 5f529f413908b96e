"""Engines of the tests' own, of which nothing may be left, and rounds for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from fedmt_flower.device.engine.connection import running
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.domain.task import Scalar, Task

State = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for engines; when its module's tests are over, no process and no socket may be left there."""
    path = tmp_path_factory.mktemp("fedmt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMT_HOME", str(path))
        yield path
        for engine in running():
            engine.stop()
        assert processes_of(path) == []
        assert list(path.rglob("socket")) == []


def processes_of(home: Path) -> list[int]:
    """Every process that was started with `home`, this one aside."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = process.environ().get("FEDMT_HOME") == str(home)
        except psutil.Error:  # gone meanwhile
            continue
        if mine and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found


@pytest.fixture
def flag(tmp_path: Path) -> Path:
    """While this file exists, tasks that were given it train."""
    path = tmp_path / "flag"
    path.touch()
    return path


@pytest.fixture(scope="session")
def left() -> Callable[[Path], list[int]]:
    """What is still running of a home's engines, given a moment to end."""

    def look(home: Path) -> list[int]:
        deadline = time.monotonic() + 5
        while (pids := processes_of(home)) and time.monotonic() < deadline:
            time.sleep(0.02)
        return pids

    return look


@pytest.fixture(scope="session")
def weights() -> State:
    """Weights of the model of `engine_tasks`."""
    rng = np.random.default_rng(0)
    return {
        "0.weight": rng.standard_normal((8, 4)).astype(np.float32),
        "0.bias": np.zeros(8, np.float32),
        "1.weight": np.ones(8, np.float32),
        "1.bias": np.zeros(8, np.float32),
        "1.running_mean": np.zeros(8, np.float32),
        "1.running_var": np.ones(8, np.float32),
        "1.num_batches_tracked": np.array(0, np.int64),
        "3.weight": rng.standard_normal((2, 8)).astype(np.float32),
        "3.bias": np.zeros(2, np.float32),
    }


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """Tasks of `engine_tasks`: trained by the package's loop, or by the function `train_<how>`."""

    def make(name: str, how: str = "", **parameters: Scalar) -> Task:
        return Task(
            name=name,
            model="engine_tasks:model",
            data="engine_tasks:data",
            train=f"engine_tasks:train_{how}" if how else "",
            parameters={"lr": 0.1, "batch_size": 16, "epochs": 2} | parameters,
            python_path=(str(Path(__file__).parent),),
        )

    return make


@pytest.fixture(scope="session")
def make_order() -> Callable[..., RoundOrder]:
    """Orders for a round of tasks."""

    def make(
        *tasks: Task,
        round: int = 1,
        site: str = "clinic",
        run: str = "run",
        mode: Mode = Mode.TRAIN_AND_EVALUATE,
        policy: Policy = Policy.SHARING,
        budgets: tuple[float, ...] = (),
        deadline_s: float | None = None,
    ) -> RoundOrder:
        return RoundOrder(
            run=run,
            round=round,
            site=site,
            assignments=tuple(Assignment(task=task, mode=mode) for task in tasks),
            allocation=Allocation(policy=policy, budgets=budgets),
            seed=3,
            deadline_s=deadline_s,
        )

    return make
