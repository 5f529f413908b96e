"""What is built and installed elsewhere is whole: the configuration travels inside."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_and_its_configuration_only(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"fedmt_flower/{name}" for name in shipped} <= set(names)
    assert "fedmt_flower/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"fedmt_flower"}
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


@pytest.mark.simulation
@pytest.mark.timeout(600)
def test_sim_runs_from_the_wheel_in_an_empty_directory(wheel: Path, tmp_path: Path) -> None:
    place, empty = tmp_path / "place", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, "--target", str(place), str(wheel)], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(place), "FEDMT_HOME": str(tmp_path / "home")}
    where = "import fedmt_flower; print(fedmt_flower.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], capture_output=True, text=True, env=environment, cwd=empty, check=True
    )
    assert found.stdout.startswith(str(place))
    done = subprocess.run(
        [
            *(str(place / "bin" / "fedmt"), "sim", "device=cpu", "folder=run"),
            *("federation.sites=1", "federation.rounds=1", "~tasks.forms", "~tasks.progression"),
        ],
        capture_output=True,
        text=True,
        env=environment,
        cwd=empty,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert (empty / "run" / "weights" / "cells.safetensors").stat().st_size > 0
