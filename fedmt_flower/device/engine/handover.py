"""Tasks that move to other seats in mid-round, when the set of tasks that compute changes (§ VI-B).

A task's state goes from its worker to another one of the same task, at the boundary between two steps. The
other is made ready while the first still trains; the first rests until the second has said that it has
everything, so that at most one of them trains, and the first goes on if the second fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.ipc.frames import (
    Advanced,
    Offer,
    Offered,
    Pause,
    Relieve,
    Resume,
    Stand,
    Standing,
    Stays,
)
from fedmt_flower.device.ipc.job import Job, JobResult
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import Baton, Finished, Outcome, WorkerHandle
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.round import Handover
from fedmt_flower.domain.task import Task, TaskKind
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import EngineError, TaskError

log = logging.getLogger(__name__)

_SETTLED_S = 0.02
"""How long a set of computing tasks must last before budgets follow it: tasks end in the same moment too."""
_LONGEST_STAND_S = 60.0
_LONGEST_HANDOVER_S = 10.0
_LEAST_BYTES = 1 << 30
"""What a worker needs at least: a CUDA context alone takes half of it."""

OnProgress = Callable[[Advanced], Awaitable[None]]
Budgets = Mapping[frozenset[str], Mapping[str, float]]

_standing: set[asyncio.Task[None]] = set()
"""Workers that are made ready, some for a round that is over by then: the next one will find them warm."""


@dataclass(slots=True)
class Seated:
    """A task at work: the worker that it has now.

    `wanted` is the budget that it should have, `target` the worker that stands for it; while it is `moving`
    no other is looked for, and a task whose move has failed `stays` for the round. `passes` has an entry for
    each pause of its training: budget and level of its new seat, or None where it went on in the old one.
    """

    task: Task
    job: Job
    worker: WorkerHandle
    target: WorkerHandle | None = None
    wanted: float = 0.0
    trains: bool = False
    moving: bool = False
    stays: bool = False
    passes: list[tuple[float, int] | None] = field(default_factory=list)


class Movers:
    """Moves the tasks of one round.

    Parameters
    ----------
    budgets
        Rᵢ in per cent by set of computing tasks; empty: no task ever moves.
    run
        The federated run.
    pool, backend, sharing
        Where workers come from.
    """

    def __init__(
        self, budgets: Budgets, run: str, pool: Pool, backend: DeviceBackend, sharing: Sharing
    ) -> None:
        self._budgets = budgets if backend.spares else {}
        self._run = run
        self._pool = pool
        self._backend = backend
        self._sharing = sharing
        self._seated: list[Seated] = []
        self._computing: dict[str, Seated] = {}
        self._ended = False
        self._following: asyncio.Task[None] | None = None
        if budgets and not backend.spares:
            log.warning("budgets stay as they are in mid-round: the device has no memory for spare workers")

    @property
    def workers(self) -> list[WorkerHandle]:
        """The workers that the round occupies."""
        held = [worker for seated in self._seated for worker in (seated.worker, seated.target)]
        return [worker for worker in held if worker is not None]

    @asynccontextmanager
    async def seated(self, task: Task, job: Job, budget: float, seat: Seat) -> AsyncIterator[Seated]:
        """Hold a worker for a job, and whichever it moves to: kept warm after, or ended if the job fails."""
        seated = Seated(task, job, await self._pool.acquire(self._run, task, seat), wanted=budget)
        seated.worker.budget = budget
        self._seated.append(seated)
        try:
            yield seated
        except BaseException:
            await self._pool.discard(seated.worker)
            raise
        finally:
            self._seated.remove(seated)
        self._pool.release(seated.worker)

    async def train(self, seated: Seated, weights: int, on_progress: OnProgress) -> Finished:
        """Do the job of `seated` on the memory file `weights`, in whatever seats it gets.

        Raises
        ------
        TaskError, EngineError
            As `WorkerHandle.follow`.
        """
        name = seated.task.name
        self._computing[name] = seated
        seated.trains = True
        self._changed()
        try:
            outcome = await seated.worker.do(seated.job, weights, on_progress)
            while not isinstance(outcome, Finished):
                outcome = await self._passed(seated, outcome, on_progress)
            return outcome
        finally:
            seated.trains, self._ended = False, True
            del self._computing[name]
            seated.worker.offered.put_nowait(Offered(why="it has ended"))
            if seated.target is not None:
                _in_background(self._relieve(seated.target))
                seated.target = None
            self._changed()

    async def close(self) -> None:
        """Stop following what tasks do; the round is over."""
        self._budgets = {}
        if self._following is not None:
            self._following.cancel()
            await asyncio.wait({self._following})

    def _changed(self) -> None:
        """Have budgets follow the set that computes now: once a first task has ended, and not before."""
        if not self._budgets or not self._ended:
            return
        if self._following is not None:
            self._following.cancel()
        self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        await asyncio.sleep(_SETTLED_S)
        for name, budget in self._budgets.get(frozenset(self._computing), {}).items():
            seated = self._computing[name]
            seated.wanted = budget
            seat = self._backend.seat(budget, self._sharing)
            movable = seated.task.kind is TaskKind.STEPPED and not seated.moving and not seated.stays
            if movable and seat.level != seated.worker.seat.level:
                seated.moving = True
                _in_background(self._move(seated, budget, seat))

    async def _move(self, seated: Seated, budget: float, seat: Seat) -> None:
        """Have a worker in `seat` stand for the task; then the task pause, if that is still wanted."""
        target: WorkerHandle | None = None
        try:
            self._check_room(seated.worker, seat)
            target = await self._pool.acquire(self._run, seated.task, seat)
            async with asyncio.timeout(_LONGEST_STAND_S):
                by_device = await self._made_ready(seated, target)
        except (TaskError, EngineError, TimeoutError) as error:
            log.warning("task %s keeps its budget: %s", seated.task.name, error or "no worker in time")
            seated.stays = True
            if target is not None:
                await self._pool.discard(target)
            return
        except BaseException:
            if target is not None:
                await self._pool.discard(target)
            raise
        if not seated.trains or seated.wanted != budget:
            await self._relieve(target)
            seated.moving = False
            self._changed()
            return
        target.site, target.budget, target.progress = seated.job.site, budget, seated.worker.progress
        seated.target = target
        try:
            await seated.worker.tell(Pause(by_device=by_device))
        except EngineError as error:  # its own coroutine tells of it
            log.debug("task %s cannot pause: %s", seated.task.name, error)

    def _check_room(self, worker: WorkerHandle, seat: Seat) -> None:
        """Raise EngineError unless there is a warm worker in `seat`, or memory for another like `worker`."""
        idle = (other for other in self._pool.workers if not other.busy)
        if any((other.run, other.task, other.seat) == (worker.run, worker.task, seat) for other in idle):
            return
        used, total = self._backend.memory()
        needed, free = max(worker.memory_bytes, _LEAST_BYTES), total - used
        if needed > free:
            raise EngineError(
                f"another worker needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
            )

    async def _made_ready(self, seated: Seated, target: WorkerHandle) -> bool:
        """Have `target` stand for the job; whether the state can go from device to device."""
        place, why = None, "states of CPUs go through memory files"
        if seated.worker.seat.device.startswith("cuda") and seated.trains:
            await seated.worker.tell(Offer())
            offered = await seated.worker.offered.get()
            place, why = offered.place, offered.why
        answer = await target.ask(Stand(job=seated.job, place=place))
        if not isinstance(answer, Standing):
            raise EngineError(f"worker {target.pid} stood for a job with {type(answer).__name__}")
        if place is not None and not answer.opened:
            why = answer.why
        if not answer.opened and target.seat.device.startswith("cuda"):
            log.warning("the state of %s goes through the host's memory: %s", seated.task.name, why)
        return answer.opened

    async def _passed(self, seated: Seated, outcome: Baton | Stays, on_progress: OnProgress) -> Outcome:
        """Go on after a pause: in the worker that stands for the job, or where it was."""
        source, target = seated.worker, seated.target
        assert target is not None
        seated.target = None
        if isinstance(outcome, Stays):
            log.warning("task %s keeps its budget: %s", seated.task.name, outcome.why)
            seated.stays = True
            seated.passes.append(None)
            _in_background(self._relieve(target))
            return await source.follow(on_progress)
        try:
            async with asyncio.timeout(_LONGEST_HANDOVER_S):
                await target.take_over(outcome)
        except (TaskError, EngineError, TimeoutError) as error:
            log.warning("task %s goes on in its seat: %s", seated.task.name, error or "no answer in time")
            # Ended before the source goes on: at most one of them trains.
            await self._pool.discard(target)
            seated.stays = True
            seated.passes.append(None)
            await source.tell(Resume())
            return await source.follow(on_progress)
        except BaseException:
            await self._pool.discard(target)
            raise
        finally:
            if outcome.file is not None:
                os.close(outcome.file)
        # Not before: meanwhile others may end their moves, and have this task moved to the same seat again.
        seated.worker, seated.moving = target, False
        seated.passes.append((target.budget, target.seat.level))
        log.info("task %s goes on with %g %% in worker %d", seated.task.name, target.budget, target.pid)
        _in_background(self._relieve(source))
        self._changed()
        return await target.follow(on_progress)

    async def _relieve(self, worker: WorkerHandle) -> None:
        """Have a worker whose job another goes on with let go of it, and be there for the next."""
        try:
            await worker.tell(Relieve())
        except EngineError as error:
            log.info("a worker ended before it was relieved of its job: %s", error)
            await self._pool.discard(worker)
        else:
            self._pool.release(worker)


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    """Have `work` go on, whatever becomes of the round."""
    task = asyncio.create_task(work)
    _standing.add(task)
    task.add_done_callback(_standing.discard)


def handovers(seated: Seated, result: JobResult, arrival: float) -> tuple[Handover, ...]:
    """The hand-overs of a job, with the time that each one cost; moments count from `arrival`."""
    computed = [stretch for stretch in result.stretches if stretch.phase is Phase.COMPUTE]
    return tuple(
        Handover(
            at_s=before.end - arrival,
            budget=passed[0],
            level=passed[1],
            lost_s=after.start - before.end,
        )
        for (before, after), passed in zip(pairwise(computed), seated.passes, strict=True)
        if passed is not None
    )
