"""Which throughput model a device plans with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedmt_flower.bench.specimen import DEVICE, draw_samples
from fedmt_flower.device.planner.models import ANALYTIC, THREADS, Models
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.xgboost_model import fit_xgboost


@pytest.fixture(scope="module")
def text() -> str:
    return fit_xgboost(draw_samples()[:120], threads=1).to_text()


@pytest.fixture
def shipped(tmp_path: Path, text: str) -> Path:
    """Models of two devices, as they would lie in the package."""
    folder = tmp_path / "models"
    folder.mkdir()
    card = json.loads(text)
    for name, devices in {"big": ["Big GPU"], "made_up": [DEVICE.name]}.items():
        (folder / f"{name}.json").write_text(json.dumps(card | {"devices": devices}))
    return folder


def test_without_a_file_gpus_take_the_shipped_model_of_the_nearest_device(shipped: Path) -> None:
    models = Models("mps", shipped)
    chosen = models.choose("", DEVICE)
    assert chosen.devices == (DEVICE.name,)
    assert chosen.basis == f"model fitted to 120 samples of {DEVICE.name}"
    assert models.choose("", replace(DEVICE, name="Another GPU")).devices == ("Big GPU",)
    assert models.choose("", DEVICE) is chosen
    assert Models("cpu", shipped).choose("", DEVICE) is THREADS


def test_where_none_is_shipped_the_analytic_model_plans(tmp_path: Path) -> None:
    assert Models("mps", tmp_path).choose("", DEVICE) is ANALYTIC
    assert Models("cpu", tmp_path).choose("", DEVICE) is THREADS


def test_every_model_in_the_package_can_be_read() -> None:
    chosen = Models("mps").choose("", DEVICE)
    assert chosen is ANALYTIC or chosen.devices


def test_a_file_is_taken_on_any_device_and_read_again_once_it_has_changed(shipped: Path) -> None:
    models = Models("cpu", shipped)
    path = shipped / "big.json"
    chosen = models.choose(str(path), DEVICE)
    assert chosen.devices == ("Big GPU",)
    path.write_text(path.read_text().replace("Big GPU", "Bigger GPU"))
    assert models.choose(str(path), DEVICE).devices == ("Bigger GPU",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"features": ["log_flops"]}, "its features is"),
        ({"version": 99}, "its version is 99, this version expects"),
        ({"trees": "{}"}, "its digest is"),
    ],
)
def test_a_model_that_does_not_match_is_refused_in_one_line(
    tmp_path: Path, text: str, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "model.json"
    path.write_text(json.dumps(json.loads(text) | change))
    with pytest.raises(ConfigError) as caught:
        Models("cpu").choose(str(path), DEVICE)
    (problem,) = caught.value.problems
    assert problem.startswith(f"allocation model {path}: throughput model: {said}")
    assert "run fedmt fit again" in problem
    assert "\n" not in problem


@pytest.mark.parametrize(("content", "said"), [(b"\xff\xfe", "it is no text"), (b"[]", "not a model that")])
def test_what_is_no_model_is_refused_in_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        Models("cpu").choose(str(path), DEVICE)
