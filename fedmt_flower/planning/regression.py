"""Throughput models that regress log(Pᵢ/P̂ᵢ), P̂ᵢ the solo rate at the batch size, on `planning.features`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.features import design
from fedmt_flower.planning.throughput import Array, CoRuns, ThroughputModel, by_mix

Fit = Callable[[Sequence[CoRunSample]], ThroughputModel]
"""Makes a throughput model of samples, the same one each time."""


class Regressor(Protocol):
    """What a regression has to offer: scikit-learn's estimators do."""

    def predict(self, features: Array) -> Array:
        """Predict one number per row of `features`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RegressionModel:
    """A throughput model around `regressor`, which predicts the logarithm of each task's share.

    Predicting the share, not the rate, carries over to models and devices that no sample has: the solo
    rate brings the scale.
    """

    regressor: Regressor
    monotone: bool = False

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        alone, rates = runs.solo_rates, np.zeros(runs.budgets.shape[::-1])
        running = runs.running.T
        if running.any():
            rates[running] = np.exp(self.regressor.predict(design(runs, alone)))
        return np.asarray(rates.T * alone)


def training_set(samples: Sequence[CoRunSample]) -> tuple[Array, Array]:
    """Features and log shares of every task of every sample: shapes (rows, features) and (rows,)."""
    if not samples:
        raise ConfigError("throughput model: no samples to fit, expected at least one; run fedmt profile")
    groups = by_mix(samples)
    features = np.concatenate([design(group.runs, group.runs.solo_rates) for group in groups])
    shares = np.concatenate([(group.rates / group.runs.solo_rates).T.ravel() for group in groups])
    return features, np.log(shares)
