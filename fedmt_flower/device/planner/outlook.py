"""What is known of a round's tasks, for somebody who plans it and does not run it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from fedmt_flower.device.backends import DeviceBackend, make_backend
from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.contract import Weights
from fedmt_flower.device.ipc import memory
from fedmt_flower.device.ipc.frames import Advanced, Appraised
from fedmt_flower.device.ipc.job import report_of
from fedmt_flower.device.planner.appraisal import job_to_measure
from fedmt_flower.device.planner.scout import Known, Scout
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import Finished
from fedmt_flower.device.profile.samples import Profile, read_lines, samples_of, task_features
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.network import Volume
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.round import Assignment, RoundOrder
from fedmt_flower.domain.task import TaskKind
from fedmt_flower.errors import ConfigError, expected_one_of
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts

Tell = Callable[[str], None]


def measured(
    settings: DeviceSettings, order: RoundOrder, weights: Mapping[str, Weights], tell: Tell
) -> Known:
    """Measure the tasks of `order` on a device, as its engine would before their first round.

    A task whose own `train` takes a round as a whole is run once, from beginning to end.

    Parameters
    ----------
    settings
        The device.
    order
        The round.
    weights
        The weights that each task begins with.
    tell
        Told what is being done.

    Raises
    ------
    EngineError
        If the device cannot be used.
    TaskError
        If a task cannot be run.
    """
    sizes = sizes_of(weights)

    async def look(directory: Path) -> Known:
        backend = make_backend(settings, directory)
        backend.open()
        pool = Pool(backend, directory / "workers")
        try:
            await pool.open()
            scout = Scout(backend, pool, tell)
            solo = {}
            for assignment in order.assignments:
                if assignment.task.kind is TaskKind.WHOLE_CALL:
                    tell(f"running {assignment.task.name}, which has no steps to measure, from end to end")
                    solo[assignment.task.name] = await _run_alone(backend, pool, order, assignment, weights)
            return await scout.look(order, sizes, solo)
        finally:
            await pool.close()
            backend.close()

    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        return asyncio.run(look(Path(directory)))


async def _run_alone(
    backend: DeviceBackend,
    pool: Pool,
    order: RoundOrder,
    assignment: Assignment,
    weights: Mapping[str, Weights],
) -> float:
    """The rate of a task's own round with the whole device, in samples/s."""
    task, job = assignment.task, job_to_measure(order, assignment)

    async def ignore(_: Advanced) -> None:
        """Nobody follows it."""

    file = memory.write(task.name, weights[task.name])
    try:
        async with pool.worker(order.run, task, backend.seat(100.0, Sharing.CAPPED)) as worker:
            outcome = await worker.do(job, file, ignore)
    finally:
        os.close(file)
    assert isinstance(outcome, Finished)  # nobody asked the worker to pause
    if outcome.update is not None:
        os.close(outcome.update)
    return report_of(task.name, outcome.result, level=0, pid=0).rate


def sizes_of(weights: Mapping[str, Weights]) -> dict[str, int]:
    """Bytes of weights, by task."""
    return {task: sum(array.nbytes for array in state.values()) for task, state in weights.items()}


def profiled(path: Path, order: RoundOrder, weights: Mapping[str, Weights], tell: Tell) -> Known:
    """Take tasks and device from a file of `fedmt profile`, and only the data's size from the site.

    So a round can be planned for a device that is not here.

    Raises
    ------
    ConfigError
        If the file is no profile, or has nothing on a task of `order`.
    """
    entries, sizes = read_lines(path), sizes_of(weights)
    samples = samples_of(entries)
    if not samples:
        raise ConfigError(f"{path}: no task was measured alone yet; let fedmt profile go on")
    features = task_features(entries)
    names = [assignment.task.name for assignment in order.assignments]
    problems = [
        f"{path}: has nothing on task {name!r}; {expected_one_of(name, features)}"
        for name in names
        if name not in features
    ]
    if problems:
        raise ConfigError(*problems)
    profile = entries[0]
    assert isinstance(profile, Profile)

    async def appraise(directory: Path) -> Mapping[str, Appraised]:
        pool = Pool(CpuBackend(), directory / "workers")
        try:
            await pool.open()
            return await Scout(CpuBackend(), pool, tell).appraise(order)
        finally:
            await pool.close()

    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
        appraised = asyncio.run(appraise(Path(directory)))
    levels = {sampled.task: sampled.levels for sampled in profile.tasks}
    tasks = tuple(
        TaskFacts(
            features=features[assignment.task.name],
            volume=Volume(
                task=assignment.task.name,
                samples=appraised[assignment.task.name].samples,
                download_bytes=sizes[assignment.task.name],
                upload_bytes=sizes[assignment.task.name],
            ),
            examples=appraised[assignment.task.name].examples,
            adapts=appraised[assignment.task.name].adapts,
            stepped=assignment.task.kind is TaskKind.STEPPED,
            levels=levels[assignment.task.name],
        )
        for assignment in order.assignments
    )
    device = DeviceFacts(features=samples[0].device, levels=profile.levels)
    return Known(backend=profile.backend, device=device, tasks=tasks, unknown={})
