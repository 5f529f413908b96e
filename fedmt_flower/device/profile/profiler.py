"""Co-running speed, measured: warm workers that take a task's own training steps when they are told to.

A pool of them serves a whole sweep: one worker for each task, seat and batch size, its model, data and
kernels in place, so that a sample of any combination costs its window and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Self, TypeVar

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.ipc.frames import (
    Cover,
    Covered,
    Describe,
    Described,
    Frame,
    Measure,
    Measured,
    Rehearse,
    Rehearsed,
    Rest,
    Rested,
    Trace,
    Traced,
)
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.ipc.steps import Kernel, Step
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import WorkerHandle
from fedmt_flower.device.profile.room import Admission, to_rest
from fedmt_flower.device.profile.telemetry import SPOILING, Sampler, Usage, source_for
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.round import Mode
from fedmt_flower.domain.step import StepChoice
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError, FedMTError, ProtocolError, TaskError

log = logging.getLogger(__name__)

_RUN = "profile"
_LEAD_S = 0.03
"""From an order to its start: time for it to reach every worker."""
_TRACE_LEAD_S = 0.5
"""The same where a profiler must be started first."""
_GRACE_S = 10.0
_LONGEST_ROUND_S = 300.0
_LONGEST_DESCRIPTION_S = 60.0
_REHEARSAL = 4
"""Steps before a worker counts as warm: memory is held and kernels are chosen after two."""
_WAKING = 2
"""Steps after which a worker that rested holds its memory again."""
_UNKNOWN = 8 << 30
"""Bytes that a worker is taken to hold until it first rests, of a task not met before (ResNet-101: 7 GB)."""
_AT_REST = 1 << 30
"""Bytes that a worker is taken to hold on a GPU even at rest (on an H100 some 0.8 to 1.4 GB each)."""
_AT_REST_AT_MOST = 1.25 * _AT_REST
_FILL = 0.93
"""Part of the device's memory that is used; the rest is for what nobody accounts for."""
_PROCESSORS = len(os.sched_getaffinity(0))
_HOST = "cpu"
_ENDLESS = 1_000_000
"""Epochs, so that steps do not end by themselves."""

_Answer = TypeVar("_Answer", bound=Frame)


