"""The model that comes along is the one of the samples that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedmt_flower.bench.models import profiled
from fedmt_flower.device.planner.models import Models
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.planning.evaluation import relative_errors
from fedmt_flower.planning.throughput import fingerprint
from fedmt_flower.planning.xgboost_model import XGBoostModel

PROFILES = Path(__file__).parents[2] / "benchmarks" / "profiles"


@pytest.fixture(scope="module")
def samples() -> list[CoRunSample]:
    return profiled(sorted(PROFILES.glob("*.jsonl")))


def test_it_was_fitted_to_the_samples_that_are_kept(samples: list[CoRunSample]) -> None:
    devices = {sample.device.name: sample.device for sample in samples}
    assert sorted(devices) == ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    models = Models(Backend.MPS)
    chosen, other = (models.choose("", device) for device in devices.values())
    assert chosen is other
    assert isinstance(chosen.model, XGBoostModel)
    assert chosen.devices == tuple(sorted(devices))
    assert chosen.model.card.data == fingerprint(samples)
    errors = dict(chosen.model.card.errors)
    assert errors.pop("a device left out") < 0.15
    assert max(errors.values()) < 0.1
    assert relative_errors(chosen.model, samples).mean() < 0.05


def test_samples_of_plain_and_of_fast_steps_are_told_apart(samples: list[CoRunSample]) -> None:
    rates = {
        step: np.median([task.solo_rate for sample in samples for task in sample.tasks if task.step == step])
        for step in ("eager", "graph")
    }
    assert rates["graph"] > 1.5 * rates["eager"]
