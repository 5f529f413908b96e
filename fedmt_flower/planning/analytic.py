"""Throughput models for a device and tasks of which nothing was learnt: analytic estimates."""

from __future__ import annotations

from typing import Final

import numpy as np

from fedmt_flower.planning.features import EXPECTED, saturation
from fedmt_flower.planning.regression import RegressionModel
from fedmt_flower.planning.throughput import Array, CoRuns


class AnalyticModel:
    """Each task follows its solo curve, and all are slowed down alike where they demand more than there is.

    It is what the boosted trees correct; see `planning.features.saturation` for the solo curve.
    """

    monotone: Final = True

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        return RegressionModel(regressor=self, monotone=True).rates(runs)

    def predict(self, features: Array) -> Array:
        """The estimate's logarithm for each row of `features`."""
        return features[:, EXPECTED].astype(float)


class ThreadModel:
    """The same for CPUs: a task follows its solo curve, and keeps as many cores busy as it has threads.

    A budget is a number of threads there. Where tasks have more of them together than there are cores, all
    are slowed down alike. It is not monotone: a thread that brings its task little takes a core from all.
    """

    monotone: Final = False

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        own, given = runs.own_budgets.T / 100.0, runs.budgets.T / 100.0
        share, _ = saturation(runs.tasks, np.where(given > 0, own, 0.0))
        busy = np.maximum(1.0, given.sum(axis=0) - given + own)
        return np.asarray((share / busy).T * runs.solo_rates)
