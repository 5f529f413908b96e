"""The throughput model of § IV as boosted trees, and its text form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import xgboost

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.features import FEATURES
from fedmt_flower.planning.regression import RegressionModel, training_set
from fedmt_flower.planning.sensitivity import Sensitivity, fit_sensitivity
from fedmt_flower.planning.throughput import Array, CoRuns, fingerprint

FORMAT: Final = "fedmt throughput model"
VERSION: Final = 1
_ROUNDS: Final = 100
_PART: Final = 0.6
"""Of each sensitivity, what the trees start from: monotone ones can strengthen an effect, not weaken it."""
_PARAMETERS: Final[Mapping[str, Any]] = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 4,
    "eta": 0.15,
    "min_child_weight": 5,
    "lambda": 3.0,
    "subsample": 0.7,
    "colsample_bytree": 0.7,
    "seed": 0,
    "monotone_constraints": tuple(FEATURES.values()),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """Where a throughput model comes from and how far to trust it.

    Parameters
    ----------
    samples, data
        How many samples it was fitted on, and their `fingerprint`.
    devices, models
        Names of the devices and of the models among them, sorted.
    errors
        Hold-out errors by the name of their split: MAPE, as fractions.
    """

    samples: int
    data: str
    devices: tuple[str, ...]
    models: tuple[str, ...]
    errors: Mapping[str, float] = field(default_factory=dict)


class XGBoostModel:
    """Boosted trees on top of a linear model of contention, under monotone constraints.

    Trees alone need many more samples for what is smooth: on an H100's first 200 they erred by 11 %, the
    two together by 7 %. A rate never falls with its own budget and never rises with another's or with one
    more task; the search of budgets builds exact bounds on that.
    """

    monotone: Final = True

    def __init__(self, sensitivity: Sensitivity, booster: xgboost.Booster, card: ModelCard) -> None:
        self.card = card
        self._sensitivity = sensitivity
        self._booster = booster
        self._model = RegressionModel(regressor=self, monotone=True)

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        return self._model.rates(runs)

    def predict(self, features: Array) -> Array:
        """Predict the logarithm of the share for each row of `features`."""
        corrections = np.asarray(
            self._booster.inplace_predict(features, validate_features=False), dtype=float
        )
        return corrections + self._sensitivity.predict(features)

    def importance(self) -> dict[str, float]:
        """Share of the trees' total gain that each feature brought, largest first."""
        gains = self._booster.get_score(importance_type="total_gain")
        total = sum(map(float, gains.values())) or 1.0  # type: ignore[arg-type]
        shares = {name: float(gains.get(f"f{i}", 0.0)) / total for i, name in enumerate(FEATURES)}  # type: ignore[arg-type]
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def to_text(self) -> str:
        """The model as JSON text that `from_text` accepts; a wheel and a FAB keep it."""
        trees = self._booster.save_raw("json").decode()
        sensitivity = self._sensitivity.to_json()
        content = {
            "format": FORMAT,
            "version": VERSION,
            "features": list(FEATURES),
            "samples": self.card.samples,
            "data": self.card.data,
            "devices": list(self.card.devices),
            "models": list(self.card.models),
            "errors": dict(self.card.errors),
            "digest": _digest(sensitivity, trees),
            "sensitivity": sensitivity,
            "trees": trees,
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_text(cls, text: str, *, threads: int = 1) -> XGBoostModel:
        """Read what `to_text` wrote; `threads` predict (0: as many as there are).

        One by default: a search predicts some hundred rows at a time, and beside busy CPUs two threads
        waited for each other so long that it took twenty times as long.

        Raises
        ------
        ConfigError
            If the text is no such model, is of another version, has other features, or was changed.
        """
        try:
            content = json.loads(text)
            found = {key: content[key] for key in ("format", "version", "features", "digest")}
            trees = str(content["trees"])
            sensitivity = content["sensitivity"]
            card = ModelCard(
                samples=int(content["samples"]),
                data=str(content["data"]),
                devices=tuple(content["devices"]),
                models=tuple(content["models"]),
                errors={str(name): float(error) for name, error in content["errors"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"throughput model: not a model that fedmt fit wrote ({error!r})") from None
        expected = {
            "format": FORMAT,
            "version": VERSION,
            "features": list(FEATURES),
            "digest": _digest(sensitivity, trees),
        }
        for key, value in expected.items():
            if found[key] != value:
                raise ConfigError(
                    f"throughput model: its {key} is {_short(found[key])}, this version expects "
                    f"{_short(value)}; run fedmt fit again"
                )
        booster = xgboost.Booster({"nthread": threads})
        booster.load_model(bytearray(trees.encode()))
        return cls(Sensitivity.from_json(sensitivity), booster, card)


def fit_xgboost(
    samples: Sequence[CoRunSample], *, errors: Mapping[str, float] | None = None, threads: int = 0
) -> XGBoostModel:
    """Fit the trees to `samples` (§ IV); the same samples in the same order give the same trees.

    `errors` are hold-out errors to keep with the model (see `planning.evaluation`); `threads` 0 uses as
    many as there are.
    """
    features, log_shares = training_set(samples)
    sensitivity = fit_sensitivity(features, log_shares).scaled(_PART)
    matrix = xgboost.DMatrix(features, log_shares - sensitivity.predict(features))
    booster = xgboost.train({**_PARAMETERS, "nthread": threads}, matrix, _ROUNDS)
    card = ModelCard(
        samples=len(samples),
        data=fingerprint(samples),
        devices=tuple(sorted({sample.device.name for sample in samples})),
        models=tuple(sorted({model for sample in samples for model in sample.mix})),
        errors=dict(errors or {}),
    )
    return XGBoostModel(sensitivity, booster, card)


def _digest(sensitivity: object, trees: str) -> str:
    return hashlib.sha256(f"{json.dumps(sensitivity)}\n{trees}".encode()).hexdigest()


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
