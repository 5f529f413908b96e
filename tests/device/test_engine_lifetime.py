"""How an engine comes and goes, and that nothing of it stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from numpy.typing import NDArray

from fedmt_flower.device.engine.client import EXIT_BUSY, EngineClient, EngineGone
from fedmt_flower.device.engine.connection import connect, running
from fedmt_flower.device.engine.home import Home
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import RoundOrder
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError

State = Mapping[str, NDArray[Any]]
Left = Callable[[Path], list[int]]


def dial(idle_timeout_s: float = 120) -> EngineClient:
    engine = connect(DeviceSettings(backend=Backend.CPU, idle_timeout_s=idle_timeout_s))
    assert isinstance(engine, EngineClient)
    return engine


def test_clients_that_start_one_at_once_share_it(home: Path) -> None:
    with ThreadPoolExecutor(3) as executor:
        clients = list(executor.map(lambda _: dial(), range(3)))
    assert len({client.pid for client in clients}) == 1
    assert [engine.pid for engine in running()] == [clients[0].pid]
    for client in clients:
        client.close()


def test_a_second_one_for_a_device_is_refused_and_told_whose_it_is(home: Path) -> None:
    first = dial()
    second = subprocess.run(
        [sys.executable, "-m", "fedmt_flower.device.engine.keeper", "--settings", '{"backend": "cpu"}'],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == EXIT_BUSY
    assert f"device cpu already has an engine, pid {first.pid}" in second.stderr
    assert second.stderr.count("\n") == 1
    assert first.status().pid == first.pid
    first.close()


def test_one_that_is_killed_takes_its_workers_along_and_its_keeper_starts_another(
    home: Path,
    left: Left,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: State,
) -> None:
    order, given = make_order(make_task("a"), make_task("b")), {"a": weights, "b": weights}
    engine = dial()
    engine.run_round(order, given)
    keeper = psutil.Process(engine.pid).parent()
    assert keeper is not None
    processes = psutil.Process(engine.pid).children(recursive=True)
    assert len(processes) == 4  # two workers and two zygotes
    os.kill(engine.pid, signal.SIGKILL)
    assert psutil.wait_procs(processes, timeout=5)[1] == []
    with pytest.raises(EngineGone, match=f"engine {engine.pid} of cpu is gone"):
        engine.run_round(order, given)
    successor = dial()
    assert successor.pid != engine.pid
    assert psutil.Process(successor.pid).parent() == keeper
    assert list(successor.run_round(order, given).weights) == ["a", "b"]
    successor.stop()
    assert left(home) == []


def test_one_whose_keeper_was_killed_too_is_replaced_by_a_client(
    home: Path,
    left: Left,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: State,
) -> None:
    order, given = make_order(make_task("a")), {"a": weights}
    engine = dial()
    keeper = psutil.Process(engine.pid).parent()
    assert keeper is not None
    keeper.kill()
    keeper.wait()
    assert list(engine.run_round(order, given).weights) == ["a"]
    os.kill(engine.pid, signal.SIGKILL)
    assert left(home) == []
    assert list(home.rglob("socket"))
    assert running() == ()
    successor = dial()
    assert list(successor.run_round(order, given).weights) == ["a"]
    successor.stop()
    assert left(home) == []


def test_a_zygote_that_is_killed_has_a_spare_and_the_spare_a_successor(
    home: Path, make_task: Callable[..., Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    engine = dial()
    process = psutil.Process(engine.pid)
    first, spare = sorted(child.pid for child in process.children())
    os.kill(first, signal.SIGKILL)
    assert list(engine.run_round(make_order(make_task("a")), {"a": weights}).weights) == ["a"]
    (worker,) = engine.status().workers
    deadline = time.monotonic() + 10
    while len(zygotes := {child.pid for child in process.children()} - {worker.pid, first}) < 2:
        assert time.monotonic() < deadline, zygotes
        time.sleep(0.05)
    assert spare in zygotes
    engine.stop()


def test_one_that_is_stopped_in_mid_round_tells_its_client_and_leaves_nothing(
    home: Path,
    left: Left,
    tmp_path: Path,
    make_task: Callable[..., Task],
    make_order: Callable[..., RoundOrder],
    weights: State,
) -> None:
    engine = dial()
    child = tmp_path / "child"
    engine.run_round(make_order(make_task("idle")), {"idle": weights})
    hanging = make_order(make_task("hangs", "forever", spawn=str(child))), {"hangs": weights}
    with ThreadPoolExecutor(1) as executor:
        round_ = executor.submit(engine.run_round, *hanging)
        while not (child.exists() and child.read_text()):
            assert not round_.done()
            time.sleep(0.02)
        (found,) = running()
        found.stop()
        with pytest.raises(EngineError, match=rf"round 1 of site 'clinic': engine {found.pid} was stopped"):
            round_.result(timeout=10)
    assert found.pid == engine.pid
    assert left(home) == []
    assert list(home.rglob("socket")) == []
    assert found.home.log.exists()


def test_one_without_clients_ends_itself_when_its_lease_is_over(home: Path, left: Left) -> None:
    engine = dial(idle_timeout_s=0.3)
    process = psutil.Process(engine.pid)
    with pytest.raises(psutil.TimeoutExpired):
        process.wait(timeout=0.6)
    patient = dial(idle_timeout_s=1.5)
    patient.close()
    engine.close()
    with pytest.raises(psutil.TimeoutExpired):
        process.wait(timeout=0.8)
    process.wait(timeout=5)
    assert left(home) == []
    assert list(home.rglob("socket")) == []


def test_one_that_cannot_start_says_why(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('no torch today')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"the engine of cpu did not start: .*its log is") as raised:
        dial()
    assert "\n" not in str(raised.value)
    assert "no torch today" in Home("cpu").log.read_text()
    assert running() == ()


def test_stopping_one_that_has_gone_is_no_error(home: Path) -> None:
    engine = dial()
    (found,) = running()
    engine.stop()
    found.stop()
    with pytest.raises(EngineGone):
        found.status()
