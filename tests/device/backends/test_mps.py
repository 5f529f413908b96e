"""MPS sessions: the rounding of budgets everywhere, the session against a stand-in for NVIDIA's program."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from fedmt_flower.device.backends import facts
from fedmt_flower.device.backends.mps import MpsBackend
from fedmt_flower.device.backends.mps_daemon import OwnControl, parse_pids
from fedmt_flower.device.backends.mps_seats import multiprocessors_of, percentage_for, sound_share
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import ConfigError, EngineError

CARD = facts.Gpu(
    index=0,
    uuid="GPU-3f1c",
    name="NVIDIA H100 80GB HBM3",
    memory_bytes=80 << 30,
    multiprocessors=132,
    capability=(9, 0),
    driver="580.159.04",
    cuda=(13, 0),
    mig=False,
    compute_mode="default",
    gpm=True,
)

# Speaks as NVIDIA's control program does (driver 580): a daemon with -d, one command from stdin without.
STAND_IN = """\
#!{python}
import os, signal, sys, time
pipe = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
pid_file = os.path.join(pipe, "nvidia-cuda-mps-control.pid")
def daemon():
    try:
        pid = int(open(pid_file).read())
        if " Z " in open(f"/proc/{pid}/stat").read():
            return 0
        return pid
    except (OSError, ValueError):
        return 0
if sys.argv[1:] == ["-d"]:
    if os.path.exists(os.path.join(pipe, "lock")):
        sys.exit("An instance of this daemon is already running")
    if os.fork():
        while not daemon():
            time.sleep(0.005)
        os._exit(0)
    os.setsid()
    open(os.path.join(pipe, "lock"), "w").close()
    open(pid_file, "w").write(str(os.getpid()))
    signal.alarm(60)
    signal.pause()
if not daemon():
    print("Cannot find MPS control daemon process")
    sys.exit(1)
words = sys.stdin.readline().split()
state = os.path.join(pipe, words[0])
if words[0] == "quit":
    os.kill(daemon(), signal.SIGTERM)
elif words[0] == "terminate_client":
    open(os.path.join(pipe, "terminated"), "a").write(" ".join(words[1:]) + "\\n")
elif os.path.exists(state):
    print(open(state).read().strip())
