"""Benchmarks plan with the models and profiles that they are given, and say with which."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from fedmt_flower.bench.bench import Options
from fedmt_flower.bench.driver import measure
from fedmt_flower.bench.models import choose, profiled, subjects
from fedmt_flower.bench.specimen import BATCHES, DEVICE, ZOO, draw_samples
from fedmt_flower.device.profile.samples import Device, Line, Profile, Rates, Sampled, Task
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.xgboost_model import XGBoostModel, fit_xgboost


def options(out: Path, **changes: object) -> Options:
    known = {"backend": Backend.CPU, "quick": True, "out": out, "budget_s": 60.0, "command": ""}
    return Options(**(known | changes))  # type: ignore[arg-type]


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    """What `fedmt profile` would have written of the made-up GPU."""
    lines: list[Line] = [
        Profile(
            tasks=tuple(
                Sampled(task=name, model=name, parameters="", reference=128, batches=BATCHES) for name in ZOO
            ),
            levels=(20.0, 100.0),
            quarter=25.0,
            seed=0,
            backend="mps",
        ),
        Device(features=DEVICE),
        *(Task(task=name, flops=task.flops, traffic=task.traffic) for name, task in ZOO.items()),
    ]
    alone = [((name,), (128,), (100.0,), (task.solo_rate,)) for name, task in ZOO.items()]
    drawn = [
        (tuple(task.task for task in s.tasks), s.batches, s.budgets, s.rates) for s in draw_samples(mixes=30)
    ]
    lines += [
        Rates(
            tasks=tasks,
            batches=batches,
            budgets=budgets,
            rates=rates,
            levels=(1,) * len(tasks),
            steps=(9,) * len(tasks),
            at_s=0.0,
        )
        for tasks, batches, budgets, rates in [*alone, *drawn]
    ]
    path = tmp_path / "profile.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return path


def test_a_model_is_fitted_to_what_is_kept_of_the_profiles(profile: Path, tmp_path: Path) -> None:
    given = options(tmp_path, profiles=(profile,))
    every = profiled([profile])
    chosen = choose(given, DEVICE, lambda sample: len(sample.tasks) < 3)
    kept = sum(len(sample.tasks) < 3 for sample in every)
    assert 0 < kept < len(every)
    assert chosen.basis == f"model fitted to {kept} samples of {DEVICE.name}"
    with pytest.raises(ConfigError, match="no samples to fit"):
        choose(given, DEVICE, lambda sample: False)


def test_a_model_file_is_read_and_without_one_the_analytic_model_plans(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(fit_xgboost(draw_samples(mixes=5), threads=1).to_text())
    assert isinstance(choose(options(tmp_path, model=path), DEVICE).model, XGBoostModel)
    assert "analytic" in choose(options(tmp_path), DEVICE).basis


def test_a_model_that_was_given_plans_unless_samples_are_to_be_left_out(
    profile: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.json"
    path.write_text(fit_xgboost(few := draw_samples(mixes=5), threads=1).to_text())
    given = options(tmp_path, model=path, profiles=(profile,))
    assert choose(given, DEVICE).basis == f"model fitted to {len(few)} samples of {DEVICE.name}"
    assert choose(given, DEVICE, lambda sample: True).basis != choose(given, DEVICE).basis


def test_regret_asks_for_the_samples_that_its_models_leave_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="regret: got no --profile"):
        measure("regret", options(tmp_path, quick=False), lambda line: None)


def test_searches_take_their_tasks_from_a_profile(profile: Path, tmp_path: Path) -> None:
    _, device, tasks = subjects(options(tmp_path, profiles=(profile,)))
    assert device == DEVICE
    assert {task.task for task in tasks} == set(ZOO)


def test_a_prediction_is_judged_by_the_profiles_given(profile: Path, tmp_path: Path) -> None:
    result = measure("predict", options(tmp_path, profiles=(profile,)), lambda line: None)
    assert result.complete
    assert result.facts["devices"] == [DEVICE.name]
    (bar,) = result.bars
    assert bar.value < 0.10


def test_samples_planned_by_another_model_are_not_mixed(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text("one")
    before = options(tmp_path, model=path).inputs
    path.write_text("another")
    assert options(tmp_path, model=path).inputs != before
    path.unlink()
    with pytest.raises(ConfigError, match=r"model\.json: No such file"):
        measure("search-budgets", options(tmp_path, model=path), lambda line: None)