class Spoiled(FedMTError):
    """A measurement that does not count, because something went wrong during it."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A task in a seat, at the batch size that its parameters name."""

    task: Task
    seat: Seat

    @property
    def key(self) -> str:
        """What tells this probe's worker from others."""
        return repr((self.task.name, self.seat, sorted(self.task.parameters.items())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Speeds of tasks that ran together.

    Parameters
    ----------
    rates
        Pᵢ in samples per second, in the order of the probes.
    steps
        How many steps each rate rests on.
    usage
        The device meanwhile.
    spoiled
        What spoiled earlier attempts at this measurement.
    """

    rates: tuple[float, ...]
    steps: tuple[int, ...]
    usage: Usage
    spoiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Makespan:
    """A round's training run to the end.

    Parameters
    ----------
    seconds
        From the start of the first task to the end of the last.
    ends
        When each task ended, in seconds after the start.
    usage
        The device meanwhile.
    began
        The start, on the monotonic clock.
    spoiled
        What spoiled earlier attempts at this measurement.
    """

    seconds: float
    ends: tuple[float, ...]
    usage: Usage
    began: float
    spoiled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a rate is taken: after `settle_s` of running, over `length_s` or as long as `steps` steps take."""

    settle_s: float = 0.15
    length_s: float = 0.6
    longest_s: float = 5.0
    steps: int = 4


_Taken = TypeVar("_Taken", Rates, Makespan)


class Profiler:
    """A pool of measuring workers on one device, between `__enter__` and `__exit__`.

    Parameters
    ----------
    backend
        The device; opened and closed here.
    index
        The GPU that telemetry watches.
    directory
        Private directory for the workers' logs.
    window
        How rates are taken.
    autotune
        Whether cuDNN times its algorithms for every new shape, which costs seconds at each worker's start.
    attempts
        How often a spoiled measurement is taken anew before it is an error.
    """

    def __init__(
        self,
        backend: DeviceBackend,
        index: int,
        directory: Path,
        *,
        window: Window | None = None,
        autotune: bool = False,
        attempts: int = 3,
        hertz: float = 30.0,
    ) -> None:
        self.backend = backend
        self._index = index
        self._pool = Pool(backend, directory)
        self._window = window or Window()
        self._autotune = autotune
        self._attempts = attempts
        self._hertz = hertz
        self._workers: dict[str, WorkerHandle] = {}
        self._probes: dict[str, Probe] = {}
        self._needs: dict[str, int] = {}
        self._awake: dict[str, int] = {}
        self._others = 0
        self._lengths: dict[tuple[Window, tuple[str, ...]], float] = {}
        self.started = 0
        """Workers that were started, and the seconds that this took."""
        self.starting_s = 0.0
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._runner = undo.enter_context(asyncio.Runner())
            self.backend.open()
            undo.callback(self.backend.close)
            self._runner.run(self._pool.open())
            undo.callback(lambda: self._runner.run(self._pool.close()))
            source = source_for(self.backend.name, self._index)
            self.telemetry = undo.enter_context(Sampler(source, self._hertz))
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.clear()
        self._closing.close()

    def seat(self, budget: float, sharing: Sharing = Sharing.CAPPED, *, yields: bool = False) -> Seat:
        """The seat of a budget in per cent."""
        return self.backend.seat(budget, sharing, yields=yields)

    def prepare_only(self, probes: Sequence[Probe]) -> dict[str, Rehearsed]:
        """As `prepare`, after all other workers were let go: they hold memory even at rest."""
        self.dismiss(keep=probes)
        return self.prepare(probes)

    def prepare(self, probes: Sequence[Probe]) -> dict[str, Rehearsed]:
        """Have a warm worker for every probe; what each new one said of itself, by the probe's key.

        Raises
        ------
        EngineError
            If a worker cannot be started or its task cannot be trained.
        """
        missing = {probe.key: probe for probe in probes if not self._is_warm(probe)}
        if not missing:
            return {}
        began = time.monotonic()
        said = dict(zip(missing, self._runner.run(self._warm_all(list(missing.values()))), strict=True))
        self._others = self.telemetry.fresh().memory_bytes - sum(self._awake.values())
        self.started += len(said)
        self.starting_s += time.monotonic() - began
        return said

    def describe(self, probe: Probe, *, peak: bool = False) -> Described:
        """What a step of `probe` costs, and what the device can do for a task in its seat.

        With `peak` also how fast it multiplies matrices in the precision of the task's steps.

        Raises
        ------
        EngineError
            If its worker cannot be started, or its step cannot be taken.
        """
        try:
            self._ready([probe])
            order = Describe(peak=peak)
            return self._runner.run(self._ask(probe, order, Described, _LONGEST_DESCRIPTION_S))
        except Spoiled as error:
            raise EngineError(str(error)) from error

    def dismiss(self, keep: Sequence[Probe] = ()) -> None:
        """Let the workers go, but for those of `keep`: their memory is free again after this."""
        kept = {probe.key for probe in keep}
        going = [key for key in self._workers if key not in kept]
        leaving = [self._workers.pop(key) for key in going]
        self._awake = {key: held for key, held in self._awake.items() if key in kept}

        async def leave() -> None:
            await asyncio.gather(*(worker.leave() for worker in leaving))

        self._runner.run(leave())

    def begin_anew(self) -> None:
        """Let all workers go, and open the device again if it failed; EngineError if that does not work."""
        self.dismiss()
        self._runner.run(self._pool.refresh())

    def measure(self, probes: Sequence[Probe], window: Window | None = None) -> Rates:
        """The rates of `probes` running together, over `window` or the profiler's; of one, its solo rate.

        A window in which a co-runner died, stalled or was slowed down by heat does not count and is taken
        again, up to the number of attempts; EngineError after that.
        """
        return self._retry(probes, lambda: self._measure(probes, window or self._window))

    def cover(self, volumes: Sequence[tuple[Probe, int]], *, in_turn: bool = False) -> Makespan:
        """Run a round of training to the end: each probe over its volume in samples, together or in turn.

        In turn, the time between one task's end and the next one's start is left out, and the joules of that
        time: a baseline must not pay for the messages of this measurement.
        """
        return self._retry([probe for probe, _ in volumes], lambda: self._cover(volumes, in_turn))

    def trace(self, probes: Sequence[Probe], seconds: float) -> tuple[float, tuple[tuple[Kernel, ...], ...]]:
        """The kernels of `probes` running together for `seconds`, and the start of that on their clock."""
        self._ready(probes)
        # The first trace in a process sets up CUPTI, which takes a second and must not be in the picture.
        for length in (0.01, seconds):
            start = time.monotonic() + _TRACE_LEAD_S
            orders = [(probe, Trace(start=start, end=start + length)) for probe in probes]
            answers = self._runner.run(self._ask_all(orders, Traced, patience_s=60.0))
        return start, tuple(answer.kernels for answer in answers)

    def pid(self, probe: Probe) -> int:
        """The process of a warm probe."""
        return self._workers[probe.key].pid

    def _measure(self, probes: Sequence[Probe], window: Window) -> Rates:
        together = window, tuple(probe.key for probe in probes)
        length = self._lengths.get(together, window.length_s * (2 if _is_launched(probes) else 1))
        while True:
            start = time.monotonic() + _LEAD_S
            begin, end = start + window.settle_s, start + window.settle_s + length
            orders = [(probe, Measure(start=start, end=end)) for probe in probes]
            answers = self._runner.run(self._ask_all(orders, Measured, patience_s=length + _GRACE_S))
            taken = [[s for s in answer.steps if begin <= s.finished <= end] for answer in answers]
            if min(map(len, taken)) >= window.steps or length >= window.longest_s:
                break
            # As long as so many steps would take, by those that there were.
            there = max(1, min(map(len, taken)))
            length = min(max(2.0, (window.steps + 1) / there) * length, window.longest_s)
        self._lengths[together] = length
        for probe, steps in zip(probes, taken, strict=True):
            if len(steps) < 2:
                raise Spoiled(f"{probe.task.name} stalled: {len(steps)} steps in {length:.1f} s")
        usage = self._usage(begin, end)
        return Rates(rates=tuple(map(_rate, taken)), steps=tuple(map(len, taken)), usage=usage)

    def _cover(self, volumes: Sequence[tuple[Probe, int]], in_turn: bool) -> Makespan:
        answers: list[Covered] = []
        for together in [[volume] for volume in volumes] if in_turn else [volumes]:
            start = time.monotonic() + _LEAD_S
            orders = [(probe, Cover(start=start, samples=samples)) for probe, samples in together]
            answers += self._runner.run(self._ask_all(orders, Covered, patience_s=_LONGEST_ROUND_S))
        begun, ended = min(answer.begun for answer in answers), max(answer.ended for answer in answers)
        pauses, usage = 0.0, self._usage(begun, ended)
        if in_turn:
            pauses = sum(b.begun - a.ended for a, b in pairwise(answers))
            spent = [self.telemetry.usage(answer.begun, answer.ended).energy_j for answer in answers]
            known = [joules for joules in spent if joules is not None]
            usage = replace(usage, energy_j=sum(known) if len(known) == len(spent) else None)
        return Makespan(
            seconds=ended - begun - pauses,
            ends=tuple(answer.ended - begun for answer in answers),
            usage=usage,
            began=begun,
        )

    def _usage(self, begin: float, end: float) -> Usage:
        usage = self.telemetry.usage(begin, end)
        if hot := usage.slowdowns & SPOILING:
            raise Spoiled(f"the GPU was slowed down: {', '.join(sorted(hot))}")
        return usage

    def _retry(self, probes: Sequence[Probe], take: Callable[[], _Taken]) -> _Taken:
        spoiled: list[str] = []
        while True:
            try:
                self._ready(probes)
                return replace(take(), spoiled=tuple(spoiled))
            except Spoiled as error:
                spoiled.append(str(error))
                log.warning("measurement spoiled: %s", error)
                if len(spoiled) == self._attempts:
                    raise EngineError(f"spoiled {len(spoiled)} times in a row; last: {error}") from error
                self._runner.run(self._pool.refresh())

    def _ready(self, probes: Sequence[Probe]) -> None:
        self.prepare(probes)
        self._runner.run(self._wake(probes))

    def _rehearsal(self, probe: Probe, steps: int) -> Rehearse:
        parameters = {**probe.task.parameters, "epochs": _ENDLESS}
        job = Job(site=_RUN, round=0, seed=0, mode=Mode.TRAIN, parameters=parameters)
        return Rehearse(job=job, steps=steps, autotune=self._autotune)

    async def _wake(self, probes: Sequence[Probe]) -> None:
        """Have `probes` hold the memory of their steps; those that have long not been used rest for it."""
        asleep = [probe for probe in probes if probe.key not in self._awake]
        needed = sum(self._needs[probe.key] for probe in asleep)
        await self._rest(to_rest(self._awake, {probe.key for probe in probes}, needed, self._usable))
        await self._ask_all([(p, self._rehearsal(p, _WAKING)) for p in asleep], Rehearsed, _GRACE_S)
        # Last used, last to rest.
        self._awake |= {probe.key: self._awake.pop(probe.key, self._needs[probe.key]) for probe in probes}

    async def _make_room(self, probes: Sequence[Probe]) -> Admission:
        """Let workers rest for `probes`, which start; what lets them do so side by side."""
        for probe in probes:
            self._awake.pop(probe.key, None)
        kept = 0 if probes[0].seat.device == _HOST else _AT_REST
        needed = sum(sorted(map(self._expected, probes))[-_PROCESSORS:]) + kept * len(probes)
        await self._rest(to_rest(self._awake, set(), needed, self._usable))
        return Admission(self._usable - sum(self._awake.values()), _PROCESSORS, kept)

    def _expected(self, probe: Probe) -> int:
        """Bytes that a worker of `probe` may hold while it starts: what its task needed at most so far.

        What it needed with smaller batches counts in proportion.
        """
        if probe.seat.device == _HOST:
            return 0
        own = [
            math.ceil(held * max(1.0, _batch(probe) / _batch(known)))
            for key, held in self._needs.items()
            if (known := self._probes[key]).task.name == probe.task.name
        ]
        return max(own, default=_UNKNOWN)

    @property
    def room(self) -> int:
        """Workers that fit the device: what they hold at rest leaves half of its memory to those at work."""
        if self.seat(100.0).device == _HOST:
            return self.backend.max_workers
        return min(self.backend.max_workers, int(self.telemetry.capacity_bytes / (2 * _AT_REST_AT_MOST)))

    @property
    def _usable(self) -> int:
        """Bytes of the device's memory that awake workers may hold."""
        return int(_FILL * self.telemetry.capacity_bytes) - self._others

    async def _rest(self, keys: Sequence[str]) -> None:
        resting = [self._probes[key] for key in keys]
        self._awake = {key: held for key, held in self._awake.items() if key not in keys}
        orders = [(probe, Rest()) for probe in resting if self._is_warm(probe)]
        await self._ask_all(orders, Rested, _GRACE_S)

    def _is_warm(self, probe: Probe) -> bool:
        worker = self._workers.get(probe.key)
        return worker is not None and not worker.ended.done()

    async def _warm_all(self, probes: Sequence[Probe]) -> list[Rehearsed]:
        admission = await self._make_room(probes)

        async def warm(probe: Probe) -> Rehearsed:
            async with admission.turn(lambda: self._expected(probe)):
                worker = await self._pool.acquire(_RUN, probe.task, probe.seat)
                self._workers[probe.key], self._probes[probe.key] = worker, probe
                answer = await self._ask(
                    probe, self._rehearsal(probe, _REHEARSAL), Rehearsed, patience_s=120.0
                )
                await self._ask(probe, Rest(), Rested, _GRACE_S)
                # At once: the others of this task, which wait for room, are then not taken for the largest.
                self._needs[probe.key] = answer.memory_bytes
                return answer

        # All answers are waited for, so that none is still starting after this.
        answers = await asyncio.gather(*map(warm, probes), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, Spoiled):
                raise EngineError(str(answer)) from answer
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, Rehearsed)]

    async def _ask_all(
        self, orders: Sequence[tuple[Probe, Frame]], expected: type[_Answer], patience_s: float
    ) -> list[_Answer]:
        """Send each worker its order and wait for all answers, so that none is still running after this."""
        answers = await asyncio.gather(
            *(self._ask(probe, order, expected, patience_s) for probe, order in orders),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return [answer for answer in answers if isinstance(answer, expected)]

    async def _ask(self, probe: Probe, order: Frame, expected: type[_Answer], patience_s: float) -> _Answer:
        worker = self._workers[probe.key]
        try:
            async with asyncio.timeout(patience_s):
                answer = await worker.ask(order)
        except TimeoutError as error:
            await self._drop(probe)
            raise Spoiled(f"{probe.task.name} stalled: no answer within {patience_s:.0f} s") from error
        except (TaskError, EngineError) as error:
            await self._drop(probe)
            raise Spoiled(str(error)) from error
        if not isinstance(answer, expected):
            raise ProtocolError(f"worker {worker.pid} answered {answer}, expected {expected.__name__}")
        return answer

    async def _drop(self, probe: Probe) -> None:
        self._awake.pop(probe.key, None)
        await self._pool.discard(self._workers.pop(probe.key))


def _is_launched(probes: Sequence[Probe]) -> bool:
    """Whether this is one task alone, kernel by kernel.

    It is bound by the host's launches, which vary most, and every share is divided by its rate.
    """
    return len(probes) == 1 and probes[0].task.parameters.get("step") != StepChoice.GRAPH


def _batch(probe: Probe) -> int:
    return int(probe.task.parameters.get("batch_size", 1))


def _rate(steps: Sequence[Step]) -> float:
    """Samples per second from the end of the first step to the end of the last."""
    return sum(step.samples for step in steps[1:]) / (steps[-1].finished - steps[0].finished)
