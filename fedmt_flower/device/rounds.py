"""One round on one device: its tasks in their workers, watched over until each has ended."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.frames import Advanced
from fedmt_flower.device.job import job_of, report_of, spans_of
from fedmt_flower.device.pool import Pool
from fedmt_flower.device.worker_handle import WorkerHandle
from fedmt_flower.domain.plan import DevicePlan, Sharing, TaskPlan
from fedmt_flower.domain.round import Assignment, RoundOrder, RoundReport, Status, TaskReport
from fedmt_flower.domain.timeline import Span
from fedmt_flower.errors import EngineError, TaskError

log = logging.getLogger(__name__)

_WATCH_S = 0.1

OnProgress = Callable[[Advanced], Awaitable[None]]
OnUpdate = Callable[[str, int], Awaitable[None]]


class Round:
    """A round about to run.

    Parameters
    ----------
    order
        What is asked for.
    planned
        How the device does it.
    weights
        The memory file of each task's weights; they stay the caller's.
    pool, backend
        Where it runs.
    arrival
        When the order came, on the monotonic clock: the timeline's zero.

    Raises
    ------
    EngineError
        If the device cannot seat them.
    """

    def __init__(
        self,
        order: RoundOrder,
        planned: DevicePlan,
        weights: Mapping[str, int],
        pool: Pool,
        backend: DeviceBackend,
        arrival: float,
    ) -> None:
        self.plan, self.forecast, self.budgets = planned.plan, planned.forecast, planned.budgets
        self._order = order
        self._assignments = {assignment.task.name: assignment for assignment in order.assignments}
        self._weights = weights
        self._seats = {p.task: backend.seat(p.budget, self.plan.sharing) for p in self.plan.tasks}
        self._pool = pool
        self._backend = backend
        self._arrival = arrival
        self._spans: list[Span] = []
        self._working: set[WorkerHandle] = set()
        self._lost = ""

    async def run(self, on_progress: OnProgress, on_update: OnUpdate) -> RoundReport:
        """Run it to the end of its last task. Cancelled, it ends the workers that it occupies.

        Parameters
        ----------
        on_progress
            Told of tasks that advance.
        on_update
            Handed the memory file of each task's new weights as soon as there is one; it is closed after.
        """
        started = time.monotonic()
        at_once = 1 if self.plan.sharing is Sharing.IN_TURN else len(self.plan.tasks)
        turns = asyncio.Semaphore(at_once)

        async def take_turn(plan: TaskPlan) -> TaskReport:
            async with turns:
                return await self._run_task(plan, on_progress, on_update)

        watching = asyncio.create_task(self._watch())
        try:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(take_turn(plan)) for plan in self.plan.tasks]
        finally:
            watching.cancel()
        return RoundReport(
            site=self._order.site,
            round=self._order.round,
            plan=self.plan,
            tasks=tuple(task.result() for task in running),
            timeline=tuple(sorted(self._spans, key=lambda span: span.start_s)),
            backend=self._backend.name,
            waited_s=started - self._arrival,
            wall_s=time.monotonic() - started,
            arrived=time.time() - (time.monotonic() - self._arrival),
            forecast=self.forecast,
        )

    async def _run_task(self, plan: TaskPlan, on_progress: OnProgress, on_update: OnUpdate) -> TaskReport:
        order, name = self._order, plan.task
        assignment = self._assignments[name]
        worker: WorkerHandle | None = None
        limit, whose = self._limit(assignment)
        try:
            async with (
                asyncio.timeout(limit),
                self._pool.worker(order.run, assignment.task, self._seats[name]) as worker,
            ):
                self._working.add(worker)
                worker.budget = plan.budget
                job = job_of(order, assignment, plan)
                result, update = await worker.do(job, self._weights[name], on_progress)
        except TimeoutError:
            cause = f"{self._where(name)}: no result within {whose}"
        except TaskError as error:
            cause = str(error)
        except (EngineError, OSError) as error:  # of this process, such as too many open files
            cause = f"{self._where(name)}: {self._lost or error}"
        else:
            if update is not None:
                try:
                    await on_update(name, update)
                finally:
                    os.close(update)
            self._spans += spans_of(name, result, self._arrival)
            return report_of(name, result, worker.seat.level, worker.pid)
        if worker is not None:
            cause = f"{cause}; its log is {worker.log}"
        log.warning("round %d: %s", order.round, cause)
        return TaskReport(
            task=name,
            status=Status.FAILED,
            error=cause,
            level=self._seats[name].level,
            pid=0 if worker is None else worker.pid,
        )

    def _limit(self, assignment: Assignment) -> tuple[float | None, str]:
        """Seconds left for a task that begins now, and what limits them."""
        own, given = self._order.deadline_s, assignment.deadline_s
        left = None if given is None else max(0.0, self._arrival + given - time.monotonic())
        if left is not None and (own is None or left < own):
            return left, f"the federation's deadline of {given:g} s since the round arrived"
        return own, f"its deadline of {own:g} s" if own else "no deadline"

    async def _watch(self) -> None:
        """End the workers if the device is lost to them: they might wait for it for ever."""
        while not (reason := self._backend.lost()):
            await asyncio.sleep(_WATCH_S)
        self._lost = reason
        await asyncio.gather(*(worker.end() for worker in self._working))

    def _where(self, task: str) -> str:
        return f"site {self._order.site!r}, task {task!r}"
