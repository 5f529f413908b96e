"""Budgets for every set of tasks that may compute at once (§ VI-B)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.planning.budgets import THRIFT
from fedmt_flower.planning.rates import Index, RateTable, states
from fedmt_flower.planning.simulator import Jobs, drain, upload
from fedmt_flower.planning.throughput import Array, CoRuns, ThroughputModel

_ROWS: Final = 30_000
"""Rates to predict at most when the batch sizes vary, unless there are more states than that."""
_GRID: Final = 256
"""Sets with up to so many budgets have all of them tried, the others are searched."""
_STARTS: Final = 5
"""Even budgets from which that search begins."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundSetup:
    """The round of n tasks on a device, before budgets and order are known.

    Parameters
    ----------
    model, device, tasks
        What predicts, where, and for whom.
    jobs
        Their volumes and transfers.
    batches
        Each task's batch sizes to choose from; shape (n, choices).
    levels
        Budgets that each task may have, in per cent.
    most
        Limit on R_v = Σ Rᵢ, in per cent.
    """

    model: ThroughputModel
    device: DeviceFeatures
    tasks: tuple[TaskFeatures, ...]
    jobs: Jobs
    batches: Array
    levels: tuple[tuple[float, ...], ...]
    most: float = np.inf

    @property
    def grid(self) -> Array:
        """The levels as rows, ascending, the shorter ones filled with their last; shape (n, width)."""
        width = max(map(len, self.levels))
        return np.array([[*sorted(row), *[max(row)] * (width - len(row))] for row in self.levels])

    def rates(self, batches: Array, budgets: Array) -> Array:
        """Predicted rates of the tasks at `batches` and `budgets`; shape (k, n) all."""
        batches = np.broadcast_to(batches, budgets.shape)
        return self.model.rates(
            CoRuns(device=self.device, tasks=self.tasks, batches=batches, budgets=budgets)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reallocation:
    """Rates of every state, and the budgets in per cent that give them; shape of `table.rates`."""

    table: RateTable
    budgets: Array


def hold(setup: RoundSetup, budgets: Array) -> Reallocation:
    """Keep each task's budget whatever the others do.

    `budgets` are those of each of the task's settings, shape (n, choices), or one for all, shape (n, 1).
    """
    n, choices = setup.batches.shape
    digits = states(n, choices)
    setting = np.maximum(digits, 1) - 1
    budgets = np.broadcast_to(budgets, setup.batches.shape)
    given = np.where(digits > 0, budgets[np.arange(n), setting], 0.0)
    rates = setup.rates(setup.batches[np.arange(n), setting], given)
    return Reallocation(table=RateTable(choices=choices, rates=rates), budgets=given)


def reallocate(setup: RoundSetup) -> Reallocation:
    """Solve Rᵢ anew for every set of computing tasks and every choice of batch sizes.

    A set's budgets are those with which its tasks, each with its whole volume, have finished and uploaded
    soonest, when every smaller set runs with the budgets already found for it. Budgets are searched at
    each task's middle batch size; the other batch sizes choose among the best that were met there.
    """
    n, choices = setup.batches.shape
    solver = _Solver(setup)
    middle = setup.batches[:, choices // 2 : choices // 2 + 1]
    count = max(1, min(8, _ROWS // (n * choices * (choices + 1) ** (n - 1)))) if choices > 1 else 1
    return solver.choose(setup.batches if choices > 1 else middle, solver.search(middle[:, 0], count))


class _Solver:
    def __init__(self, setup: RoundSetup) -> None:
        self._setup = setup

    def search(self, batches: Array, count: int) -> Array:
        """The best `count` budgets of every set with `batches`, shape (n,): shape (2ⁿ, count, n)."""
        levels = self._setup.grid
        n, width = levels.shape
        table = RateTable(choices=1, rates=np.zeros((2**n, n)))
        pool = np.zeros((2**n, count, n))
        even = np.rint(np.linspace(0, width - 1, _STARTS)).astype(np.intp)
        for members in _by_size(states(n, 1)):
            digits = states(n, 1)[members]
            size = int((digits[0] > 0).sum())
            all_tried = width**size <= _GRID
            starts = _grid(digits, width) if all_tried else np.tile(even[:, None], (len(members), 1, n))
            owner, point = np.repeat(np.arange(len(members)), starts.shape[1]), starts.reshape(-1, n)
            best = np.full(len(members), np.inf)
            met = []
            while len(owner):
                budgets = np.where(digits[owner] > 0, levels[np.arange(n), point], 0.0)
                spans, rates = self._spans(table, digits[owner], batches, budgets)
                met.append((owner, budgets, spans, rates))
                order = np.lexsort((spans, owner))
                first = order[np.unique(owner[order], return_index=True)[1]]
                first = first[spans[first] < best[owner[first]]]
                best[owner[first]] = spans[first]
                if all_tried:
                    break
                owner, point = _around(owner[first], point[first], digits, width)
            owners, tried, spans, rates = (np.concatenate(part) for part in zip(*met, strict=True))
            order = np.lexsort((spans, owners))
            begin = np.searchsorted(owners[order], np.arange(len(members)))
            end = np.searchsorted(owners[order], np.arange(len(members)), side="right")
            table.rates[members] = rates[order[begin]]
            for place in range(count):
                pool[members, place] = tried[order[np.minimum(begin + place, end - 1)]]
        return pool

    def choose(self, batches: Array, pool: Array) -> Reallocation:
        """For every state the budgets of its set in `pool` with which it finishes soonest."""
        n, choices = batches.shape
        digits = states(n, choices)
        sets = (digits > 0) @ 2 ** np.arange(n)
        table = RateTable(choices=choices, rates=np.zeros((len(digits), n)))
        budgets = np.zeros((len(digits), n))
        count = pool.shape[1]
        for members in _by_size(digits):
            rows = np.repeat(members, count)
            tried = pool[sets[members]].reshape(-1, n)
            sizes = batches[np.arange(n), np.maximum(digits[rows], 1) - 1]
            spans, rates = self._spans(table, digits[rows], sizes, tried)
            best = np.arange(len(members)) * count + spans.reshape(-1, count).argmin(axis=1)
            table.rates[members], budgets[members] = rates[best], tried[best]
        return Reallocation(table=table, budgets=budgets)

    def _spans(self, table: RateTable, digits: Index, batches: Array, budgets: Array) -> tuple[Array, Array]:
        """Seconds until all tasks of each state have uploaded, priced by budget; and its rates."""
        rates = self._setup.rates(batches, budgets)
        jobs = self._setup.jobs
        runs, samples = digits.T > 0, jobs.samples[:, None]
        with np.errstate(divide="ignore"):
            ends = np.where(runs, samples / rates.T, np.inf)
        step = ends.min(axis=0)
        left = np.where(runs & (ends > step), np.maximum(0.0, samples - rates.T * step), 0.0)
        later = drain(table, (digits * table.weights).T, left, np.zeros_like(ends))
        computed = np.where(runs, step + later, 0.0)
        order = np.broadcast_to(np.arange(len(ends))[:, None], ends.shape)
        uploads = np.where(runs, jobs.up_s[:, None], 0.0)
        span = upload(uploads, order, computed, np.zeros_like(step)).max(axis=0)
        used = budgets.sum(axis=1)
        return np.where(used <= self._setup.most + 1e-9, span * (1.0 + THRIFT * used), np.inf), rates


def _by_size(digits: Index) -> Iterator[Index]:
    """The states with one computing task, then those with two, and so on."""
    size = (digits > 0).sum(axis=1)
    for count in range(1, digits.shape[1] + 1):
        yield np.flatnonzero(size == count)


def _grid(digits: Index, width: int) -> Index:
    """Every level of every computing task of each state, and level 0 of the others: (states, grid, n)."""
    size = int((digits[0] > 0).sum())
    levels = np.indices((width,) * size).reshape(size, -1).T
    points = np.zeros((len(digits), len(levels), digits.shape[1]), dtype=np.intp)
    for row, place in enumerate(digits > 0):
        points[row][:, place] = levels
    return points


def _around(owner: Index, point: Index, digits: Index, width: int) -> tuple[Index, Index]:
    """Each point with the level of one of its computing tasks changed, in every way."""
    rows, task = np.nonzero(digits[owner] > 0)
    moved = np.repeat(point[rows], width, axis=0)
    moved[np.arange(len(moved)), np.repeat(task, width)] = np.tile(np.arange(width), len(rows))
    return np.repeat(owner[rows], width), moved
