"""Finds out what a plan has to know of tasks, on the engine's own workers; each thing once."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.ipc.frames import Appraise, Appraised, Describe, Described, Rest
from fedmt_flower.device.ipc.job import ROUND_KEYS, Job
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.planner.appraisal import (
    Examined,
    Steps,
    examine,
    expect,
    facts_of,
    first_steps,
    job_to_measure,
    time_alone,
    with_quarter,
)
from fedmt_flower.device.planner.models import Chosen, Models
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import WorkerHandle
from fedmt_flower.device.profile.survey import PERCENTAGES, QUARTER, device_steps, levels_of
from fedmt_flower.domain.coordination import Batching
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.plan import Sharing, TaskPlan
from fedmt_flower.domain.profile import DeviceFeatures
from fedmt_flower.domain.round import Assignment, RoundOrder, RoundReport
from fedmt_flower.domain.task import Task, TaskKind
from fedmt_flower.errors import EngineError, TaskError
from fedmt_flower.planning.framing import DeviceFacts, TaskFacts, offered_batches

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 120.0
"""Seconds for one task; a step on a CPU may take some."""
_KEPT: Final = 512
_FILL: Final = 0.93
"""Part of a GPU's memory that plans may use; the rest is for what nobody accounts for."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known before a round is planned; `unknown` has the tasks of which too little is, and why.

    `backend` is that of the device.
    """

    backend: str
    device: DeviceFacts
    tasks: tuple[TaskFacts, ...]
    unknown: Mapping[str, str]

    def model(self, models: Models, path: str) -> Chosen:
        """The model to plan them with: a fitted one only where all that it would see of them is known.

        Raises
        ------
        ConfigError
            As `Models.choose`.
        """
        chosen = models.choose(path, self.device.features)
        return chosen if all(facts.counted for facts in self.tasks) else models.untaught


class Scout:
    """Looks at the tasks of a device's rounds before they are planned.

    Parameters
    ----------
    backend, pool
        The device and its workers, which keep what they load for it.
    tell
        Told what is being done, in a few words.
    """

    def __init__(self, backend: DeviceBackend, pool: Pool, tell: Callable[[str], None] | None = None) -> None:
        self._backend = backend
        self._pool = pool
        self._tell = tell or log.debug
        self._device: DeviceFeatures | None = None
        self._levels: tuple[float, ...] = ()
        self._appraised: OrderedDict[str, Appraised] = OrderedDict()
        self._examined: OrderedDict[str, Examined] = OrderedDict()
        self._met: OrderedDict[str, None] = OrderedDict()
        self._held: Mapping[int, int] = {}
        self._starting = asyncio.Semaphore(os.cpu_count() or 1)

    async def look(self, order: RoundOrder, sizes: Mapping[str, int], solo: Mapping[str, float]) -> Known:
        """What is known of the tasks that `order` trains, after measuring what is not.

        Parameters
        ----------
        order
            The round.
        sizes
            Bytes of each task's weights.
        solo
            Solo rates in samples/s of tasks that cannot be measured alone, as far as rounds have shown them.
        """
        late = await self._warm_up(order)
        tasks, unknown = [], {}
        for assignment in order.assignments:
            if not assignment.mode.trains:
                continue
            name = assignment.task.name
            try:
                async with asyncio.timeout(order.deadline_s or _PATIENCE_S):
                    if name in late:
                        raise TimeoutError
                    found = await self._task(order, assignment, sizes[name], solo.get(name))
            except TimeoutError:
                unknown[name] = "it could not be measured in time"
            except (TaskError, EngineError) as error:
                unknown[name] = f"it could not be measured: {error}"
            else:
                if found is None:
                    unknown[name] = (
                        "its `train` takes a round as a whole, so that a round must show its speed"
                    )
                else:
                    tasks.append(found)
        facts = await self._facts(order)
        return Known(backend=self._backend.name, device=facts, tasks=tuple(tasks), unknown=unknown)

    async def appraise(self, order: RoundOrder) -> dict[str, Appraised]:
        """What each task of `order` has to do, without any measurement; TaskError if one has no data."""
        found = {}
        for assignment in order.assignments:
            self._tell(f"loading the data of {assignment.task.name}")
            job = job_to_measure(order, assignment)
            found[assignment.task.name] = await self._appraise(order, assignment.task, job)
        return found

    def has_met(self, order: RoundOrder) -> bool:
        """Whether `look` has been at all stepped tasks that `order` trains; others it does not measure."""
        return not self._new(order)

    def are_warm(self, order: RoundOrder, budgets: Mapping[str, float]) -> bool:
        """Whether every task of `order` that has one of `budgets` (%) has a worker waiting in its seat."""
        return not self._cold(order, budgets)

    async def warm(self, order: RoundOrder, places: Sequence[TaskPlan]) -> None:
        """Start the workers that tasks of `order` lack in `places`, and have them take first steps.

        A worker that cannot is told of in the log: a round that needs one would start it.
        """
        wanted = {place.task: place for place in places}

        def begin(assignment: Assignment) -> Coroutine[Any, Any, None]:
            place = wanted[assignment.task.name]
            return self._begin(order, assignment, self._capped(place.budget), place.batch_size)

        cold = self._cold(order, {place.task: place.budget for place in places})
        await self._side_by_side(map(begin, cold))

    def saw(self, report: RoundReport) -> None:
        """Remember what the workers of a round still hold."""
        self._held = {task.pid: task.memory_bytes for task in report.tasks}

    async def _task(
        self, order: RoundOrder, assignment: Assignment, size: int, solo: float | None
    ) -> TaskFacts | None:
        """What is known of one task; None if it has to be seen in a round first."""
        task, job = assignment.task, job_to_measure(order, assignment)
        appraised = await self._appraise(order, task, job)
        own = appraised.batch
        offered = offered_batches(
            order.coordination.batching, task.name, own, appraised.examples, appraised.adapts
        )
        if task.kind is TaskKind.STEPPED:
            seen = await self._examine(order, task, job, own, offered)
            solo = seen.speeds[own]
        else:
            seen = await self._describe(order, task, job, own)
        if solo is None:
            return None
        return facts_of(task, size, appraised, seen, solo, levels_of(self._backend, task, job.parameters))

    async def _appraise(self, order: RoundOrder, task: Task, job: Job) -> Appraised:
        lasting = {key: value for key, value in job.parameters.items() if key not in ROUND_KEYS}
        key = repr((order.run, order.site, task.name, sorted(lasting.items())))
        if key not in self._appraised:
            async with self._pool.worker(order.run, task, self._seat_of(order.run, task)) as worker:
                _keep(self._appraised, key, expect(Appraised, await worker.ask(Appraise(job=job))))
        return self._appraised[key]

    async def _examine(
        self, order: RoundOrder, task: Task, job: Job, own: int, offered: Sequence[int]
    ) -> Examined:
        """What a stepped task is alone, with the whole device and with a quarter of it."""
        key = repr((_name(order, task), own, offered))
        if key not in self._examined:
            self._tell(f"measuring {task.name} alone")
            whole, *quarter = self._seats
            alone = examine(job, own, offered, gpu=self._on_gpu, device=self._device is None)
            found = await self._carry(order.run, task, whole, alone)
            self._device = self._device or found.device
            if quarter:
                rate = await self._carry(order.run, task, quarter[0], time_alone(job, own, gpu=self._on_gpu))
                found = with_quarter(found, own, rate, 100.0 * quarter[0].level / whole.level)
            log.info("task %s alone: %s", task.name, _in_words(found))
            _keep(self._examined, key, found)
        return self._examined[key]

    async def _describe(self, order: RoundOrder, task: Task, job: Job, own: int) -> Examined:
        """What one pass of a whole-call task's model costs; nothing counted if it cannot be called here."""
        key = _name(order, task)
        if key not in self._examined:
            flops = traffic = 1.0
            try:
                async with self._pool.worker(order.run, task, self._seat_of(order.run, task)) as worker:
                    asked = Describe(device=self._device is None, job=job, batch=own)
                    said = expect(Described, await worker.ask(asked))
            except TaskError as error:
                log.info("the cost of a step is not counted: %s", error)
            else:
                flops, traffic, self._device = said.flops, said.traffic, self._device or said.device
            _keep(self._examined, key, Examined(flops=flops, traffic=traffic))
        return self._examined[key]

    async def _carry(self, run: str, task: Task, seat: Seat, steps: Steps[T]) -> T:
        """Carry `steps` to a worker of `task` in `seat`."""
        async with self._pool.worker(run, task, seat) as worker:
            return await carry(worker, steps)

    def _cold(self, order: RoundOrder, budgets: Mapping[str, float]) -> list[Assignment]:
        """The tasks of `order` that have no worker waiting in the seat of their one of `budgets` (%)."""
        return [
            assignment
            for assignment in order.assignments
            if (budget := budgets.get(assignment.task.name)) is not None
            and not self._pool.is_warm(order.run, assignment.task, self._capped(budget))
        ]

    def _new(self, order: RoundOrder) -> list[Assignment]:
        return [
            assignment
            for assignment in order.assignments
            if assignment.mode.trains
            and assignment.task.kind is TaskKind.STEPPED
            and _name(order, assignment.task) not in self._met
        ]

    async def _warm_up(self, order: RoundOrder) -> set[str]:
        """Start the workers that will measure, and have them get ready, side by side; tasks too late for it.

        On a GPU they take their first steps, for which kernels are loaded, and compiled, one by one on a CPU.
        """
        new, late, failed = self._new(order), set[str](), set[str]()
        if not new:
            return late
        for assignment in new:
            _keep(self._met, _name(order, assignment.task), None)

        async def start(assignment: Assignment, seat: Seat, *, steps: bool) -> None:
            name, evaluate = assignment.task.name, seat == self._seats[0]
            try:
                # Data may take their time to load.
                async with asyncio.timeout(max(order.deadline_s or 0.0, _PATIENCE_S) if steps else None):
                    await self._begin(order, assignment, seat, steps=steps, evaluate=evaluate)
            except TimeoutError:
                late.add(name)
                self._met.pop(_name(order, assignment.task), None)
            except (TaskError, EngineError):
                failed.add(name)
                raise

        self._tell(f"starting workers of {', '.join(assignment.task.name for assignment in new)}")
        await self._side_by_side(start(a, seat, steps=False) for a in new for seat in self._seats)
        if self._on_gpu:
            able = [assignment for assignment in new if assignment.task.name not in late | failed]
            await self._side_by_side(start(a, seat, steps=True) for seat in self._seats for a in able)
        return late

    async def _begin(
        self,
        order: RoundOrder,
        assignment: Assignment,
        seat: Seat,
        size: int | None = None,
        *,
        steps: bool = True,
        evaluate: bool = True,
    ) -> None:
        """Have a worker of a task in `seat` load its data and take first steps, in batches of `size`."""
        job, task, gpu = job_to_measure(order, assignment), assignment.task, self._on_gpu
        async with self._starting, self._pool.worker(order.run, task, seat) as worker:
            own = expect(Appraised, await worker.ask(Appraise(job=job))).batch
            if steps and task.kind is TaskKind.STEPPED:
                await carry(worker, first_steps(job, size or own, gpu=gpu, evaluate=evaluate and gpu))

    async def _side_by_side(self, starts: Iterable[Coroutine[Any, Any, None]]) -> None:
        """Run `starts` to their ends; what fails is for a round to tell."""
        for failure in await asyncio.gather(*starts, return_exceptions=True):
            if isinstance(failure, TaskError | EngineError):
                log.info("not warmed up: %s", failure)
            elif isinstance(failure, BaseException):
                raise failure

    @property
    def _on_gpu(self) -> bool:
        return self._backend.name == Backend.MPS

    @property
    def _seats(self) -> tuple[Seat, ...]:
        """Those of the whole device and of a quarter of it, if that is less."""
        whole, quarter = self._capped(100.0), self._capped(QUARTER)
        return (whole,) if quarter.level == whole.level else (whole, quarter)

    def _capped(self, budget: float) -> Seat:
        return self._backend.seat(budget, Sharing.CAPPED)

    def _seat_of(self, run: str, task: Task) -> Seat:
        """The seat of the worker of `task` that was used last; the whole device if it has none."""
        idle = self._workers_of(run, task)
        return max(idle, key=lambda worker: worker.used).seat if idle else self._seats[0]

    def _workers_of(self, run: str, task: Task) -> list[WorkerHandle]:
        wanted = replace(task, parameters={})
        return [w for w in self._pool.workers if w.run == run and w.task == wanted and not w.busy and w.alive]

    async def _facts(self, order: RoundOrder) -> DeviceFacts:
        self._levels = self._levels or device_steps(self._backend, PERCENTAGES)
        units = self._seats[0].level
        nothing = DeviceFeatures(name=self._backend.name, units=units, peak=1.0, bandwidth=1.0)
        rules = order.coordination.batching
        chosen = rules.policy is Batching.PROPORTIONAL or bool(rules.choices)
        return DeviceFacts(
            features=self._device or nothing,
            levels=self._levels,
            memory_limit=await self._memory_limit() if chosen and self._on_gpu else 0,
        )

    async def _memory_limit(self) -> int:
        """Bytes of a GPU for the tasks of a round, in whole GiB."""
        for worker in self._pool.workers:
            if not worker.busy and worker.alive and worker.pid not in self._held:
                await _rest(worker)
        used, there = self._backend.memory()
        held = sum(self._held.get(worker.pid, 0) for worker in self._pool.workers)
        return max(1, int(_FILL * there - used + held) >> 30) << 30


