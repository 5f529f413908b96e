"""What goes wrong in a campaign, and what may come of it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from scene import Scene

from fedmt_flower.device.engine.home import Home
from fedmt_flower.device.ipc.frames import Hello
from fedmt_flower.device.ipc.protocol import encode

Blow = Callable[[Scene], None]
HANG_S = 4.0
"""Deadline of a round that hangs: the others must be done by then on a busy host."""
_DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Injection:
    """One way to go wrong.

    Parameters
    ----------
    name
        What it is called.
    fault
        The function of `fault_tasks` that the victim calls in the midst of its training.
    cause
        Part of the error that the victim's task ends with; empty if it must be done all the same.
    blow
        What is done from outside while the victim waits; None does nothing.
    before, after
        What is done before the round and after it.
    deadline_s
        The round's.
    dies
        Whether the engine or a worker dies of it, from which the site must recover in time.
    """

    name: str
    fault: str
    cause: str = ""
    blow: Blow | None = None
    before: Blow | None = None
    after: Blow | None = None
    deadline_s: float | None = None
    dies: bool = False


def signal_worker(number: int, scene: Scene) -> None:
    os.kill(scene.worker().pid, number)


def signal_engine(number: int, scene: Scene) -> None:
    os.kill(scene.engine().pid, number)


def kill_zygote(scene: Scene) -> None:
    os.kill(scene.zygotes()[0], signal.SIGKILL)


def kill_zygote_and_worker(scene: Scene) -> None:
    """So that the next worker needs another zygote."""
    kill_zygote(scene)
    signal_worker(signal.SIGKILL, scene)


def pause(who: Callable[[Scene], int], scene: Scene) -> None:
    pid = who(scene)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.5)
    os.kill(pid, signal.SIGCONT)


def babble(words: bytes, scene: Scene) -> None:
    """Say something that no client says, and hang up in the midst of it."""
    with socket.socket(socket.AF_UNIX) as sock:
        with scene.engine().home.address() as address:
            sock.connect(address)
        sock.sendall(words)


def hold_on(scene: Scene) -> None:
    """Connect, take part in nothing and read nothing."""
    with socket.socket(socket.AF_UNIX) as sock:
        with scene.engine().home.address() as address:
            sock.connect(address)
        time.sleep(0.3)


def jump(seconds: int, scene: Scene) -> None:
    """Set the clock of every process of the engine."""
    scene.clock.write_text(str(seconds))


def fill_disk(scene: Scene) -> None:
    """Let the engine write nothing more, nor its next workers to their logs."""
    scene.engine().stop()
    workers = Home("cpu").workers
    workers.mkdir(parents=True, exist_ok=True, mode=0o700)
    for task in ("stepped", "victim", "whole"):
        for serial in range(1, 9):
            log = workers / f"{task}-{serial}.log"
            log.unlink(missing_ok=True)
            log.symlink_to("/dev/full")


def forbid_writing(scene: Scene) -> None:
    resource.prlimit(scene.engine().pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def allow_writing(scene: Scene) -> None:
    resource.prlimit(scene.engine().pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


def empty_disk(scene: Scene) -> None:
    scene.engine().stop()
    shutil.rmtree(Home("cpu").workers)


def kill_client(number: int, scene: Scene) -> None:
    """A client that plays the same round ends in the midst of it."""
    client = scene.start_client()
    client.send_signal(number)
    client.wait(timeout=20)
    scene.forget()


def _engine(scene: Scene) -> int:
    return scene.engine().pid


def _worker(scene: Scene) -> int:
    return scene.worker().pid


KILLED = "was killed by SIGKILL"
LATE = f"no result within its deadline of {HANG_S:g} s"

INJECTIONS: tuple[Injection, ...] = (
    Injection(
        name="worker killed",
        fault="wait",
        blow=partial(signal_worker, signal.SIGKILL),
        cause=KILLED,
        dies=True,
    ),
    Injection(
        name="worker with processes of its own killed",
        fault="wait_with_children",
        blow=partial(signal_worker, signal.SIGKILL),
        cause=KILLED,
        dies=True,
    ),
    Injection(
        name="worker terminated",
        fault="wait",
        blow=partial(signal_worker, signal.SIGTERM),
        cause="was killed by SIGTERM",
        dies=True,
    ),
    Injection(
        name="worker stopped",
        fault="wait",
        blow=partial(signal_worker, signal.SIGSTOP),
        cause=LATE,
        deadline_s=HANG_S,
    ),
    Injection(name="worker paused", fault="wait", blow=partial(pause, _worker)),
    Injection(name="worker leaves", fault="leave", cause="exited with code 3", dies=True),
    Injection(name="worker crashes", fault="crash", cause="was killed by SIGSEGV", dies=True),
    Injection(name="worker hangs up", fault="hang_up", cause="closed its connection", dies=True),
    Injection(name="out of memory in torch", fault="exhaust_memory", cause="RuntimeError"),
    Injection(name="out of memory in Python", fault="exhaust_python_memory", cause="MemoryError"),
    Injection(name="CUDA error", fault="raise_cuda_error", cause="CUDA error: device-side assert"),
    Injection(name="train hangs", fault="hang", cause=LATE, deadline_s=HANG_S),
    Injection(
        name="train hangs with Python's lock", fault="hang_with_the_gil", cause=LATE, deadline_s=HANG_S
    ),
    Injection(name="NaN weights", fault="spoil_weights", cause="finite"),
    Injection(name="NaN metric", fault="lose_the_loss", cause="not finite"),
    Injection(name="wrong shapes", fault="reshape", cause="0.bias"),
    Injection(name="engine killed", fault="wait", blow=partial(signal_engine, signal.SIGKILL), dies=True),
    Injection(name="engine paused", fault="wait", blow=partial(pause, _engine)),
    Injection(name="zygote killed", fault="wait", blow=kill_zygote),
    Injection(
        name="zygote and worker killed", fault="wait", blow=kill_zygote_and_worker, cause=KILLED, dies=True
    ),
    Injection(name="client killed", fault="talk", before=partial(kill_client, signal.SIGKILL)),
    Injection(name="client interrupted", fault="talk", before=partial(kill_client, signal.SIGINT)),
    Injection(name="stranger babbles", fault="wait", blow=partial(babble, b"GET / HTTP/1.1\r\n\r\n")),
    Injection(
        name="client hangs up in a frame", fault="wait", blow=partial(babble, encode(Hello(version="1"))[:-3])
    ),
    Injection(name="client says nothing", fault="wait", blow=hold_on),
    Injection(name="clock jumps ahead", fault="wait", blow=partial(jump, 400 * _DAY_S)),
    Injection(name="clock jumps back", fault="wait", blow=partial(jump, -400 * _DAY_S)),
    Injection(name="disk full", fault="talk", before=fill_disk, after=empty_disk),
    Injection(name="engine may not write", fault="talk", before=forbid_writing, after=allow_writing),
)
