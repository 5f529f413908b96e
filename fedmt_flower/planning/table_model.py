"""A throughput model that answers from measurements alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from fedmt_flower.domain.profile import CoRunSample
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.throughput import Array, CoRuns


class TableModel:
    """Answers with the measured setting of the same tasks that is nearest to the one asked about.

    Near is counted in budgets (a distance of 1 is the whole device) and in doublings of the batch size,
    summed over the tasks; among equally near settings the first sample counts.

    Raises
    ------
    ConfigError
        When asked about a set of tasks that no sample has.
    """

    monotone: Final = False

    def __init__(self, samples: Sequence[CoRunSample]) -> None:
        self._table: dict[frozenset[str], list[Array]] = {}
        for sample in samples:
            order = sorted(range(len(sample.tasks)), key=lambda i: sample.tasks[i].task)
            settings = np.array([sample.batches, sample.budgets, sample.rates], dtype=float)[:, order]
            self._table.setdefault(frozenset(task.task for task in sample.tasks), []).append(settings)

    def rates(self, runs: CoRuns) -> Array:
        """Look up Pᵢ; see `ThroughputModel`."""
        names = np.array([task.task for task in runs.tasks])
        order = np.argsort(names)
        rates = np.zeros(runs.budgets.shape)
        for running in np.unique(runs.budgets > 0, axis=0):
            rows = ((runs.budgets > 0) == running).all(axis=1)
            columns = order[running[order]]
            if not columns.size:
                continue
            measured = np.stack(self._settings(frozenset(names[columns].tolist())), axis=1)
            block = np.ix_(rows, columns)
            distance = np.abs(np.log2(runs.batches[block][:, None] / measured[0])).sum(axis=2)
            distance += np.abs(runs.budgets[block][:, None] - measured[1]).sum(axis=2) / 100.0
            rates[block] = measured[2][distance.argmin(axis=1)]
        return np.where(runs.running, rates, 0.0)

    def _settings(self, tasks: frozenset[str]) -> list[Array]:
        if tasks not in self._table:
            raise ConfigError(
                f"table of rates: {', '.join(sorted(tasks))} were never measured together; profile that "
                "set, or use a fitted model"
            )
        return self._table[tasks]
