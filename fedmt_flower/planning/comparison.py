"""What the boosted trees are compared with: § IV's alternatives."""

from __future__ import annotations

from collections.abc import Sequence

from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.planning.regression import RegressionModel, training_set


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
