"""What may go wrong with an engine's processes, and what it must not take with it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from fedmt_flower.device.contract import RoundResult
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect, running
from fedmt_flower.device.engine.home import Home
from fedmt_flower.device.ipc.frames import EngineStatus, Hello, WorkerStatus
from fedmt_flower.device.ipc.protocol import encode
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import RoundOrder, Status
from fedmt_flower.domain.task import Task

State = Mapping[str, NDArray[Any]]
MakeTask = Callable[..., Task]
MakeOrder = Callable[..., RoundOrder]

CLIENT = """
import sys, msgspec, numpy as np
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import RoundOrder
order = msgspec.json.decode(sys.argv[1], type=RoundOrder)
weights = {order.assignments[0].task.name: dict(np.load(sys.argv[2]))}
connect(DeviceSettings(backend=Backend.CPU)).run_round(order, weights)
"""
"""Runs a round of one task as a process of its own."""


def dial() -> EngineClient:
    engine = connect(DeviceSettings(backend=Backend.CPU, idle_timeout_s=120))
    assert isinstance(engine, EngineClient)
    return engine


@pytest.fixture
def engine(home: Path) -> Iterator[EngineClient]:
    client = dial()
    yield client
    client.close()


def in_background(run: Callable[[], RoundResult]) -> Future[RoundResult]:
    executor = ThreadPoolExecutor(1)
    future = executor.submit(run)
    executor.shutdown(wait=False)
    return future


def until(condition: Callable[[], Any], patience_s: float = 20) -> Any:
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def status() -> EngineStatus:
    (engine,) = running()
    return engine.status()


def at_work(task: str) -> WorkerStatus | None:
    return next((w for w in status().workers if w.task == task and w.busy), None)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


class TestWorkers:
    def test_they_stay_from_round_to_round_and_from_site_to_site(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State
    ) -> None:
        tasks, given = (make_task("a"), make_task("b")), {"a": weights, "b": weights}
        orders = (
            make_order(*tasks),
            make_order(*tasks, round=2),
            make_order(make_task("a", site_share=1), tasks[1], site="farm"),
        )
        pids = [[report.pid for report in engine.run_round(order, given).report.tasks] for order in orders]
        assert pids[0] == pids[1] == pids[2]
        assert len(set(pids[0])) == 2
        other = engine.run_round(make_order(*tasks, run="another run"), given).report
        assert not {report.pid for report in other.tasks} & set(pids[0])

    def test_a_budget_has_a_worker_of_its_own(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State
    ) -> None:
        cpus = len(os.sched_getaffinity(0))
        reports = [
            engine.run_round(
                make_order(make_task("a"), policy=Policy.STATIC, budgets=(budget,)), {"a": weights}
            ).report.tasks[0]
            for budget in (100, 100 / cpus, 100)
        ]
        assert [report.level for report in reports] == [cpus, 1, cpus]
        assert (reports[0].pid == reports[1].pid) == (cpus == 1)
        assert reports[0].pid == reports[2].pid

    def test_one_killed_in_mid_round_fails_its_task_alone_and_the_next_round_works(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, flag: Path
    ) -> None:
        order = make_order(make_task("victim", "wait", flag=str(flag)), make_task("other"))
        given = {"victim": weights, "other": weights}
        round_ = in_background(lambda: engine.run_round(order, given))
        pid = until(lambda: at_work("victim")).pid
        os.kill(pid, signal.SIGKILL)
        result = round_.result(timeout=20)
        report = result.report.task("victim")
        assert report.status is Status.FAILED
        assert report.error.startswith(f"site 'clinic', task 'victim': worker {pid} was killed by SIGKILL")
        assert str(Home("cpu").workers) in report.error
        assert list(result.weights) == ["other"]
        flag.unlink()
        again = engine.run_round(order, given)
        assert list(again.weights) == ["victim", "other"]
        assert again.report.task("other").pid == result.report.task("other").pid

    def test_one_may_have_processes_load_its_data(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State
    ) -> None:
        order = make_order(replace(make_task("loading"), data="engine_tasks:loaders"), deadline_s=60)
        first, second = (engine.run_round(order, {"loading": weights}) for _ in range(2))
        assert first.report.tasks[0].error == ""
        assert first.report.tasks[0].pid == second.report.tasks[0].pid
        for name, array in first.weights["loading"].items():
            assert array.tobytes() == second.weights["loading"][name].tobytes()
        assert psutil.Process(first.report.tasks[0].pid).children() == []

    def test_rounds_leave_no_file_open(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State
    ) -> None:
        good, bad = make_task("good"), make_task("bad", "raise")
        given = {"good": weights, "bad": weights}

        def play() -> list[int]:
            worker = engine.run_round(make_order(good, bad), given).report.task("good").pid
            # What a worker that has just failed leaves is closed a moment later.
            time.sleep(0.5)
            return [psutil.Process(pid).num_fds() for pid in (os.getpid(), engine.pid, worker)]

        before = play()
        for _ in range(5):
            after = play()
        assert after == before

    def test_one_killed_while_idle_is_replaced(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State
    ) -> None:
        order, given = make_order(make_task("idler")), {"idler": weights}
        first = engine.run_round(order, given).report.task("idler").pid
        os.kill(first, signal.SIGKILL)
        until(lambda: gone(first))
        second = engine.run_round(order, given).report.task("idler")
        assert second.status is Status.DONE
        assert second.pid != first

    def test_one_past_its_deadline_is_ended_with_all_it_started(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, tmp_path: Path
    ) -> None:
        child = tmp_path / "child"
        order = make_order(make_task("hangs", "forever", spawn=str(child)), make_task("other"), deadline_s=2)
        started = time.monotonic()
        result = engine.run_round(order, {"hangs": weights, "other": weights})
        assert 2 <= time.monotonic() - started < 10
        report = result.report.task("hangs")
        assert "task 'hangs': no result within its deadline of 2 s" in report.error
        assert list(result.weights) == ["other"]
        assert gone(report.pid)
        assert gone(int(child.read_text()))
        log = Path(report.error.rsplit(" ", 1)[1])
        assert "in train_forever" in log.read_text()

    @pytest.mark.parametrize(
        ("how", "cause"),
        [
            ("exit", "exited with code 3"),
            ("crash", "was killed by SIGSEGV"),
            ("deaf", "closed its connection"),
        ],
    )
    def test_one_that_ends_by_itself_is_told_of(
        self,
        engine: EngineClient,
        make_task: MakeTask,
        make_order: MakeOrder,
        weights: State,
        how: str,
        cause: str,
    ) -> None:
        report = engine.run_round(make_order(make_task(how, how)), {how: weights}).report.task(how)
        assert f"task '{how}': worker {report.pid} {cause}" in report.error
        assert until(lambda: gone(report.pid))

    def test_one_holds_no_other_tasks_data_or_memory(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, tmp_path: Path
    ) -> None:
        flags = {name: tmp_path / f"data-of-{name}" for name in ("left", "right")}
        for path in flags.values():
            path.touch()
        tasks = [make_task(name, "wait", flag=str(path)) for name, path in flags.items()]
        given = dict.fromkeys(flags, weights)
        engine.run_round(make_order(make_task("before")), {"before": weights})
        round_ = in_background(lambda: engine.run_round(make_order(*tasks), given))
        workers = {name: until(lambda name=name: at_work(name)) for name in flags}
        held = {name: until(lambda name=name: _held(workers[name].pid, str(flags[name]))) for name in flags}
        zygote = psutil.Process(engine.pid).children()[0].pid
        held_by_zygote = _everything_held(zygote)
        for path in flags.values():
            path.unlink()
        round_.result(timeout=20)
        for name, other in (("left", "right"), ("right", "left")):
            assert "fedmt:" + name in held[name]
            assert str(flags[name]) in held[name]
            for alien in (f"fedmt:{other}", "fedmt:before", str(flags[other])):
                assert alien not in held[name]
        assert "fedmt:" not in held_by_zygote


def _everything_held(pid: int) -> str:
    """What a process has mapped or open, one path a line."""
    files = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        try:
            files.append(os.readlink(fd))
        except FileNotFoundError:  # closed meanwhile
            continue
    return Path(f"/proc/{pid}/maps").read_text() + "\n".join(files)


def _held(pid: int, wanted: str) -> str:
    held = _everything_held(pid)
    return held if wanted in held else ""


class TestClients:
    def test_sites_take_the_device_in_turn(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, flag: Path
    ) -> None:
        first = make_order(make_task("slow", "wait", flag=str(flag)), site="first")
        running_first = in_background(lambda: engine.run_round(first, {"slow": weights}))
        until(lambda: at_work("slow"))
        waiting = []
        for site in ("second", "third"):
            order = make_order(make_task("quick"), site=site)
            waiting.append(in_background(partial(dial().run_round, order, {"quick": weights})))
            until(partial(_waits, site))
        assert status().queue == ("second", "third")
        flag.unlink()
        running_first.result(timeout=20)
        second, third = (future.result(timeout=20).report for future in waiting)
        assert second.waited_s > 0
        assert second.arrived + second.waited_s + second.wall_s <= third.arrived + third.waited_s + 0.05
        assert {"first", "second", "third"} <= set(status().sites)

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_one_that_ends_in_mid_round_ends_the_round(
        self,
        engine: EngineClient,
        make_task: MakeTask,
        make_order: MakeOrder,
        weights: State,
        flag: Path,
        number: signal.Signals,
    ) -> None:
        order = make_order(make_task("orphan", "wait", flag=str(flag)), site="leaver")
        saved = flag.with_name("weights.npz")
        np.savez(saved, **weights)
        client = subprocess.Popen(
            [sys.executable, "-c", CLIENT, msgspec.json.encode(order), saved], stderr=subprocess.DEVNULL
        )
        worker = until(lambda: at_work("orphan"))
        client.send_signal(number)
        client.wait(timeout=10)
        assert until(lambda: gone(worker.pid), patience_s=5)
        result = engine.run_round(make_order(make_task("next")), {"next": weights})
        assert list(result.weights) == ["next"]

    def test_one_that_interrupts_its_round_lets_go_of_it(
        self, engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State
    ) -> None:
        def interrupt(progress: object) -> None:
            raise KeyboardInterrupt

        slow = replace(make_task("slow"), trainer="engine_tasks:Slow")
        with pytest.raises(KeyboardInterrupt):
            engine.run_round(make_order(slow), {"slow": weights}, interrupt)
        until(lambda: not any(worker.busy for worker in status().workers), patience_s=0.5)

    def test_one_of_another_version_is_told_what_to_do(self, engine: EngineClient) -> None:
        answer = _say(encode(Hello(version="0.0.1")))
        assert "this client 0.0.1: end it with `fedmt engine stop`" in answer

    @pytest.mark.parametrize("words", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2\0\0\0\0[]", b"\0\0\0\1"])
    def test_one_that_talks_nonsense_is_dismissed_and_the_engine_serves_on(
        self, engine: EngineClient, words: bytes
    ) -> None:
        _say(words)
        assert engine.status().pid == engine.pid


def _waits(site: str) -> bool:
    return site in status().queue


def _say(words: bytes) -> str:
    """What the engine answers to `words`, until it hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        with Home("cpu").address() as address:
            sock.connect(address)
        sock.sendall(words)
        sock.shutdown(socket.SHUT_WR)
        answer = b""
        while part := sock.recv(4096):
            answer += part
    return answer.decode(errors="replace")
