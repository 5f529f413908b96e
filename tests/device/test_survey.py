"""A profile taken on the CPUs."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.profile.measurement import Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.samples import Rates, SamplesFile, read_samples
from fedmt_flower.device.profile.survey import Step, Subject, Survey, device_steps, profile_of
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.task import Task

WINDOW = Window(settle_s=0.01, length_s=0.05, longest_s=0.5)


def subject(name: str) -> Subject:
    task = Task(
        name=name,
        model="fedmt_flower.tasks.models:lenet",
        data="fedmt_flower.tasks.data:synthetic",
        parameters={"in_channels": 3, "samples": 32, "test_samples": 4, "lr": 0.01},
    )
    return Subject(task=task, reference=4, batches=(4,))


def test_the_budgets_of_a_device_are_its_own_steps() -> None:
    backend = CpuBackend()
    steps = device_steps(backend, [20.0, 60.0, 100.0])
    assert steps[-1] == 100.0
    levels = [backend.seat(step, Sharing.CAPPED).level for step in steps]
    assert levels == sorted(set(levels))


def test_a_profile_names_no_budgets_of_a_task_that_can_have_all() -> None:
    plain = subject("a")
    reduced = replace(plain, task=plain.task.with_parameters(precision="bfloat16"))
    (sampled,) = profile_of([reduced], CpuBackend(), 0, {}).tasks
    assert sampled.levels == ()


def test_a_profile_is_taken_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    subjects = (subject("a"), subject("b"))
    with Profiler(CpuBackend(), 0, tmp_path / "workers", window=WINDOW, hertz=50) as profiler:
        profile = profile_of(subjects, profiler.backend, 0, {"date": "today"})
        told: list[Step] = []
        path = tmp_path / "p.jsonl"
        first = SamplesFile(path, profile, resume=False)
        Survey(profiler, subjects, first).run(math.inf, told.append, most=3)
        assert first.settings == 3
        again = SamplesFile(path, profile, resume=True)
        Survey(profiler, subjects, again).run(math.inf, told.append, most=10)
        Survey(profiler, subjects, again).run(time.monotonic(), told.append)
    assert told[0].doing == "a: warming up"
    samples = read_samples(path)
    assert len(samples) == 10
    taken = [(e.tasks, e.batches, e.budgets) for e in again.entries if isinstance(e, Rates)]
    assert len(set(taken[:4])) == 4 or len(profile.levels) == 1
    assert any(len(sample.tasks) == 2 for sample in samples)
    a = samples[-1].tasks[0]
    # lenet on 32×32×3: about 0.65 million multiplications forward, three passes but for the first layer's.
    assert a.flops == pytest.approx(4.3e6, rel=0.3)
    assert samples[0].device.units == profiler.seat(100.0).level
