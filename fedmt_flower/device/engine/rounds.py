"""One round on one device: its tasks in their workers, watched over until each has ended."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Collection, Container, Iterable, Mapping

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.engine.handover import Movers, Seated, handovers
from fedmt_flower.device.engine.link import Transfers
from fedmt_flower.device.ipc.frames import Advanced
from fedmt_flower.device.ipc.job import job_of, report_of, spans_of
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.domain.plan import DevicePlan, Sharing, TaskPlan
from fedmt_flower.domain.round import RoundOrder, RoundReport, Status, TaskReport
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
        The memory files of the weights that have come, by task; they stay the caller's.
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
        self._weights = dict(weights)
        self._arrivals = dict.fromkeys(weights, arrival)
        self._seats = {p.task: backend.seat(p.budget, self.plan.sharing) for p in self.plan.tasks}
        self._turns = asyncio.Semaphore(1 if self.plan.sharing is Sharing.IN_TURN else len(self.plan.tasks))
        self._transfers = Transfers(
            order.coordination.network.link,
            order.coordination.overlap.policy,
            {p.task: os.fstat(weights[p.task]).st_size for p in self.plan.tasks if p.task in weights},
            arrival,
        )
        self._pool = pool
        self._backend = backend
        self._arrival = arrival
        self._spans: list[Span] = []
        self._movers = Movers(planned.budgets, order.run, pool, backend, self.plan.sharing)
        self._group = asyncio.TaskGroup()
        self._tasks: dict[str, asyncio.Task[TaskReport]] = {}
        self._started = 0.0
        self._lost = ""

    async def run(self, on_progress: OnProgress, on_update: OnUpdate) -> RoundReport:
        """Run it to the end of the last task whose weights have come by then.

        Cancelled, it ends the workers that it occupies.

        Parameters
        ----------
        on_progress
            Told of tasks that advance.
        on_update
            Handed the memory file of each task's new weights as soon as there is one; it is closed after.
        """
        self._started = time.monotonic()
        self._on_progress, self._on_update = on_progress, on_update
        watching = asyncio.create_task(self._watch())
        try:
            async with self._transfers, self._group:
                self._begin(self._weights)
        finally:
            watching.cancel()
            await self._movers.close()
        return self.report()

    @property
    def under_way(self) -> bool:
        """Whether any of its tasks has not ended yet."""
        return not all(task.done() for task in self._tasks.values())

    @property
    def waits(self) -> frozenset[str]:
        """The tasks that it could still take in: their weights have not come, and it is under way."""
        return frozenset(self._seats.keys() - self._tasks.keys()) if self.under_way else frozenset()

    def bring(self, weights: Mapping[str, int]) -> None:
        """Have tasks that it `waits` for begin, now that their weights have come."""
        self._weights |= weights
        self._arrivals |= dict.fromkeys(weights, time.monotonic())
        self._begin(weights)

    async def ended(self, tasks: Iterable[str]) -> None:
        """Return once `tasks`, which it runs, have ended."""
        await asyncio.wait([self._tasks[name] for name in tasks])

    async def leave(self, tasks: Collection[str]) -> None:
        """End `tasks`, and the workers that they occupy; the others go on."""
        for name in tasks:
            self._tasks[name].cancel()
        await self.ended(tasks)

    def report(self) -> RoundReport:
        """How the tasks fared that have ended."""
        ended = [task for task in self._tasks.values() if task.done() and not task.cancelled()]
        spans = [*self._spans, *self._transfers.spans]
        return RoundReport(
            site=self._order.site,
            round=self._order.round,
            plan=self.plan,
            tasks=tuple(task.result() for task in ended),
            timeline=tuple(sorted(spans, key=lambda span: span.start_s)),
            backend=self._backend.name,
            waited_s=self._started - self._arrival,
            wall_s=time.monotonic() - self._started,
            arrived=time.time() - (time.monotonic() - self._arrival),
            forecast=self.forecast,
            link=self._order.coordination.network.link,
        )

    def _begin(self, tasks: Container[str]) -> None:
        for plan in self.plan.tasks:
            if plan.task in tasks:
                self._tasks[plan.task] = self._group.create_task(self._run_task(plan))

    async def _run_task(self, plan: TaskPlan) -> TaskReport:
        order, name = self._order, plan.task
        assignment = self._assignments[name]
        given, own = assignment.deadline_s, order.deadline_s
        seated: Seated | None = None
        update: int | None = None
        try:
            with self._transfers.taking_part(name):
                end = None if given is None else self._arrivals[name] + given
                async with asyncio.timeout_at(end) as federations:
                    async with (
                        self._turns,
                        asyncio.timeout(own),
                        self._movers.seated(
                            assignment.task, job_of(order, assignment, plan), plan.budget, self._seats[name]
                        ) as seated,
                    ):
                        await self._transfers.received(name)
                        finished = await self._movers.train(seated, self._weights[name], self._on_progress)
                        result, update = finished.result, finished.update
                    if update is not None:
                        await self._transfers.upload(name, os.fstat(update).st_size)
        except TimeoutError:
            if federations.expired():
                limit = f"the federation's deadline of {given:g} s since the round arrived"
            else:
                limit = f"its deadline of {own:g} s"
            cause = f"{self._where(name)}: no result within {limit}"
        except TaskError as error:
            cause = str(error)
        except (EngineError, OSError) as error:  # of this process, such as too many open files
            cause = f"{self._where(name)}: {self._lost or error}"
        else:
            if update is not None:
                await self._on_update(name, update)
            self._spans += spans_of(name, result, self._arrival)
            moves = handovers(seated, result, self._arrival)
            return report_of(name, result, seated.worker.seat.level, seated.worker.pid, moves)
        finally:
            if update is not None:
                os.close(update)
        if seated is not None:
            cause = f"{cause}; its log is {seated.worker.log}"
        log.warning("round %d: %s", order.round, cause)
        return TaskReport(
            task=name,
            status=Status.FAILED,
            error=cause,
            level=self._seats[name].level,
            pid=0 if seated is None else seated.worker.pid,
        )

    async def _watch(self) -> None:
        """End the workers if the device is lost to them: they might wait for it for ever."""
        while not (reason := self._backend.lost()):
            await asyncio.sleep(_WATCH_S)
        self._lost = reason
        await asyncio.gather(*(worker.end() for worker in self._movers.workers))

    def _where(self, task: str) -> str:
        return f"site {self._order.site!r}, task {task!r}"
