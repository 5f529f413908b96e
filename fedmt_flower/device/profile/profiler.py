"""Co-running speed, measured: warm workers take their tasks' own training steps when they are told to."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Self, TypeVar

from fedmt_flower.device.backends import DeviceBackend, sound_budget
from fedmt_flower.device.ipc.frames import (
    Cover,
    Covered,
    Describe,
    Described,
    Measure,
    Measured,
    Trace,
    Traced,
)
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.device.ipc.steps import Kernel, Step
from fedmt_flower.device.profile.measurement import Makespan, Probe, Rates, Spoiled, Window
from fedmt_flower.device.profile.telemetry import SPOILING, Usage
from fedmt_flower.device.profile.warm_workers import WarmWorkers
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.step import StepChoice
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

_LEAD_S = 0.03
"""From an order to its start: time for it to reach every worker."""
_TRACE_LEAD_S = 0.5
"""The same where a profiler must be started first."""
_GRACE_S = 10.0
"""From the end of a window to the answers."""
_LONGEST_ROUND_S = 300.0
_LONGEST_DESCRIPTION_S = 60.0

_Taken = TypeVar("_Taken", Rates, Makespan)


class Profiler:
    """Measures tasks on one device, between `__enter__` and `__exit__`, by `workers` that it keeps warm.

    Parameters
    ----------
    backend, index, directory, autotune, hertz
        See `WarmWorkers`.
    window
        How rates are taken.
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
        self.workers = WarmWorkers(backend, index, directory, autotune=autotune, hertz=hertz)
        self._window = window or Window()
        self._attempts = attempts
        self._lengths: dict[tuple[Window, tuple[str, ...]], float] = {}

    def __enter__(self) -> Self:
        self.workers.__enter__()
        self.telemetry = self.workers.telemetry
        return self

    def __exit__(self, *exception: object) -> None:
        self.workers.__exit__(*exception)

    def seat(self, budget: float, sharing: Sharing = Sharing.CAPPED, *, yields: bool = False) -> Seat:
        """The seat of a budget in per cent."""
        return self.backend.seat(budget, sharing, yields=yields)

    def probe(self, task: Task, budget: float, sharing: Sharing = Sharing.CAPPED) -> Probe:
        """`task` with a budget in per cent, or with the next below in which its steps are right."""
        if sharing is Sharing.CAPPED:
            budget = sound_budget(self.backend, task, budget)
        return Probe(task, self.seat(budget, sharing))

    def describe(self, probe: Probe, *, peak: bool = False) -> Described:
        """What a step of `probe` costs, and what the device can do for a task in its seat.

        With `peak` also how fast it multiplies matrices in the precision of the task's steps.

        Raises
        ------
        EngineError
            If its worker cannot be started, or its step cannot be taken.
        """
        try:
            self.workers.ready([probe])
            order = Describe(peak=peak)
            (said,) = self.workers.ask_all([(probe, order)], Described, _LONGEST_DESCRIPTION_S)
        except Spoiled as error:
            raise EngineError(str(error)) from error
        return said

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
        self.workers.ready(probes)
        # The first trace in a process sets up CUPTI, which takes a second and must not be in the picture.
        for length in (0.01, seconds):
            start = time.monotonic() + _TRACE_LEAD_S
            orders = [(probe, Trace(start=start, end=start + length)) for probe in probes]
            answers = self.workers.ask_all(orders, Traced, patience_s=60.0)
        return start, tuple(answer.kernels for answer in answers)

    def _measure(self, probes: Sequence[Probe], window: Window) -> Rates:
        together = window, tuple(probe.key for probe in probes)
        length = self._lengths.get(together, window.length_s * (2 if _is_launched(probes) else 1))
        while True:
            start = time.monotonic() + _LEAD_S
            begin, end = start + window.settle_s, start + window.settle_s + length
            orders = [(probe, Measure(start=start, end=end)) for probe in probes]
            answers = self.workers.ask_all(orders, Measured, patience_s=length + _GRACE_S)
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
            answers += self.workers.ask_all(orders, Covered, patience_s=_LONGEST_ROUND_S)
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
                self.workers.ready(probes)
                return replace(take(), spoiled=tuple(spoiled))
            except Spoiled as error:
                spoiled.append(str(error))
                log.warning("measurement spoiled: %s", error)
                if len(spoiled) == self._attempts:
                    raise EngineError(f"spoiled {len(spoiled)} times in a row; last: {error}") from error
                self.workers.refresh()


def _is_launched(probes: Sequence[Probe]) -> bool:
    """Whether this is one task alone, kernel by kernel.

    It is bound by the host's launches, which vary most, and every share is divided by its rate.
    """
    return len(probes) == 1 and probes[0].task.parameters.get("step") != StepChoice.GRAPH


def _rate(steps: Sequence[Step]) -> float:
    """Samples per second from the end of the first step to the end of the last."""
    return sum(step.samples for step in steps[1:]) / (steps[-1].finished - steps[0].finished)