"""


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("budget", "multiprocessors"),
    [(60, 78), (33, 42), (30, 38), (100 / 3, 44), (200 / 3, 88), (80, 104), (20, 26), (100, 132), (1, 8)],
)
def test_a_budget_is_rounded_down_to_a_pair_of_multiprocessors(budget: float, multiprocessors: int) -> None:
    assert multiprocessors_of(budget, 132) == multiprocessors


@pytest.mark.parametrize(
    ("budget", "sound"),
    [
        (100, 132),
        (90, 118),
        (89, 66),
        (60, 66),
        (50, 66),
        (49, 32),
        (25, 32),
        (24.3, 32),
        (24, 16),
        (12.5, 16),
        (10, 12),
    ],
)
def test_bfloat16_has_halves_of_a_hopper_gpu(budget: float, sound: int) -> None:
    share = sound_share(budget, 132)
    assert share <= budget
    assert multiprocessors_of(share, 132) == sound
    assert sound_share(share, 132) == share
    assert sound_share(100 * sound / 132, 132) == pytest.approx(100 * sound / 132)


@pytest.mark.parametrize("total", [14, 20, 40, 80, 84, 108, 114, 132, 142, 148, 160, 188])
def test_a_whole_percentage_reaches_every_level(total: int) -> None:
    for level in range(8, total + 1, 2):
        assert multiprocessors_of(percentage_for(level, total), total) == level


@pytest.mark.parametrize("budget", [0, -1, 101, float("nan")])
def test_a_budget_outside_its_range_has_no_multiprocessors(budget: float) -> None:
    with pytest.raises(ConfigError, match="budget"):
        multiprocessors_of(budget, 132)


@pytest.mark.parametrize(
    ("answer", "pids"), [("", ()), ("1423", (1423,)), ("1423\n1555\n", (1423, 1555)), ("No server", ())]
)
def test_pids_are_read_from_the_lines_of_an_answer(answer: str, pids: tuple[int, ...]) -> None:
    assert parse_pids(answer) == pids


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH whose MPS programs are the stand-in, and a GPU that they would serve."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (facts.CONTROL, facts.SERVER):
        program = folder / name
        program.write_text(STAND_IN.replace("{python}", sys.executable))
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    monkeypatch.setattr("fedmt_flower.device.backends.mps._DEFAULT_PIPE", tmp_path / "nobody")
    monkeypatch.setattr(facts, "gpu", lambda index: CARD)
    return folder


def test_a_session_starts_its_own_daemon_and_stops_it(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    pid = int((tmp_path / "mps/pipe/nvidia-cuda-mps-control.pid").read_text())
    assert backend.name == "mps"
    assert backend.max_workers == 48
    assert backend.healthy() == ""
    backend.close()
    assert not runs(pid)


def test_a_seat_holds_card_percentage_and_memory_cap(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path, memory_share=0.25)
    backend.open()
    seat = backend.seat(60, Sharing.CAPPED)
    backend.close()
    assert (seat.device, seat.level) == ("cuda:0", 78)
    assert seat.environment == {
        "CUDA_VISIBLE_DEVICES": "GPU-3f1c",
        "CUDA_MPS_PIPE_DIRECTORY": str(tmp_path / "mps/pipe"),
        "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE": "60",
        "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT": "0=20G",
    }


def test_only_hopper_s_shares_are_cut_to_sound_ones(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(MpsBackend(0, tmp_path)) as backend:
        backend.open()
        assert [backend.sound(budget) for budget in (100.0, 60.0, 30.0)] == [100.0, 50.0, 25.0]
    monkeypatch.setattr(facts, "gpu", lambda index: replace(CARD, capability=(8, 0)))
    with closing(MpsBackend(0, tmp_path)) as backend:
        backend.open()
        assert backend.sound(60.0) == 60.0


def test_a_task_that_yields_has_a_seat_of_its_own(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    seat, plain = (backend.seat(60, Sharing.CAPPED, yields=yields) for yields in (True, False))
    backend.close()
    assert seat != plain
    assert seat.level == plain.level
    assert dict(seat.environment) == {**plain.environment, "CUDA_MPS_CLIENT_PRIORITY": "1"}


def test_budgets_of_one_level_are_one_seat(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    assert backend.seat(59.2, Sharing.CAPPED) == backend.seat(60.4, Sharing.CAPPED)
    assert backend.seat(100, Sharing.IN_TURN) == backend.seat(100, Sharing.CAPPED)
    assert backend.seat(60, Sharing.CAPPED) != backend.seat(62, Sharing.CAPPED)
    backend.close()


def test_time_slicing_puts_a_worker_outside_mps(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    seat = backend.seat(100, Sharing.TIME_SLICED)
    backend.close()
    assert seat.level == 132
    assert list(Path(seat.environment["CUDA_MPS_PIPE_DIRECTORY"]).iterdir()) == []


def test_a_daemon_that_runs_is_used_and_left_running(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "theirs"
    theirs = OwnControl(str(programs / facts.CONTROL), pipe, tmp_path / "log", "GPU-3f1c")
    theirs.start()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(pipe))
    backend = MpsBackend(0, tmp_path / "mine")
    backend.open()
    assert backend.seat(50, Sharing.CAPPED).environment["CUDA_MPS_PIPE_DIRECTORY"] == str(pipe)
    backend.close()
    assert theirs.answers()
    theirs.stop()
    assert not theirs.answers()


def test_another_users_server_is_refused(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "theirs"
    theirs = OwnControl(str(programs / facts.CONTROL), pipe, tmp_path / "log", "GPU-3f1c")
    theirs.start()
    (pipe / "get_server_list").write_text(f"{os.getpid()}\n")
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(pipe))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(EngineError, match=f"held by the MPS server {os.getpid()} of user"):
        MpsBackend(0, tmp_path / "mine").open()
    theirs.stop()


def test_a_worker_outside_mps_is_not_welcome(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    pipe = tmp_path / "mps/pipe"
    (pipe / "get_server_list").write_text("700\n")
    (pipe / "get_client_list").write_text("811\n812\n")
    seat = backend.seat(100, Sharing.CAPPED)
    backend.welcome(812, seat)
    backend.welcome(813, backend.seat(100, Sharing.TIME_SLICED))
    with pytest.raises(EngineError, match="worker 813 of GPU 0 runs outside MPS"):
        backend.welcome(813, seat)
    backend.evict(812)
    assert (pipe / "terminated").read_text() == "700 812\n"
    backend.close()


def test_the_end_of_server_or_daemon_is_noticed_and_mended(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    pipe = tmp_path / "mps/pipe"
    (pipe / "get_server_list").write_text("700\n")
    (pipe / "get_client_list").write_text("811\n")
    backend.welcome(811, backend.seat(100, Sharing.CAPPED))
    (pipe / "get_server_status").write_text("FAULT\n")
    assert "MPS server 700 reports a fault on GPU 0" in backend.healthy()
    (pipe / "get_server_status").write_text("ACTIVE\n")
    assert backend.healthy() == ""
    (pipe / "get_server_list").write_text("")
    assert "MPS server 700 has ended on GPU 0" in backend.healthy()
    os.kill(int((pipe / "nvidia-cuda-mps-control.pid").read_text()), signal.SIGKILL)
    assert "control daemon does not answer" in backend.healthy()
    backend.reopen()
    assert backend.healthy() == ""
    backend.close()


def test_without_mps_tasks_are_time_sliced_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(facts, "gpu", lambda index: CARD)
    monkeypatch.setattr(facts, "mps_binaries", lambda: facts.MpsBinaries(control="", server=""))
    backend = MpsBackend(0, tmp_path)
    with caplog.at_level(logging.WARNING):
        backend.open()
    assert backend.name == "timeslice"
    assert "budgets are NOT enforced" in caplog.text
    assert backend.seat(30, Sharing.CAPPED).level == 132
    assert backend.healthy() == ""
    backend.close()


def test_the_daemon_ends_with_the_engine_however_that_ends(programs: Path, tmp_path: Path) -> None:
    script = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from fedmt_flower.device.backends.mps_daemon import OwnControl
        pipe = Path({str(tmp_path / "pipe")!r})
        OwnControl({str(programs / facts.CONTROL)!r}, pipe, pipe.parent / "log", "GPU-0").start()
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    subprocess.run([sys.executable, "-c", script], check=False, timeout=30)
    pid = int((tmp_path / "pipe/nvidia-cuda-mps-control.pid").read_text())
    deadline = time.monotonic() + 5
    while runs(pid):
        assert time.monotonic() < deadline, "the daemon outlived its engine"
        time.sleep(0.02)


def test_a_path_too_long_for_a_socket_is_told_beforehand(
    programs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = MpsBackend(0, tmp_path / ("x" * 90))
    with caplog.at_level(logging.WARNING):
        backend.open()
    assert backend.name == "timeslice"
    assert "too long for MPS's sockets" in caplog.text


def test_the_end_of_the_server_is_seen_in_the_midst_of_work(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    assert backend.lost() == ""
    with subprocess.Popen(["sleep", "60"]) as server:
        pipe = tmp_path / "mps/pipe"
        (pipe / "get_server_list").write_text(f"{server.pid}\n")
        (pipe / "get_client_list").write_text("811\n")
        backend.welcome(811, backend.seat(100, Sharing.CAPPED))
        assert backend.lost() == ""
        server.kill()
        deadline = time.monotonic() + 5
        while not backend.lost():
            assert time.monotonic() < deadline
    assert f"MPS server {server.pid} has ended on GPU 0" in backend.lost()
    backend.close()


def test_a_session_whose_daemon_lives_is_taken_up_without_a_new_one(programs: Path, tmp_path: Path) -> None:
    backend = MpsBackend(0, tmp_path)
    backend.open()
    daemon = (tmp_path / "mps/pipe/nvidia-cuda-mps-control.pid").read_text()
    backend.reopen()
    assert (tmp_path / "mps/pipe/nvidia-cuda-mps-control.pid").read_text() == daemon
    backend.close()


@pytest.mark.gpu
def test_workers_see_the_multiprocessors_of_their_seats(tmp_path: Path) -> None:
    """A worker that took its seat has compared the count, and MPS has told whether it is a client."""
    backend = MpsBackend(0, tmp_path)
    seats = [(budget, Sharing.CAPPED) for budget in (1, 10, 20, 100 / 3, 60, 200 / 3, 99, 100)]
    task = Task(name="none", model="builtins:object", data="builtins:object")

    async def look() -> list[int]:
        pool = Pool(backend, tmp_path / "workers")
        await pool.open()
        try:
            workers = [
                await pool.acquire("look", task, backend.seat(budget, sharing))
                for budget, sharing in [*seats, (100, Sharing.TIME_SLICED)]
            ]
            return [worker.seat.level for worker in workers]
        finally:
            await pool.close()

    backend.open()
    assert backend.name == "mps", "MPS does not run on this host: see the log above"
    levels = asyncio.run(look())
    assert backend.healthy() == ""
    assert levels == sorted(levels)
    assert levels[-1] == levels[-2] == facts.gpu(0).multiprocessors
    backend.close()
