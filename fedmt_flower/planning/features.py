"""What a fitted throughput model sees of a task and of those that run beside it.

Features of the co-runners are counts, sums and maxima of quantities ≥ 0: they do not depend on the tasks'
order, and none falls when a task joins or is given more. Each task's quantities are rounded to multiples
of 2⁻²⁰ before they are summed, so the sums are exact and the order cannot show in a last bit either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from fedmt_flower.domain.profile import StepKind, TaskFeatures
from fedmt_flower.planning.rates import Index
from fedmt_flower.planning.throughput import Array, CoRuns

NATURE: Final = (
    "log_intensity",
    "compute_use",
    "bandwidth_use",
    "filling",
    "log_step_s",
    "log_batch",
    "log_solo_rate",
    "graph",
    "log_units",
    "log_peak",
    "log_bandwidth",
)
"""What a task is by itself, at its batch size, and the device; left to the data."""
CONTENTION: Final[dict[str, int]] = {
    "budget": 1,
    "log_share": 1,
    "budget_part": 1,
    "log_expected": 1,
    "others": -1,
    "others_budget": -1,
    "others_demand": -1,
    "others_compute": -1,
    "others_bandwidth": -1,
    "others_compute_whole": -1,
    "others_bandwidth_whole": -1,
    "others_kernel": -1,
    "others_graph": -1,
    "others_budget_max": -1,
    "others_demand_max": -1,
}
"""What budgets and company do to it, each with the sign of its effect on the rate."""
FEATURES: Final[dict[str, int]] = {**dict.fromkeys(NATURE, 0), **CONTENTION}
"""Feature names in the order of `design`'s columns: 1 raises the rate, -1 lowers it, 0 may do either."""
EXPECTED: Final = tuple(FEATURES).index("log_expected")
"""Column of the analytic estimate: the logarithm of the share if only the device's units are scarce."""

_EXACT: Final = 2.0**20


def design(runs: CoRuns, solo_rates: Array) -> Array:
    """Features of every running task, with the `solo_rates` of `runs`: shape (rates, len(FEATURES)), float32.

    The rows of the first task come first, in the order of `runs`: that of ``runs.running.T``.
    """
    running = runs.running.T
    features = np.empty((np.count_nonzero(running), len(FEATURES)), dtype=np.float32)
    setting = _Setting(runs, solo_rates)
    end = 0
    for i in range(len(runs.tasks)):
        rows = np.flatnonzero(running[i])
        block = features[end : end + len(rows)]
        end += len(rows)
        block[:, : len(NATURE)] = setting.nature(i, rows)
        for column, values in enumerate(setting.contention(i), start=len(NATURE)):
            block[:, column] = values[rows]
    return features  # type: ignore[return-value]


class _Setting:
    """Quantities of n tasks in k settings; arrays of shape (n, k), or (n, 1) where settings do not matter."""

    def __init__(self, runs: CoRuns, solo_rates: Array) -> None:
        tasks, device = runs.tasks, runs.device
        batches, solo = np.ascontiguousarray(runs.batches.T), np.ascontiguousarray(solo_rates.T)
        flops, traffic = _column(task.flops for task in tasks), _column(task.traffic for task in tasks)
        graph = _column(task.step is StepKind.GRAPH for task in tasks)
        step_s = batches / solo
        compute, bandwidth = solo * flops / device.peak, solo * traffic / device.bandwidth
        alike = np.ones_like(flops)
        self._nature = (
            np.log2(flops / traffic),
            compute,
            bandwidth,
            filling(tasks),
            np.log2(step_s),
            np.log2(batches),
            np.log2(solo),
            graph,
            *(value * alike for value in np.log2([device.units, device.peak, device.bandwidth])),
        )
        budget, _, demand = taken = self._taken(tasks, runs.budgets)
        self._own = taken if runs.ceilings is None else self._taken(tasks, runs.ceilings)
        running = 1.0 * (budget > 0)
        self._sums = [
            (values, values.sum(axis=0))
            for values in (
                running,
                budget,
                demand,
                _exact(budget * compute),
                _exact(budget * bandwidth),
                _exact(running * compute),
                _exact(running * bandwidth),
                _exact(budget * np.log2(1.0 + 1e3 * step_s)),
                running * graph,
            )
        ]
        self._maxima = [(values, *_top_two(values)) for values in (budget, demand)]

    def _taken(self, tasks: tuple[TaskFeatures, ...], budgets: Array) -> tuple[Array, Array, Array]:
        """Budget (a fraction), solo share and demand that `budgets` (%, shape (k, n)) mean."""
        budget = _exact(np.ascontiguousarray(budgets.T) / 100.0)
        share, demand = saturation(tasks, budget)
        return budget, share, _exact(demand)

    def nature(self, i: int, rows: Index) -> Array:
        """Columns `NATURE` of task i in the settings `rows`; shape (rows, len(NATURE))."""
        found = np.empty((len(rows), len(NATURE)))
        for column, values in enumerate(self._nature):
            found[:, column] = values[i][rows] if values.shape[1] > 1 else values[i]
        return found

    def contention(self, i: int) -> list[Array]:
        """Columns `CONTENTION` of task i; each of shape (k,)."""
        others = [total - values[i] for values, total in self._sums]
        largest = [np.where(values[i] == first, second, first) for values, first, second in self._maxima]
        budget, share, demand = (values[i] for values in self._own)
        with np.errstate(divide="ignore", invalid="ignore"):
            own = [
                budget,
                np.log(share),
                budget / (budget + others[1]),
                np.log(share / np.maximum(1.0, demand + others[2])),
            ]
        return [*own, *others, *largest]


def filling(tasks: tuple[TaskFeatures, ...]) -> Array:
    """How far each task alone fills the device, from 0 to 1: the power p of `saturation`; shape (n, 1)."""
    return np.clip(-np.log2(_column(task.quarter_share for task in tasks)) / 2.0, 0.0, 1.0)


def saturation(tasks: tuple[TaskFeatures, ...], budget: Array) -> tuple[Array, Array]:
    """Solo share at `budget` (a fraction of the device, shape (n, k)), and the part of the device in use.

    A power law through the two solo measurements: a budget r gives the share rᵖ with 4⁻ᵖ the share at a
    quarter. A task that fills the device (p = 1) demands r of it, one that is as fast on a quarter (p = 0)
    demands a quarter.
    """
    power = filling(tasks)
    share = np.where(budget > 0, np.maximum(budget, 1e-9) ** power, 0.0)
    return share, share * 4.0 ** (power - 1.0)


def quarter_share(share: float, budget: float) -> float:
    """`TaskFeatures.quarter_share` by the power law of `saturation` through the solo `share` at `budget` %.

    One half where the device has no smaller budget than all of it, so that nothing was measured.
    """
    if budget >= 100.0:
        return 0.5
    return float(share ** (math.log(0.25) / math.log(budget / 100.0)))


def _column(values: Iterable[float]) -> Array:
    return np.fromiter(values, dtype=float)[:, None]


def _exact(values: Array) -> Array:
    return np.rint(values * _EXACT) / _EXACT


def _top_two(values: Array) -> tuple[Array, Array]:
    """The two largest of each column, 0 where there are fewer: arrays of shape (k,)."""
    first = second = np.zeros(values.shape[1])
    for row in values:
        second = np.maximum(second, np.minimum(first, row))
        first = np.maximum(first, row)
    return first, second
