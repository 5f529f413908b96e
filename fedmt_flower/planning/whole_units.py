"""Budgets as a device has them: whole multiprocessors, or whole threads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fedmt_flower.planning.throughput import Array, CoRuns, ThroughputModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WholeUnits:
    """A throughput model that sees each budget rounded down to whole units, at least one, as devices do."""

    model: ThroughputModel

    @property
    def monotone(self) -> bool:
        """As the model: rounding keeps the order of budgets."""
        return self.model.monotone

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        units = runs.device.units
        own = None if runs.ceilings is None else _rounded(runs.ceilings, units)
        return self.model.rates(replace(runs, budgets=_rounded(runs.budgets, units), ceilings=own))


def _rounded(budgets: Array, units: int) -> Array:
    whole = np.maximum(1.0, np.floor(budgets * units / 100.0 + 1e-9)) * 100.0 / units
    return np.where(budgets > 0, whole, 0.0)
