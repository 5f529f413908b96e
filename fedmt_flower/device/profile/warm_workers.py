"""The workers of a sweep, one for each task, seat and batch size, and the memory that they hold.

Each has its model, data and kernels in place, so that a sample of any combination costs its window and
nothing else.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self, TypeVar

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.ipc.frames import Frame, Rehearse, Rehearsed, Rest, Rested
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.worker_handle import WorkerHandle
from fedmt_flower.device.profile.measurement import Probe, Spoiled
from fedmt_flower.device.profile.room import Admission, to_rest
from fedmt_flower.device.profile.telemetry import Sampler, source_for
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.round import Mode
from fedmt_flower.errors import EngineError, ProtocolError, TaskError

_RUN = "profile"
_PATIENCE_S = 10.0
"""How long a worker may take to rest or to wake."""
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


class WarmWorkers:
    """The workers of one device, between `__enter__` and `__exit__`: one for each probe.

    A worker that is not used gives its memory back where others need it; its process, its model and its
    data stay.

    Parameters
    ----------
    backend
        The device; opened and closed here.
    index
        The GPU that telemetry watches.
    directory
        Private directory for the workers' logs.
    autotune
        Whether cuDNN times its algorithms for every new shape, which costs seconds at each worker's start.
    hertz
        Readings of the device in a second.
    """

    def __init__(
        self, backend: DeviceBackend, index: int, directory: Path, *, autotune: bool, hertz: float
    ) -> None:
        self._backend = backend
        self._index = index
        self._pool = Pool(backend, directory)
        self._autotune = autotune
        self._hertz = hertz
        self._workers: dict[str, WorkerHandle] = {}
        self._probes: dict[str, Probe] = {}
        self._needs: dict[str, int] = {}
        self._awake: dict[str, int] = {}
        self._others = 0
        self.started = 0
        """Workers that were started, and the seconds that this took."""
        self.starting_s = 0.0
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._runner = undo.enter_context(asyncio.Runner())
            self._backend.open()
            undo.callback(self._backend.close)
            self._runner.run(self._pool.open())
            undo.callback(lambda: self._runner.run(self._pool.close()))
            source = source_for(self._backend.name, self._index)
            self.telemetry = undo.enter_context(Sampler(source, self._hertz))
            self._closing = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers.clear()
        self._closing.close()

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

    def ready(self, probes: Sequence[Probe]) -> None:
        """Have a warm worker for every probe, and their memory at hand: the next order is obeyed at once."""
        self.prepare(probes)
        self._runner.run(self._wake(probes))

    def dismiss(self, keep: Sequence[Probe] = ()) -> None:
        """Let the workers go, but for those of `keep`: their memory is free again after this."""
        kept = {probe.key for probe in keep}
        going = [key for key in self._workers if key not in kept]
        leaving = [self._workers.pop(key) for key in going]
        self._awake = {key: held for key, held in self._awake.items() if key in kept}

        async def leave() -> None:
            await asyncio.gather(*(worker.leave() for worker in leaving))

        self._runner.run(leave())

    def refresh(self) -> None:
        """Open the device again if it failed; EngineError if that does not work."""
        self._runner.run(self._pool.refresh())

    def begin_anew(self) -> None:
        """Let all workers go, and open the device again if it failed; EngineError if that does not work."""
        self.dismiss()
        self.refresh()

    def ask_all(
        self, orders: Sequence[tuple[Probe, Frame]], expected: type[_Answer], patience_s: float
    ) -> list[_Answer]:
        """Send each worker its order and wait for all answers, so that none is still running after this.

        Raises
        ------
        Spoiled
            If a worker does not answer within `patience_s` seconds, cannot do it or ends; it is gone then.
        """
        return self._runner.run(self._ask_all(orders, expected, patience_s))

    def pid(self, probe: Probe) -> int:
        """The process of a warm probe."""
        return self._workers[probe.key].pid

    @property
    def room(self) -> int:
        """Workers that fit the device: what they hold at rest leaves half of its memory to those at work."""
        if self._backend.seat(100.0, Sharing.CAPPED).device == _HOST:
            return self._backend.max_workers
        return min(self._backend.max_workers, int(self.telemetry.capacity_bytes / (2 * _AT_REST_AT_MOST)))

    @property
    def _usable(self) -> int:
        """Bytes of the device's memory that awake workers may hold."""
        return int(_FILL * self.telemetry.capacity_bytes) - self._others

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

    def _rehearsal(self, probe: Probe, steps: int) -> Rehearse:
        parameters = {**probe.task.parameters, "epochs": _ENDLESS}
        job = Job(site=_RUN, round=0, seed=0, mode=Mode.TRAIN, parameters=parameters)
        return Rehearse(job=job, steps=steps, autotune=self._autotune)

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
                await self._ask(probe, Rest(), Rested, _PATIENCE_S)
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

    async def _make_room(self, probes: Sequence[Probe]) -> Admission:
        """Let workers rest for `probes`, which start; what lets them do so side by side."""
        for probe in probes:
            self._awake.pop(probe.key, None)
        kept = 0 if probes[0].seat.device == _HOST else _AT_REST
        needed = sum(sorted(map(self._expected, probes))[-_PROCESSORS:]) + kept * len(probes)
        await self._rest(to_rest(self._awake, set(), needed, self._usable))
        return Admission(self._usable - sum(self._awake.values()), _PROCESSORS, kept)

    async def _wake(self, probes: Sequence[Probe]) -> None:
        """Have `probes` hold the memory of their steps; those that have long not been used rest for it."""
        asleep = [probe for probe in probes if probe.key not in self._awake]
        needed = sum(self._needs[probe.key] for probe in asleep)
        await self._rest(to_rest(self._awake, {probe.key for probe in probes}, needed, self._usable))
        await self._ask_all([(p, self._rehearsal(p, _WAKING)) for p in asleep], Rehearsed, _PATIENCE_S)
        # Last used, last to rest.
        self._awake |= {probe.key: self._awake.pop(probe.key, self._needs[probe.key]) for probe in probes}

    async def _rest(self, keys: Sequence[str]) -> None:
        resting = [self._probes[key] for key in keys]
        self._awake = {key: held for key, held in self._awake.items() if key not in keys}
        orders = [(probe, Rest()) for probe in resting if self._is_warm(probe)]
        await self._ask_all(orders, Rested, _PATIENCE_S)

    async def _ask_all(
        self, orders: Sequence[tuple[Probe, Frame]], expected: type[_Answer], patience_s: float
    ) -> list[_Answer]:
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


def _batch(probe: Probe) -> int:
    return int(probe.task.parameters.get("batch_size", 1))
