"""What the boosted trees are compared with: § IV's alternatives, and two trivial predictors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.planning.regression import RegressionModel, training_set
from fedmt_flower.planning.throughput import Array, CoRuns


def fit_log_linear(samples: Sequence[CoRunSample]) -> RegressionModel:
    """Fit a linear model of the log share, ridge-penalised."""
    return RegressionModel(regressor=make_pipeline(StandardScaler(), Ridge(1.0)).fit(*training_set(samples)))


def fit_polynomial(samples: Sequence[CoRunSample]) -> RegressionModel:
    """Fit a polynomial of degree 2 of the log share, ridge-penalised."""
    pipeline = make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False), Ridge(10.0))
    return RegressionModel(regressor=pipeline.fit(*training_set(samples)))


def fit_neural_net(samples: Sequence[CoRunSample]) -> RegressionModel:
    """Fit a perceptron with two hidden layers of 32."""
    network = MLPRegressor(
        hidden_layer_sizes=(32, 32), alpha=1e-2, learning_rate_init=3e-3, max_iter=400, random_state=0
    )
    return RegressionModel(regressor=make_pipeline(StandardScaler(), network).fit(*training_set(samples)))


@dataclass(frozen=True, slots=True)
class ProportionalModel:
    """Trivial: each task gets its solo rate times its budget."""

    monotone: Final = True

    def rates(self, runs: CoRuns) -> Array:
        """Predict P_bᵢ·Rᵢ; see `ThroughputModel`."""
        return np.where(runs.running, runs.solo_rates * runs.own_budgets / 100.0, 0.0)


@dataclass(frozen=True, slots=True)
class EqualSlowdownModel:
    """Trivial: n tasks run at an nth of their solo rates, whatever their budgets."""

    monotone: Final = True

    def rates(self, runs: CoRuns) -> Array:
        """Predict P_bᵢ/n; see `ThroughputModel`."""
        running = np.maximum(1, (runs.budgets > 0).sum(axis=1, keepdims=True))
        return np.where(runs.running, runs.solo_rates / running, 0.0)
