"""A linear model of contention whose coefficients follow from what a task is by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

import numpy as np
from scipy.optimize import nnls

from fedmt_flower.planning.features import CONTENTION, NATURE
from fedmt_flower.planning.throughput import Array

_SIGNS: Final = np.array(list(CONTENTION.values()), dtype=float)
_ALONE: Final = np.array([1.0 if name in ("budget", "budget_part") else 0.0 for name in CONTENTION])
"""The features of a task that is alone with the whole device."""
_PENALTY: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sensitivity:
    """log(share) = Σⱼ sⱼ(nature)·cⱼ(company): how much a task minds each kind of contention.

    Every sⱼ is a sum of the task's natural features, each scaled to [0, 1], and of what they lack of 1,
    with weights ≥ 0; every cⱼ is a feature of contention times the sign of its effect, 0 for a task alone
    with the whole device. So the share is 1 there, and it never falls with more budget nor rises with more
    company, whatever the data say.

    Parameters
    ----------
    weights
        0 or more; shape (kinds of contention, 2 · natural features).
    low, high
        The range of each natural feature in the samples; beyond it the feature stays at its end.
    """

    weights: Array
    low: Array
    high: Array

    def predict(self, features: Array) -> Array:
        """The logarithm of the share for each row of `planning.features.design`."""
        nature, contention = _split(features)
        # Not by BLAS: its threads wait for each other, which took as much CPU as all else in a search.
        sensitivity = np.einsum("rn,cn->rc", _scaled(nature, self.low, self.high), self.weights)
        return np.asarray((sensitivity * contention).sum(axis=1))

    def scaled(self, part: float) -> Self:
        """The same with every sensitivity times `part`, 0 or more."""
        return replace(self, weights=part * self.weights)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        return {name: getattr(self, name).tolist() for name in ("weights", "low", "high")}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; KeyError, TypeError or ValueError if it is something else."""
        arrays = {name: np.array(content[name], dtype=float) for name in ("weights", "low", "high")}
        shapes = {
            "weights": (len(CONTENTION), 2 * len(NATURE)),
            "low": (len(NATURE),),
            "high": (len(NATURE),),
        }
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise ValueError("sensitivities of other shapes")
        return cls(**arrays)


def fit_sensitivity(features: Array, log_shares: Array) -> Sensitivity:
    """Fit the weights by least squares, none below 0, with a ridge penalty.

    Parameters
    ----------
    features, log_shares
        Of `planning.regression.training_set`.
    """
    nature, contention = _split(np.asarray(features, dtype=float))
    low, high = nature.min(axis=0), nature.max(axis=0)
    scale = np.maximum(np.abs(contention).max(axis=0), 1e-9)
    products = (contention / scale)[:, :, None] * _scaled(nature, low, high)[:, None, :]
    columns = products.reshape(len(products), -1)
    penalty = np.sqrt(_PENALTY) * np.eye(columns.shape[1])
    aims = np.concatenate([log_shares, np.zeros(columns.shape[1])])
    weights, _ = nnls(np.concatenate([columns, penalty]), aims)
    return Sensitivity(weights=weights.reshape(products.shape[1:]) / scale[:, None], low=low, high=high)


def _split(features: Array) -> tuple[Array, Array]:
    """Natural features, and contention with its signs."""
    nature, contention = np.split(features, [len(NATURE)], axis=1)
    return nature, _SIGNS * contention - _ALONE


def _scaled(nature: Array, low: Array, high: Array) -> Array:
    """Each natural feature as a part of its range, and what is left of that: shape (rows, 2 · features)."""
    part = np.clip((nature - low) / np.where(high > low, high - low, np.inf), 0.0, 1.0)
    return np.concatenate([part, 1.0 - part], axis=1)
