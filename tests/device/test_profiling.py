"""Measuring co-running speed in a pool of warm workers, on the CPUs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.profile.measurement import Probe, Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.telemetry import Usage
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.errors import EngineError

WINDOW = Window(settle_s=0.02, length_s=0.1, longest_s=1.0)


def task(name: str, **parameters: Scalar) -> Task:
    return Task(
        name=name,
        model="fedmt_flower.tasks.models:lenet",
        data="fedmt_flower.tasks.data:synthetic",
        parameters={"in_channels": 3, "samples": 64, "batch_size": 8, "lr": 0.01} | parameters,
    )


@pytest.fixture(scope="module")
def profiler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profiler]:
    folder: Path = tmp_path_factory.mktemp("profiling")
    with Profiler(CpuBackend(), 0, folder / "workers", window=WINDOW, hertz=100) as profiler:
        yield profiler


def probe(profiler: Profiler, name: str, **parameters: Scalar) -> Probe:
    return Probe(task(name, **parameters), profiler.seat(1.0))


def test_rates_are_taken_together_and_from_whole_steps(profiler: Profiler) -> None:
    rates = profiler.measure([probe(profiler, "a"), probe(profiler, "b", batch_size=16)])
    assert len(rates.rates) == 2
    assert min(rates.rates) > 0
    assert min(rates.steps) >= WINDOW.steps
    assert rates.usage.seconds >= WINDOW.length_s * 0.99
    assert rates.spoiled == ()


def test_a_probe_keeps_its_worker_and_another_batch_has_another(profiler: Profiler) -> None:
    first = probe(profiler, "a")
    profiler.workers.prepare([first])
    pid = profiler.workers.pid(first)
    profiler.measure([first])
    larger = probe(profiler, "a", batch_size=32)
    assert set(profiler.workers.prepare([first, larger])) == {larger.key}
    assert profiler.workers.pid(first) == pid
    assert profiler.workers.pid(larger) != pid


def test_a_round_runs_to_the_end_of_every_volume(profiler: Profiler) -> None:
    a, b = probe(profiler, "a"), probe(profiler, "b")
    together = profiler.cover([(a, 80), (b, 160)])
    assert together.seconds == pytest.approx(max(together.ends))
    turns = profiler.cover([(a, 80), (b, 160)], in_turn=True)
    assert 0 < turns.ends[0] < turns.ends[1]
    assert turns.seconds <= turns.ends[1]


def test_a_co_runner_that_dies_spoils_the_sample_which_is_taken_again(profiler: Profiler) -> None:
    a, b = probe(profiler, "a"), probe(profiler, "b")
    profiler.workers.prepare([a, b])
    pid = profiler.workers.pid(a)
    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
    rates = profiler.measure([a, b])
    assert len(rates.spoiled) == 1
    assert f"worker {pid}" in rates.spoiled[0]
    assert profiler.workers.pid(a) != pid
    assert min(rates.rates) > 0


def test_kernels_of_all_tasks_are_on_one_clock(profiler: Profiler) -> None:
    start, lanes = profiler.trace([probe(profiler, "a"), probe(profiler, "b")], 0.05)
    assert len(lanes) == 2
    for kernels in lanes:
        assert any("conv" in kernel.name for kernel in kernels)
        begins = [kernel.start - start for kernel in kernels]
        assert min(begins) > -0.05
        assert max(begins) < 0.5


def test_a_round_in_turn_spends_the_joules_of_its_tasks_alone(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    volumes = [(probe(profiler, "a"), 64), (probe(profiler, "b"), 64)]
    measured = profiler.telemetry.usage

    def usage(start: float, end: float) -> Usage:
        return replace(measured(start, end), energy_j=100.0 * (end - start))

    monkeypatch.setattr(profiler.telemetry, "usage", usage)
    taken = profiler.cover(volumes, in_turn=True)
    # A hundred watts while either trains; the pause between them is neither's.
    assert taken.usage.energy_j == pytest.approx(100.0 * taken.seconds)
    assert taken.usage.energy_j is not None
    assert taken.usage.energy_j < 100.0 * max(taken.ends)


def test_a_task_that_cannot_train_is_an_error_that_names_it(profiler: Profiler) -> None:
    broken = Probe(replace(task("broken"), model="fedmt_flower.tasks.models:nothing"), profiler.seat(1.0))
    with pytest.raises(EngineError, match="broken"):
        profiler.workers.prepare([broken])


def test_dismissed_workers_are_gone(profiler: Profiler) -> None:
    a, b = probe(profiler, "a"), probe(profiler, "b")
    profiler.workers.prepare([a, b])
    gone = profiler.workers.pid(b)
    profiler.workers.dismiss(keep=[a])
    assert not Path(f"/proc/{gone}").exists()
    assert Path(f"/proc/{profiler.workers.pid(a)}").exists()


def test_steps_in_bfloat16_have_budgets_in_which_they_are_right(
    profiler: Profiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiler.backend, "sound", lambda budget: min(budget, 1.0))
    assert profiler.probe(task("a", precision="bfloat16"), 100.0).seat == profiler.seat(1.0)
    assert profiler.probe(task("a"), 100.0).seat == profiler.seat(100.0)
    assert profiler.probe(task("a", precision="bfloat16"), 100.0, Sharing.IN_TURN).seat == profiler.seat(
        100.0
    )


def test_the_whole_device_is_the_reference(profiler: Profiler) -> None:
    assert profiler.seat(100.0) == profiler.seat(100.0, Sharing.IN_TURN)
