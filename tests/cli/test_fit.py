"""`fedmt fit`, on samples of a made-up device."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from fedmt_flower.cli import main
from fedmt_flower.device.profile.samples import Device, Profile, Rates, Sampled, SamplesFile, Task
from fedmt_flower.domain.profile import DeviceFeatures
from fedmt_flower.planning.sampling import Candidate, Setting, blocks
from fedmt_flower.planning.xgboost_model import XGBoostModel

SOLO = {"small": 4000.0, "middling": 1500.0, "large": 500.0}
LEVELS = (20.0, 40.0, 60.0, 80.0, 100.0)


def rate(place_of: Setting, i: int) -> float:
    """Half of each task's demand follows its budget; all share what is there."""
    demand = sum(0.3 + 0.5 * place.budget / 100 for place in place_of)
    own = place_of[i]
    return SOLO[own.task] * (0.3 + 0.7 * own.budget / 100) / max(1.0, demand)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fit") / "profile.jsonl"
    tasks = tuple(
        Sampled(task=name, model=name, parameters="", reference=64, batches=(32, 64)) for name in SOLO
    )
    header = Profile(tasks=tasks, levels=LEVELS, quarter=25.0, seed=0, backend="cpu")
    file = SamplesFile(path, header, resume=False)
    file.add(Device(features=DeviceFeatures(name="made up", units=10, peak=1e12, bandwidth=1e11)))
    file.add(*(Task(task=name, flops=1e9 / solo, traffic=1e8 / solo) for name, solo in SOLO.items()))
    candidates = [Candidate(task=one.task, reference=64, batches=(32, 64), levels=LEVELS) for one in tasks]
    for block in islice(blocks(candidates, 25.0), 12):
        for setting in block.settings:
            file.add(
                Rates(
                    tasks=tuple(place.task for place in setting),
                    batches=tuple(place.batch for place in setting),
                    budgets=tuple(place.budget for place in setting),
                    rates=tuple(rate(setting, i) for i in range(len(setting))),
                    levels=tuple(int(place.budget / 10) for place in setting),
                    steps=(9,) * len(setting),
                    at_s=1.0,
                )
            )
    return path


def test_a_model_is_fitted_and_judged_beside_the_others(
    profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.json"
    assert main(["fit", str(profile), "-o", str(out), "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    seen = found["errors"]["seen mixes"]
    assert seen["boosted trees"] < 0.1
    assert seen["boosted trees"] < min(seen["solo × budget"], seen["equal slowdown"])
    assert set(found["errors"]) == {"seen mixes", "a mix left out", "a model left out"}
    assert found["noise"] == pytest.approx(0.0, abs=1e-9)
    assert found["workloads"]["made up"]["error"] < 0.2
    card = XGBoostModel.from_text(out.read_text(), threads=1).card
    assert card.devices == ("made up",)
    assert card.errors["a mix left out"] == found["errors"]["a mix left out"]["boosted trees"]


def test_a_table_is_printed(profile: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(profile), "-o", str(tmp_path / "m.json"), "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "boosted trees" in printed
    assert "α" in printed


def test_samples_that_are_not_there_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "nowhere.jsonl"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
