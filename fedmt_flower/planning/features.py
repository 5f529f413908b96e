"""What a fitted throughput model sees of a task and of those that run beside it.

Features of the co-runners are counts, sums and maxima of quantities ≥ 0: they do not depend on the tasks'
order, and none falls when a task joins or is given more. Each task's quantities are rounded to multiples
of 2⁻²⁰ before they are summed, so the sums are exact and the order cannot show in a last bit either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import numpy as np

from fedmt_flower.domain.profile import DeviceFeatures, StepKind, TaskFeatures
from fedmt_flower.planning.throughput import Array, CoRuns

FEATURES: Final[dict[str, int]] = {
    "log_flops": 0,
    "log_traffic": 0,
    "log_intensity": 0,
    "log_solo_rate": 0,
    "compute_use": 0,
    "bandwidth_use": 0,
    "quarter_share": 0,
    "graph": 0,
    "log_units": 0,
    "log_peak": 0,
    "log_bandwidth": 0,
    "log_batch": 0,
    "log_batch_ratio": 0,
    "log_step_s": 0,
    "budget": 1,
    "budget_part": 1,
    "compute_part": 1,
    "log_expected": 1,
    "others": -1,
    "others_budget": -1,
    "others_compute": -1,
    "others_bandwidth": -1,
    "others_demand": -1,
    "others_batch_demand": -1,
    "others_kernel": -1,
    "others_graph": -1,
    "others_budget_max": -1,
    "others_demand_max": -1,
}
"""Feature names, each with the sign of its effect on the rate: 1 raises, -1 lowers, 0 is left to the data."""

_EXACT: Final = 2.0**20


def design(runs: CoRuns) -> Array:
    """Features of every running task: shape (rates, len(FEATURES)), float32.

    The rows of the first task come first, in the order of `runs`: that of ``runs.running.T``.
    """
    running = runs.running.T
    features = np.empty((np.count_nonzero(running), len(FEATURES)), dtype=np.float32)
    static, contention = _static(runs.device, runs.tasks), _Contention(runs)
    end = 0
    for i, task in enumerate(runs.tasks):
        rows = np.flatnonzero(running[i])
        block = features[end : end + len(rows)]
        end += len(rows)
        batch = np.log2(runs.batches[rows, i])
        block[:, : len(static[i])] = static[i]
        block[:, len(static[i])] = batch
        block[:, len(static[i]) + 1] = batch - np.log2(task.reference_batch)
        block[:, len(static[i]) + 2] = batch - np.log2(task.solo_rate)
        for column, values in enumerate(contention.of(i), start=len(static[i]) + 3):
            block[:, column] = values[rows]
    return features  # type: ignore[return-value]


@lru_cache(maxsize=64)
def _static(device: DeviceFeatures, tasks: tuple[TaskFeatures, ...]) -> Array:
    """What does not change with the setting: shape (n, 11). A search asks for it hundreds of times."""
    return np.array(
        [
            [
                *np.log2([task.flops, task.traffic, task.flops / task.traffic, task.solo_rate]),
                task.solo_rate * task.flops / device.peak,
                task.solo_rate * task.traffic / device.bandwidth,
                task.quarter_share,
                float(task.step is StepKind.GRAPH),
                *np.log2([device.units, device.peak, device.bandwidth]),
            ]
            for task in tasks
        ]
    )


class _Contention:
    """What changes with the budgets and the company; arrays of shape (n, k) inside."""

    def __init__(self, runs: CoRuns) -> None:
        tasks, device = runs.tasks, runs.device
        self._compute_use = _column(task.solo_rate * task.flops / device.peak for task in tasks)
        bandwidth_use = _column(task.solo_rate * task.traffic / device.bandwidth for task in tasks)
        taken = self._taken(tasks, runs.budgets)
        budget, _, demand, used = taken
        self._own = taken if runs.ceilings is None else self._taken(tasks, runs.ceilings)
        batches = np.ascontiguousarray(runs.batches.T)
        ideal_ms = batches * _column(1e3 * task.flops / device.peak for task in tasks)
        growth = batches / _column(task.reference_batch for task in tasks)
        running = 1.0 * (budget > 0)
        graph = running * _column(task.step is StepKind.GRAPH for task in tasks)
        self._sums = [
            (values, values.sum(axis=0))
            for values in (
                running,
                budget,
                used,
                _exact(budget * bandwidth_use),
                demand,
                _exact(demand * growth),
                _exact(budget * np.log2(1.0 + ideal_ms)),
                graph,
            )
        ]
        self._maxima = [(values, *_top_two(values)) for values in (budget, demand)]

    def _taken(self, tasks: tuple[TaskFeatures, ...], budgets: Array) -> tuple[Array, Array, Array, Array]:
        """Budget (a fraction), solo share, demand and arithmetic that `budgets` (%, shape (k, n)) mean."""
        budget = _exact(np.ascontiguousarray(budgets.T) / 100.0)
        share, demand = saturation(tasks, budget)
        return budget, share, _exact(demand), _exact(budget * self._compute_use)

    def of(self, i: int) -> list[Array]:
        """The features of task i that follow the static ones and its batch size: arrays of shape (k,)."""
        others = [total - values[i] for values, total in self._sums]
        largest = [np.where(values[i] == first, second, first) for values, first, second in self._maxima]
        budget, share, demand, used = (values[i] for values in self._own)
        with np.errstate(divide="ignore", invalid="ignore"):
            own = [
                budget,
                budget / (budget + others[1]),
                used / (used + others[2]),
                np.log(share / np.maximum(1.0, demand + others[4])),
            ]
        return [*own, *others, *largest]


def saturation(tasks: tuple[TaskFeatures, ...], budget: Array) -> tuple[Array, Array]:
    """Solo share at `budget` (a fraction of the device, shape (n, k)), and the part of the device in use.

    A power law through the two solo measurements: a budget r gives the share rᵖ with 4⁻ᵖ the share at a
    quarter. A task that fills the device (p = 1) demands r of it, one that is as fast on a quarter (p = 0)
    demands a quarter.
    """
    power = np.clip(-np.log2(_column(task.quarter_share for task in tasks)) / 2.0, 0.0, 1.0)
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


EXPECTED: Final = tuple(FEATURES).index("log_expected")
"""Column of the analytic estimate: the logarithm of the share if only the device's units are scarce."""
