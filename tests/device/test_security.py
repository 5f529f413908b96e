"""Whom an engine serves, whom a client trusts, and what neither tells anybody."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from numpy.typing import NDArray

from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import attach, connect, running
from fedmt_flower.device.engine.home import Home
from fedmt_flower.device.engine.server import Server
from fedmt_flower.device.ipc.frames import FromClient, FromEngine, Hello, Refused
from fedmt_flower.device.ipc.protocol import AsyncChannel, Channel
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import RoundOrder, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import EngineError

State = Mapping[str, NDArray[Any]]
STRANGER = 54321
SECRET = "s3cret-t0ken"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("FEDMT_HOME", str(tmp_path / "fedmt"))
    home = Home("cpu")
    home.make()
    return home


def test_an_engine_serves_no_other_user(place: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    client = Channel(ours, FromEngine)
    client.send(Hello(version="1"))
    asyncio.run(_serve_one(Server(CpuBackend(), place, DeviceSettings()), theirs))
    received = client.receive()
    assert received is not None
    assert received.frame == Refused(
        error=f"this engine is user {STRANGER}'s and serves nobody else, got user {user}"
    )
    with pytest.raises(ConnectionResetError):
        client.receive()
    client.close()


async def _serve_one(server: Server, sock: socket.socket) -> None:
    await server._serve(AsyncChannel(sock, FromClient))
    if server._lease is not None:
        server._lease.cancel()


def test_a_client_sends_no_weights_to_another_users_engine(
    place: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /tmp anybody may have made the directory first."""
    with socket.socket(socket.AF_UNIX) as listener, place.address() as address:
        listener.bind(address)
        listener.listen()
        user = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: STRANGER)
        with pytest.raises(EngineError, match=f"is user {user}'s, not this user's .{STRANGER}"):
            attach(place)
        listener.setblocking(False)
        accepted, _ = listener.accept()
        assert accepted.recv(1) == b""
        accepted.close()


def test_what_is_secret_stays_in_the_workers_memory(
    home: Path, make_task: Callable[..., Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    """A task's parameters may hold a password of its data; a site's name may be a patient's."""
    engine = connect(DeviceSettings(backend=Backend.CPU, idle_timeout_s=120))
    assert isinstance(engine, EngineClient)
    tasks = [
        make_task("good", token=SECRET),
        make_task("bad", "raise", token=SECRET),
        replace(make_task("absent", token=SECRET), data="engine_tasks:nothing"),
    ]
    result = engine.run_round(make_order(*tasks), {task.name: weights for task in tasks})
    assert [report.status for report in result.report.tasks] == [Status.DONE, Status.FAILED, Status.FAILED]
    processes = [psutil.Process(engine.pid), *psutil.Process(engine.pid).children(recursive=True)]
    assert len(processes) >= 3
    said = [" ".join(process.cmdline()) for process in processes]
    said += [path.read_text() for path in home.rglob("*.log")]
    (found,) = running()
    said += [msgspec.json.encode(found.status()).decode(), found.metrics()]
    said += [report.error for report in result.report.tasks]
    assert not [text for text in said if SECRET in text]
    files = [path for path in home.rglob("*") if not path.is_dir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.suffix == ".log"} == {0o600}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in home.rglob("*") if path.is_dir())
    engine.close()
