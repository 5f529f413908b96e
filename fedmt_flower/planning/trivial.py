"""Throughput models that know solo rates only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmt_flower.planning.throughput import Array, CoRuns


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
