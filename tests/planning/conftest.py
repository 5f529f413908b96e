"""A made-up GPU whose tasks contend for arithmetic and bandwidth, and samples taken from it."""

from __future__ import annotations

import pytest

from fedmt_flower.bench.specimen import DEVICE, ZOO, Contention, draw_samples
from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.planning.xgboost_model import XGBoostModel, fit_xgboost


@pytest.fixture(scope="session")
def truth() -> Contention:
    return Contention()


@pytest.fixture(scope="session")
def device() -> DeviceFeatures:
    return DEVICE


@pytest.fixture(scope="session")
def zoo() -> dict[str, TaskFeatures]:
    return dict(ZOO)


@pytest.fixture(scope="session")
def samples() -> list[CoRunSample]:
    """600 settings of 60 mixes of 1 to 5 tasks, with 1 % of noise."""
    return draw_samples()


@pytest.fixture(scope="session")
def fitted(samples: list[CoRunSample]) -> XGBoostModel:
    return fit_xgboost(samples, threads=1)
