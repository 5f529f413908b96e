"""A site of three tasks whose rounds are known beforehand, to be played again under faults."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil

from fedmt_flower.bench.leftovers import processes_marked
from fedmt_flower.device.contract import Weights
from fedmt_flower.device.engine.connection import RunningEngine, running
from fedmt_flower.device.ipc.frames import EngineStatus, WorkerStatus
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, RoundReport
from fedmt_flower.domain.task import Task
from fedmt_flower.federation.package import Share
from fedmt_flower.federation.sites import Site

HERE = Path(__file__).parent
VICTIM = "victim"
SEED = 7
ONE_THREAD = 100 / len(os.sched_getaffinity(0))

CLIENT = """
import sys, msgspec, numpy as np
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import RoundOrder
order = msgspec.json.decode(sys.argv[1], type=RoundOrder)
weights = {a.task.name: dict(np.load(f"{sys.argv[2]}/{a.task.name}.npz")) for a in order.assignments}
connect(DeviceSettings(backend=Backend.CPU, idle_timeout_s=120)).run_round(order, weights)
"""
"""Plays a round as a process of its own, as a ClientApp does."""


def _task(name: str, train: str) -> Task:
    return Task(
        name=name,
        model="fault_tasks:model",
        data="fault_tasks:data",
        train=train,
        parameters={"lr": 0.05, "epochs": 2, "batch_size": 32},
        python_path=(str(HERE),),
    )


TASKS = (_task("stepped", ""), _task(VICTIM, "fault_tasks:train"), _task("whole", "fault_tasks:train"))
SURVIVORS = tuple(task.name for task in TASKS if task.name != VICTIM)

State = dict[str, Weights]


@dataclass(frozen=True, kw_only=True)
class Played:
    """A round that is over: its report, its weights, and the seconds since the fault struck."""

    report: RoundReport
    weights: State
    since_s: float


@dataclass
class Scene:
    """Rounds of the site `ward`, on engines of `home`.

    Odd rounds meet with a fault and the next, even, rounds do not. In a federation without faults the
    victim takes no part in odd rounds: that is what `prepare` plays, and keeps the weights of.
    """

    home: Path
    directory: Path
    number: int = 0
    reference: list[State] = field(default_factory=list)

    def prepare(self, rounds: int) -> None:
        """Play `rounds` rounds without a fault."""
        state: State = {task.name: initial_weights(task, SEED) for task in TASKS}
        self.reference.append(state)
        for number in range(1, rounds + 1):
            names = SURVIVORS if number % 2 else tuple(state)
            report, weights = self._site().play(number, self._shares(state, names))
            assert set(weights) == set(names), report
            state = {**state, **_copied(weights)}
            self.reference.append(state)

    def play(
        self,
        fault: str = "",
        blow: Callable[[Scene], None] | None = None,
        delay_s: float = 0.0,
        deadline_s: float | None = None,
    ) -> Played:
        """Play round `number` from the weights before it.

        Given a `blow`, the victim waits in the midst of its training, is struck `delay_s` seconds after
        that, and goes on if it can.
        """
        state, struck = self.reference[self.number - 1], time.monotonic()
        with ThreadPoolExecutor(1) as executor:
            shares = self._shares(state, tuple(state), fault)
            round_ = executor.submit(self._site(deadline_s).play, self.number, shares)
            if blow:
                until(lambda: self.begun.exists() or round_.done())
                time.sleep(delay_s)
                struck = time.monotonic()
                blow(self)
                self.go.touch()
            report, weights = round_.result(timeout=120)
        return Played(report=report, weights=_copied(weights), since_s=time.monotonic() - struck)

    def start_client(self) -> subprocess.Popen[bytes]:
        """A client of its own that plays round `number`, in the midst of the victim's training."""
        state = self.reference[self.number - 1]
        for name, weights in state.items():
            arrays: dict[str, Any] = dict(weights)
            np.savez(self.directory / f"{name}.npz", **arrays)
        order = RoundOrder(
            run="campaign",
            round=self.number,
            site="ward",
            assignments=tuple(
                Assignment(
                    task=task, mode=Mode.TRAIN, parameters=self._config("wait" if task.name == VICTIM else "")
                )
                for task in TASKS
            ),
            allocation=_allocation(),
            seed=SEED,
        )
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, msgspec.json.encode(order), self.directory],
            stderr=subprocess.DEVNULL,
        )
        until(self.begun.exists)
        return client

    @property
    def begun(self) -> Path:
        """Is there once the victim trains."""
        return self.directory / "begun"

    @property
    def go(self) -> Path:
        """Lets the victim go on, once it is there."""
        return self.directory / "go"

    @property
    def clock(self) -> Path:
        """Holds the seconds by which the clock of this scene's processes is wrong."""
        return self.directory / "clock"

    def forget(self) -> None:
        """Be ready for the next fault."""
        self.begun.unlink(missing_ok=True)
        self.go.unlink(missing_ok=True)

    def engine(self) -> RunningEngine:
        """The one engine that there is."""
        (engine,) = running()
        return engine

    def status(self) -> EngineStatus:
        """What it is doing."""
        return self.engine().status()

    def worker(self) -> WorkerStatus:
        """The victim's worker, at work."""
        return next(w for w in self.status().workers if w.task == VICTIM and w.busy)

    def zygotes(self) -> list[int]:
        """The process that workers are forked from, and its spare."""
        workers, found = self._workers(), []
        for child in psutil.Process(self.engine().pid).children():
            try:
                if "fedmt_flower.device" in " ".join(child.cmdline()) and child.pid not in workers:
                    found.append(int(child.pid))
            except psutil.Error:  # gone meanwhile
                continue
        return sorted(found)

    def strangers(self) -> list[int]:
        """Processes of this scene that are neither an engine, its keeper or zygotes, nor an idle worker."""
        engine = self.engine().pid
        known = {engine, psutil.Process(engine).ppid(), *self.zygotes(), *self._workers()}
        return [pid for pid in processes_marked("FEDMT_HOME", str(self.home)) if pid not in known]

    def memory_files(self) -> list[str]:
        """Memory files of weights that the engine or its zygotes hold open."""
        held = []
        for pid in (self.engine().pid, *self.zygotes()):
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                try:
                    target = os.readlink(fd)
                except FileNotFoundError:  # closed meanwhile
                    continue
                if "memfd:fedmt" in target:
                    held.append(f"{pid}: {target}")
        return held

    def _workers(self) -> set[int]:
        return {worker.pid for worker in self.status().workers}

    def _site(self, deadline_s: float | None = None) -> Site:
        return Site(
            name="ward",
            run="campaign",
            tasks=TASKS,
            allocation=_allocation(),
            device=DeviceSettings(backend=Backend.CPU, idle_timeout_s=120, deadline_s=deadline_s),
            seed=SEED,
        )

    def _shares(
        self, state: Mapping[str, Weights], names: tuple[str, ...], fault: str = ""
    ) -> dict[str, Share]:
        return {
            name: Share(
                mode=Mode.TRAIN, weights=state[name], config=self._config(fault if name == VICTIM else "")
            )
            for name in names
        }

    def _config(self, fault: str) -> dict[str, Any]:
        return {"fault": fault, "begun": str(self.begun), "go": str(self.go)} if fault else {}


def _allocation() -> Allocation:
    return Allocation(policy=Policy.STATIC, budgets=(ONE_THREAD,))


def _copied(weights: State) -> State:
    """The weights, apart from the memory files that they arrived in."""
    return {task: {name: array.copy() for name, array in state.items()} for task, state in weights.items()}


def until(condition: Callable[[], Any], patience_s: float = 60.0) -> Any:
    """What `condition` gives once that is true."""
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
    return value


def same(one: Weights, other: Weights) -> bool:
    """Whether two states are the same bits."""
    return list(one) == list(other) and all(
        array.dtype == other[name].dtype and array.tobytes() == other[name].tobytes()
        for name, array in one.items()
    )
