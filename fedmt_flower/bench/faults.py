"""What fails on the device fails by name, and the next round works."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.leftovers import left_bars, left_behind, memory_in_use
from fedmt_flower.bench.mixes import BATCH, synthetic_task
from fedmt_flower.bench.result import Bar, Json, Result
from fedmt_flower.device.backends import facts
from fedmt_flower.device.contract import Progress, RoundResult
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import running
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, Status
from fedmt_flower.domain.task import Scalar
from fedmt_flower.errors import EngineError

CLAIM = "what fails on the device fails by name, and the next round works within 5 s"

MODELS = ("R18", "M3", "S2")
_RECOVERY_S = 5.0
_BUDGET = 60.0
_STEPS = 4
"""Steps of a small round, and of an epoch."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS),
        "batch": 8 if quick else BATCH,
        "steps": 400 if quick else 120,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Cause each fault in a round of three tasks, then run a small round; at last look what is left."""
    bench.recorder.clear()
    memory = memory_in_use(bench.options)
    with bench.engine() as engine:
        scene = _Scene(bench, engine)
        scene.round()  # starts the workers
        faults: dict[str, Callable[[], RoundResult]] = {
            "worker killed": lambda: scene.while_training(scene.kill_worker),
            "assertion failed on the device": lambda: scene.round(train="index_out_of_range"),
        }
        if bench.options.backend is Backend.MPS:
            beyond = 0.55 * facts.gpu(bench.options.index).memory_bytes / 2**30
            faults |= {
                "allocation over the cap": lambda: scene.round(train="grab", gigabytes=beyond),
                "MPS server killed": lambda: scene.while_training(lambda: _kill(facts.SERVER)),
                "MPS control daemon killed": lambda: scene.while_training(lambda: _kill(facts.CONTROL)),
            }
        for fault, cause in faults.items():
            scene.suffer(fault, cause)
        home = str(engine.home.path.parent)
    left = left_behind(bench.options, ("FEDMT_HOME", home), memory, patience_s=_RECOVERY_S)
    bench.recorder.add("afterwards", 0, left)
    _judge(bench, list(faults))
    return True


def report(result: Result) -> str:
    """What each fault came to, a row for each, in Markdown."""
    lines = ["| fault | the round | said of the task | answered after (s) | next round after (s) |"]
    lines += ["|---|---|---|---:|---:|"]
    for sample in result.samples:
        if sample.cell == "afterwards":
            continue
        values = sample.values
        said = " ".join(values["errors"].values()).replace("|", "/")[:160] or "–"
        state = f"{len(values['errors'])} of {len(MODELS)} tasks failed"
        lines.append(
            f"| {sample.cell} | {state} | {said} | {values['answered_s']:.1f} | {values['next_s']:.1f} |"
        )
    return "\n".join(lines)


class _Scene:
    """Rounds of three tasks on an engine, some of which meet with misfortune."""

    def __init__(self, bench: Bench, engine: EngineClient) -> None:
        self._engine = engine
        self._settings = bench.settings
        self._recorder = bench.recorder
        batch = int(bench.settings["batch"])
        self._tasks = tuple(
            synthetic_task(model, batch, bench.options.quick).with_parameters(samples=_STEPS * batch)
            for model in MODELS
        )
        self._weights = {task.name: initial_weights(task, 0) for task in self._tasks}
        self._training = threading.Event()
        self._number = 0
        self._struck = 0.0

    def round(self, steps: int = _STEPS, train: str = "", **parameters: Scalar) -> RoundResult:
        """A round of so many steps a task; `train` names the function that the first task trains by."""
        first, *others = (task.with_parameters(epochs=steps // _STEPS) for task in self._tasks)
        if train:
            path = f"fedmt_flower.bench.user_code:{train}"
            first = replace(first, train=path).with_parameters(**parameters)
        self._number += 1
        order = RoundOrder(
            run="faults",
            round=self._number,
            site="bench",
            assignments=tuple(Assignment(task=task, mode=Mode.TRAIN) for task in (first, *others)),
            allocation=Allocation(policy=Policy.STATIC, budgets=(_BUDGET,)),
            deadline_s=60.0,
        )
        self._struck = time.monotonic()
        return self._engine.run_round(order, self._weights, self._on_progress)

    def while_training(self, strike: Callable[[], None]) -> RoundResult:
        """A long round, in the midst of which `strike` is called."""
        self._training.clear()
        with ThreadPoolExecutor(max_workers=1) as background:
            result = background.submit(self.round, int(self._settings["steps"]))
            if not self._training.wait(timeout=30.0):
                raise EngineError(f"task {MODELS[0]!r} did not begin to train within 30 s")
            strike()
            self._struck = time.monotonic()
            return result.result()

    def kill_worker(self) -> None:
        """Kill the worker that trains the first task."""
        (engine,) = (engine for engine in running() if engine.pid == self._engine.pid)
        workers = engine.status().workers
        os.kill(next(w.pid for w in workers if w.task == MODELS[0] and w.busy), signal.SIGKILL)

    def suffer(self, fault: str, cause: Callable[[], RoundResult]) -> None:
        """Record what `cause` does to its round, and how the next one goes."""
        harmed = cause()
        answered = time.monotonic()
        errors: dict[str, Json] = {t.task: t.error for t in harmed.report.tasks if t.status is Status.FAILED}
        struck = self._struck
        following = self.round()
        now = time.monotonic()
        values: dict[str, Json] = {
            "errors": errors,
            "kept": sorted(harmed.weights),
            "answered_s": round(answered - struck, 3),
            "next_s": round(now - answered, 3),
            "next_errors": {t.task: t.error for t in following.report.tasks if t.status is Status.FAILED},
            "next_backend": following.report.backend,
        }
        self._recorder.add(fault, 0, values)

    def _on_progress(self, progress: Progress) -> None:
        if progress.task == MODELS[0]:
            self._training.set()


def _kill(program: str) -> None:
    """Kill the MPS process of this user that runs `program`."""
    for process in psutil.process_iter(["name", "cmdline"]):
        if program in (
            process.info["name"],
            *(Path(word).name for word in (process.info["cmdline"] or [])[:1]),
        ):
            process.kill()
            return
    raise EngineError(f"no {program} runs here, so it cannot be killed")


def _judge(bench: Bench, faults: Sequence[str]) -> None:
    taken = {sample.cell: sample.values for sample in bench.recorder.samples}
    for fault in faults:
        values = taken[fault]
        named = all(name in error for name, error in values["errors"].items())
        works = not values["next_errors"] and values["next_backend"] == bench.facts["backend"]
        seconds = values["next_s"]
        bar = f"{fault}: seconds until the next round has worked"
        bench.bars.append(
            Bar.counted(bar, _RECOVERY_S, seconds, met=named and works and seconds <= _RECOVERY_S)
        )
    bench.bars += left_bars(taken["afterwards"])
