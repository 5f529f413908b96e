"""The throughput model for a device and tasks of which nothing was learnt: the analytic estimate."""

from __future__ import annotations

from typing import Final

from fedmt_flower.planning.features import EXPECTED
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
