"""What batch sizes do to tasks alone, for throughput models that know nothing of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedmt_flower.planning.throughput import Array, CoRuns, ThroughputModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchCurves:
    """A throughput model whose rates are scaled by measured solo rates.

    Parameters
    ----------
    model
        Predicts the same rate for every batch size.
    curves
        Solo rates in samples/s by batch size, by task, the reference batch among them. Between sizes and
        rates it is interpolated by logarithms; a task without a curve keeps its rate.
    """

    model: ThroughputModel
    curves: Mapping[str, Mapping[int, float]]

    @property
    def monotone(self) -> bool:
        """As the model: a scale depends on the task's own batch size alone."""
        return self.model.monotone

    def rates(self, runs: CoRuns) -> Array:
        """Predict Pᵢ; see `ThroughputModel`."""
        rates = self.model.rates(runs)
        for i, task in enumerate(runs.tasks):
            curve = sorted(self.curves.get(task.task, {}).items())
            if len(curve) > 1:
                sizes, speeds = np.log(np.array(curve, dtype=float)).T
                here = np.interp(np.log(runs.batches[:, i]), sizes, speeds)
                rates[:, i] *= np.exp(here - np.interp(np.log(task.reference_batch), sizes, speeds))
        return rates
