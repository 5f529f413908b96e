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
from fedmt_flower.planning.features import EXPECTED, FEATURES
from fedmt_flower.planning.regression import RegressionModel, training_set
from fedmt_flower.planning.throughput import Array, CoRuns, fingerprint

FORMAT: Final = "fedmt throughput model"
VERSION: Final = 1
_ROUNDS: Final = 100
_PARAMETERS: Final[Mapping[str, Any]] = {
    "objective": "reg:squarederror",
    "tree_method": "hist",
    "max_depth": 4,
    "eta": 0.1,
    "min_child_weight": 2,
    "lambda": 1.0,
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
    """Boosted trees that correct the analytic estimate `log_expected`, under monotone constraints.

    A rate never falls with its own budget and never rises with another's or with one more task; the search
    of budgets builds exact bounds on that.
    """

    monotone: Final = True

    def __init__(self, booster: xgboost.Booster, card: ModelCard) -> None:
        self.card = card
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
        return corrections + features[:, EXPECTED]

    def importance(self) -> dict[str, float]:
        """Share of the trees' total gain that each feature brought, largest first."""
        gains = self._booster.get_score(importance_type="total_gain")
        total = sum(map(float, gains.values())) or 1.0  # type: ignore[arg-type]
        shares = {name: float(gains.get(f"f{i}", 0.0)) / total for i, name in enumerate(FEATURES)}  # type: ignore[arg-type]
        return dict(sorted(shares.items(), key=lambda item: -item[1]))

    def to_text(self) -> str:
        """The model as JSON text that `from_text` accepts; a wheel and a FAB keep it."""
        trees = self._booster.save_raw("json").decode()
        content = {
            "format": FORMAT,
            "version": VERSION,
            "features": list(FEATURES),
            "samples": self.card.samples,
            "data": self.card.data,
            "devices": list(self.card.devices),
            "models": list(self.card.models),
            "errors": dict(self.card.errors),
            "digest": hashlib.sha256(trees.encode()).hexdigest(),
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
            "digest": hashlib.sha256(trees.encode()).hexdigest(),
        }
        for key, value in expected.items():
            if found[key] != value:
                raise ConfigError(
                    f"throughput model: its {key} is {_short(found[key])}, this version expects "
                    f"{_short(value)}; run fedmt fit again"
                )
        booster = xgboost.Booster({"nthread": threads})
        booster.load_model(bytearray(trees.encode()))
        return cls(booster, card)


def fit_xgboost(
    samples: Sequence[CoRunSample], *, errors: Mapping[str, float] | None = None, threads: int = 0
) -> XGBoostModel:
    """Fit the trees to `samples` (§ IV); the same samples in the same order give the same trees.

    `errors` are hold-out errors to keep with the model (see `planning.evaluation`); `threads` 0 uses as
    many as there are.
    """
    features, log_shares = training_set(samples)
    matrix = xgboost.DMatrix(features, log_shares - features[:, EXPECTED])
    booster = xgboost.train({**_PARAMETERS, "nthread": threads}, matrix, _ROUNDS)
    card = ModelCard(
        samples=len(samples),
        data=fingerprint(samples),
        devices=tuple(sorted({sample.device.name for sample in samples})),
        models=tuple(sorted({model for sample in samples for model in sample.mix})),
        errors=dict(errors or {}),
    )
    return XGBoostModel(booster, card)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