async def _rest(worker: WorkerHandle) -> None:
    """Have an idle worker give back the memory that it keeps for its next step."""
    worker.busy = True
    try:
        await worker.ask(Rest())
    except (TaskError, EngineError) as error:
        log.info("worker %d keeps its memory: %s", worker.pid, error)
    finally:
        worker.busy = False


async def carry(worker: WorkerHandle, steps: Steps[T]) -> T:
    """Give `worker` the orders of `steps` and send them its answers, to the end."""
    try:
        order = next(steps)
        while True:
            try:
                answer = await worker.ask(order)
            except TaskError as error:
                order = steps.throw(error)
            else:
                order = steps.send(answer)
    except StopIteration as end:
        found: T = end.value
        return found


def _name(order: RoundOrder, task: Task) -> str:
    """What a task of a run is known by, whatever its parameters: as its workers are."""
    return repr((order.run, replace(task, parameters={})))


def _keep(kept: OrderedDict[str, Any], key: str, value: object) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)


def _in_words(seen: Examined) -> str:
    speeds = ", ".join(f"{rate:.0f} in batches of {size}" for size, rate in sorted(seen.speeds.items()))
    return f"{speeds} samples/s; {seen.share:.2f} of that with a quarter of the device"


def file_sizes(weights: Mapping[str, int]) -> dict[str, int]:
    """Bytes of memory files, by task."""
    return {task: os.fstat(file).st_size for task, file in weights.items()}
