"""`fedmt engine`, on a real engine of the CPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from fedmt_flower.cli import main
from fedmt_flower.device.engine.connection import connect, running
from fedmt_flower.domain.device import Backend, DeviceSettings


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("FEDMT_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for engine in running():
        engine.stop()


def test_nothing_is_running(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("status", "stop"):
        assert main(["engine", action]) == 0
        assert capsys.readouterr().out == "no engine is running\n"
        assert main(["engine", action, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []
    assert main(["engine", "logs"]) == 0
    assert capsys.readouterr().out == "no engine has run here yet\n"


def test_an_engine_is_shown_and_stopped(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with closing(connect(DeviceSettings(backend=Backend.CPU))):
        pass
    assert main(["engine", "status", "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["backend"], status["device"], status["workers"]) == ("cpu", "cpu", [])

    assert main(["engine", "status"]) == 0
    assert f"cpu, pid {status['pid']}" in capsys.readouterr().out
    assert main(["engine", "logs", "cpu"]) == 0
    assert f"engine of cpu ready, pid {status['pid']}" in capsys.readouterr().out

    assert main(["engine", "stop"]) == 0
    assert capsys.readouterr().out == f"stopped the engine of cpu, pid {status['pid']}\n"
    assert running() == ()
    assert main(["engine", "logs"]) == 0
    assert "engine of cpu ends" in capsys.readouterr().out


def test_a_device_without_an_engine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["engine", "stop", "gpu7"]) == 1
    assert capsys.readouterr().err == "fedmt: there is no engine of 'gpu7'; no engine has run here yet\n"
