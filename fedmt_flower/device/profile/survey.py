"""A profile of tasks on a device: each alone, then together at many batch sizes and budgets (§ IV)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedmt_flower.device.backends import DeviceBackend, sound_budget
from fedmt_flower.device.profile import samples
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.samples import SamplesFile
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.errors import EngineError
from fedmt_flower.planning.sampling import Block, Candidate, Place, Setting, blocks

log = logging.getLogger(__name__)

PERCENTAGES: Final = tuple(float(percentage) for percentage in range(20, 101, 10))
"""The budgets of a profile, and of a plan."""
QUARTER: Final = 25.0
"""Budget in per cent of the second solo measurement: see `TaskFeatures.quarter_share`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A stepped task to profile: at its `reference` batch size and at all `batches`, in samples."""

    task: Task
    reference: int
    batches: tuple[int, ...]

    def at(self, batch: int) -> Task:
        """The task with that batch size."""
        return self.task.with_parameters(batch_size=batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far a profile is: `settings` measured so far, and `doing`, what it is at."""

    settings: int
    doing: str


def device_steps(backend: DeviceBackend, percentages: Iterable[float]) -> tuple[float, ...]:
    """The budgets, in per cent of the device, that `percentages` come to on an open device; ascending.

    Several percentages of one level (SMs or threads) are one budget.
    """
    units = backend.seat(100.0, Sharing.CAPPED).level
    levels = {backend.seat(percentage, Sharing.CAPPED).level for percentage in percentages}
    return tuple(100.0 * level / units for level in sorted(levels))


def levels_of(
    backend: DeviceBackend, task: Task, parameters: Mapping[str, Scalar] | None = None
) -> tuple[float, ...]:
    """The budgets in per cent in which the steps of `task` are right, with a round's `parameters`; ascending.

    Empty where all are that the device tells apart.
    """
    sound = device_steps(backend, [sound_budget(backend, task, r, parameters) for r in PERCENTAGES])
    return () if sound == device_steps(backend, PERCENTAGES) else sound


def profile_of(
    subjects: Sequence[Subject], backend: DeviceBackend, seed: int, origin: Mapping[str, str]
) -> samples.Profile:
    """What a survey of `subjects` on an open device samples."""
    return samples.Profile(
        tasks=tuple(
            samples.Sampled(
                task=subject.task.name,
                model=subject.task.model.rpartition(":")[2],
                parameters=repr(sorted(subject.task.parameters.items())),
                reference=subject.reference,
                batches=tuple(sorted({subject.reference, *subject.batches})),
                levels=levels_of(backend, subject.task),
            )
            for subject in subjects
        ),
        levels=device_steps(backend, PERCENTAGES),
        quarter=device_steps(backend, [QUARTER])[0],
        seed=seed,
        backend=backend.name,
        origin=dict(origin),
    )


class Survey:
    """Takes the samples that a file does not have yet.

    Parameters
    ----------
    profiler
        The device.
    subjects
        The tasks, those of the file's profile.
    file
        Where samples go.
    """

    def __init__(self, profiler: Profiler, subjects: Sequence[Subject], file: SamplesFile) -> None:
        self._profiler = profiler
        self._subjects = {subject.task.name: subject for subject in subjects}
        self._file = file
        self._began = time.monotonic() - file.seconds

    def run(self, deadline: float, tell: Callable[[Step], None], *, most: int | None = None) -> None:
        """Measure until `deadline`, a moment of the monotonic clock, or until the file has `most` settings.

        Raises
        ------
        EngineError
            If a task cannot be trained, not even alone, at its reference batch size.
        """
        profile = self._file.entries[0]
        assert isinstance(profile, samples.Profile)
        candidates = [
            Candidate(
                task=sampled.task,
                reference=sampled.reference,
                batches=sampled.batches,
                levels=sampled.levels or profile.levels,
            )
            for sampled in profile.tasks
        ]
        done = self._file.settings

        def is_over() -> bool:
            return time.monotonic() >= deadline or (most is not None and self._file.settings >= most)

        for block in blocks(candidates, profile.quarter, seed=profile.seed):
            if done >= len(block.settings):
                done -= len(block.settings)
                continue
            if is_over():
                return
            doing = " + ".join(dict.fromkeys(place.task for place in block.places))
            tell(Step(settings=self._file.settings, doing=f"{doing}: warming up"))
            self._warm(block)
            for setting in block.settings[done:]:
                if is_over():
                    return
                tell(Step(settings=self._file.settings, doing=doing))
                self._take(setting)
            done = 0

    def _probe(self, place: Place) -> Probe:
        task = self._subjects[place.task].at(place.batch)
        return self._profiler.probe(task, place.budget)

    def _warm(self, block: Block) -> None:
        """Have the block's workers, and the features of tasks that are new."""
        probes = [self._probe(place) for place in block.places]
        self._profiler.workers.dismiss(keep=probes)
        for task in dict.fromkeys(place.task for place in block.places):
            if task not in self._file.described:
                self._describe(task)
        try:
            self._profiler.workers.prepare(probes)
        except EngineError as error:
            # It shows in the settings that need that worker; the others can do without it.
            log.warning("a worker cannot be started: %s", error)

    def _describe(self, task: str) -> None:
        said = self._profiler.describe(self._probe(Place(task, self._subjects[task].reference, 100.0)))
        if not self._file.described and said.device is not None:
            self._file.add(samples.Device(features=said.device))
        self._file.add(samples.Task(task=task, flops=said.flops, traffic=said.traffic, step=said.step))

    def _take(self, setting: Setting) -> None:
        names = tuple(place.task for place in setting)
        batches = tuple(place.batch for place in setting)
        budgets = tuple(place.budget for place in setting)
        probes = [self._probe(place) for place in setting]
        try:
            taken = self._profiler.measure(probes)
        except EngineError as error:
            log.warning("%s cannot be measured together: %s", " + ".join(names), error)
            self._file.add(samples.Missing(tasks=names, batches=batches, budgets=budgets, why=str(error)))
            return
        self._file.add(
            samples.Rates(
                tasks=names,
                batches=batches,
                budgets=budgets,
                rates=tuple(round(rate, 3) for rate in taken.rates),
                levels=tuple(probe.seat.level for probe in probes),
                steps=taken.steps,
                at_s=round(time.monotonic() - self._began, 3),
                spoiled=taken.spoiled,
            )
        )
