"""An engine's directory is private, its lock exclusive."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from fedmt_flower.device.engine.home import EngineBusy, Home, base, homes
from fedmt_flower.errors import EngineError


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDMT_HOME", str(tmp_path / "fedmt"))
    return tmp_path / "fedmt"


def test_it_is_made_for_its_user_alone(place: Path) -> None:
    Home("gpu1").make()
    Home("gpu1").make()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, place / "gpu1")] == [0o700, 0o700]


def test_one_that_others_may_enter_is_refused(place: Path) -> None:
    place.mkdir(mode=0o755)
    with pytest.raises(EngineError, match=r"chmod 700.*drwxr-xr-x"):
        Home("cpu").make()


def test_one_that_is_a_link_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EngineError, match="must be a directory"):
        Home("cpu").make()


def test_one_that_cannot_be_made_is_told_in_a_line(place: Path) -> None:
    place.touch(mode=0o700)
    with pytest.raises(EngineError, match=f"{place}"):
        Home("cpu").make()


def test_the_second_to_lock_learns_who_was_first() -> None:
    home = Home("cpu")
    home.make()
    with home.lock():
        home.sign()
        with (
            pytest.raises(EngineBusy, match=f"device cpu already has an engine, pid {os.getpid()}"),
            home.lock(),
        ):
            pass
        assert [found.device for found in homes()] == ["cpu"]
    with home.lock():
        pass


def test_a_socket_may_lie_deeper_than_an_address_reaches(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDMT_HOME", str(place.parent / ("x" * 120)))
    home = Home("cpu")
    home.make()
    with socket.socket(socket.AF_UNIX) as listener, home.address() as address:
        listener.bind(address)
        assert (home.path / "socket").is_socket()
    home.remove_socket()
    home.remove_socket()
    assert not (home.path / "socket").exists()


def test_where_it_lies_without_a_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEDMT_HOME")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert base() == tmp_path / "fedmt"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert base().name == f"fedmt-{os.getuid()}"
