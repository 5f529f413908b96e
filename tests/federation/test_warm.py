"""ClientApps that are forked from a process with their imports, in place of Flower's own start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedmt_flower.errors import ConfigError
from fedmt_flower.federation import launcher, warm

FORKING = """
import json, os, signal, socket, sys
import numpy
from fedmt_flower.federation import warm
warm.ignore_signals()
if warm.await_message(socket.socket(fileno=int(sys.argv[1]))):
    interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(json.dumps([os.getpid(), os.getcwd(), sys.argv, interrupt, numpy.random.random()]))
"""
"""A process that forks for each message what tells of itself."""

Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a client with the launcher, in a directory; what it tells, as JSON."""
    address = tmp_path / "socket"
    cold = tmp_path / "cold"
    cold.write_text('#!/bin/sh\necho "\\"cold $*\\""\n')
    cold.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(address))
        listener.listen()
        forking = subprocess.Popen(
            [sys.executable, "-c", FORKING, str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )

    def started(*arguments: str, warm: bool = True) -> Any:
        if not warm:
            forking.kill()
            forking.wait(10)
        command = [sys.executable, "-IS", launcher.__file__, str(address), str(cold), *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=30, check=True)
        return json.loads(done.stdout)

    yield started
    assert forking.stdin
    forking.stdin.close()
    assert forking.wait(10) in (0, -9)


def test_a_client_is_a_process_of_its_own_with_what_it_was_started_with(start: Start, tmp_path: Path) -> None:
    (pid, *found), (other_pid, *_) = start("--token", "a b"), start()
    assert found[:3] == [str(tmp_path), ["flwr-clientapp", "--token", "a b"], True]
    assert len({pid, other_pid, os.getpid()}) == 3


def test_clients_draw_other_numbers(start: Start) -> None:
    assert start()[-1] != start()[-1]


def test_a_client_starts_as_ever_once_nobody_forks(start: Start) -> None:
    start()
    assert start("--token", "x", warm=False) == "cold --token x"


def test_a_program_starts_flowers_own_client_warm_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "flwr-clientapp").write_text("#!/bin/sh\necho cold\n")
    (tmp_path / "flwr-clientapp").chmod(0o700)
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    program = ["sh", "-c", "flwr-clientapp --nonsense; exit 7"]
    done = subprocess.run(
        [sys.executable, "-m", "fedmt_flower", "warm", "--", *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 7
    assert "usage: flwr-clientapp" in done.stderr
    assert done.stdout == ""
    deadline = time.monotonic() + 20
    while list(tmp_path.glob("fedmt-warm-*")):
        assert time.monotonic() < deadline, "its directory is still there"
        time.sleep(0.05)


def test_a_directory_that_is_too_deep_for_a_socket_is_named_and_left_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ConfigError, match=r"x/fedmt-warm-.*too long; set TMPDIR"):
        warm.run(["true"])
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize(("command", "named"), [([], "no program"), (["flower-supernod"], "flower-supernod")])
def test_a_program_that_is_not_there_is_named(command: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        warm.run(command)
