"""Budgets Rᵢ and batch sizes Bᵢ of tasks that share a device: the problem of Eq. 5."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmt_flower.domain.allocation import Objective
from fedmt_flower.domain.plan import check_budget
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.rates import Index
from fedmt_flower.planning.throughput import Array, CoRuns, Mask, ThroughputModel

THRIFT = 1e-6
"""What a percentage point of budget has to bring, as a fraction of the objective; else it is given back."""

CAUTION = 0.03
"""What plans ask of unequal budgets. The best of hundreds of predictions is one that errs upwards: on an
H100, gains that were predicted to be below 2 % came out as losses of up to 6 %."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetProblem:
    """Which settings there are, and what is wanted of them.

    Parameters
    ----------
    device, tasks
        Where, and the n tasks.
    batches
        Valid batch sizes of each task: one where it is fixed, several where it is bounded or free.
    levels
        Budgets of each task, in per cent: the device's own steps (see `distinct_levels`).
    objective
        What to make large.
    samples
        Volume of each task in samples; needed for `MAKESPAN`.
    virtual_resource
        Least and most R_v = Σ Rᵢ in per cent.
    memory
        Bytes that each task needs with each of its batch sizes; empty where memory is no limit.
    memory_limit
        Bytes that all may need together.
    caution
        By what part the best setting must be predicted to pass the best one of equal budgets, with the same
        batch sizes; else those are taken (see `CAUTION`).
    """

    device: DeviceFeatures
    tasks: tuple[TaskFeatures, ...]
    batches: tuple[tuple[int, ...], ...]
    levels: tuple[tuple[float, ...], ...]
    objective: Objective = Objective.MAKESPAN
    samples: tuple[int, ...] = ()
    virtual_resource: tuple[float, float] = (0.0, float("inf"))
    memory: tuple[tuple[int, ...], ...] = ()
    memory_limit: int = 0
    caution: float = 0.0

    def __post_init__(self) -> None:
        problems = []
        if not len(self.tasks) == len(self.batches) == len(self.levels):
            problems.append(
                f"budgets: got {len(self.batches)} lists of batch sizes and {len(self.levels)} of levels "
                f"for {len(self.tasks)} tasks, expected one for each"
            )
        for task, batches, levels in zip(self.tasks, self.batches, self.levels, strict=False):
            if not batches or min(batches) < 1:
                problems.append(
                    f"batch sizes of {task.task}: got {list(batches)}, expected one or more, each at least 1"
                )
            if not levels:
                problems.append(f"budgets of {task.task}: got no level, expected at least one")
            for level in levels:
                check_budget(task.task, level)
        if self.objective is Objective.MAKESPAN and len(self.samples) != len(self.tasks):
            problems.append(
                f"objective makespan: got {len(self.samples)} volumes for {len(self.tasks)} tasks, "
                "expected one for each"
            )
        if self.memory and [len(row) for row in self.memory] != [len(row) for row in self.batches]:
            problems.append("memory: expected the bytes of every task with each of its batch sizes")
        if self.virtual_resource[0] > self.virtual_resource[1]:
            problems.append(
                f"R_v: got at least {self.virtual_resource[0]:g} and at most {self.virtual_resource[1]:g} %"
            )
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetPlan:
    """The setting that was chosen.

    Parameters
    ----------
    batches, budgets
        Bᵢ in samples and Rᵢ in per cent, in the order of the problem's tasks.
    rates
        Predicted Pᵢ in samples/s while all run.
    score
        The objective: samples/s, or a sum of shares.
    bound
        A score that no setting of the problem is predicted to pass; infinite where none is known.
    predicted
        How many rates were predicted to find it.
    """

    batches: tuple[int, ...]
    budgets: tuple[float, ...]
    rates: tuple[float, ...]
    score: float
    bound: float
    predicted: int

    @property
    def exact(self) -> bool:
        """Whether no setting is predicted to do better, but for what its budgets cost (`THRIFT`)."""
        return self.bound <= self.score * (1.0 + 1e-9)

    @property
    def virtual_resource(self) -> float:
        """R_v = Σ Rᵢ in per cent."""
        return sum(self.budgets)


def distinct_levels(percentages: tuple[float, ...], units: int) -> tuple[float, ...]:
    """The smallest of those `percentages` that come to the same whole number of a device's `units`.

    MPS rounds a percentage down to whole multiprocessors (at least one), so the others are the same point.
    """
    smallest: dict[int, float] = {}
    for percentage in sorted(percentages):
        smallest.setdefault(max(1, int(percentage * units / 100.0 + 1e-9)), percentage)
    return tuple(smallest.values())


def common_levels(levels: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Those that every task can have, of each task's `levels`; ascending."""
    return tuple(sorted(set(levels[0]).intersection(*levels[1:])))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Boxes:
    """Sets of settings: a batch size for each task, and a range of its levels, both ends within.

    All are indices, into the problem's batch sizes and into its levels in ascending order; shape (k, n).
    """

    batch: Index
    low: Index
    high: Index

    def __len__(self) -> int:
        return len(self.batch)

    def __getitem__(self, rows: Index | Mask | slice) -> Boxes:
        low = self.low[rows]
        high = low if self.low is self.high else self.high[rows]
        return Boxes(batch=self.batch[rows], low=low, high=high)

    @classmethod
    def points(cls, batch: Index, level: Index) -> Boxes:
        """Boxes of one setting each."""
        return cls(batch=batch, low=level, high=level)

    @classmethod
    def joined(cls, parts: Sequence[Boxes]) -> Boxes:
        """All rows of all `parts`."""
        return cls(
            batch=np.concatenate([part.batch for part in parts]),
            low=np.concatenate([part.low for part in parts]),
            high=np.concatenate([part.high for part in parts]),
        )


class Evaluator:
    """Scores settings of a problem by a throughput model, and counts the rates predicted for it."""

    def __init__(self, problem: BudgetProblem, model: ThroughputModel) -> None:
        self.problem = problem
        self.predicted = 0
        self._model = model
        self._batches = _padded(problem.batches)
        self._levels = _padded([sorted(levels) for levels in problem.levels])
        self._memory = _padded(problem.memory) if problem.memory else np.zeros_like(self._batches)
        self._solo = np.array([task.solo_rate for task in problem.tasks])

    def values(self, boxes: Boxes) -> Array:
        """The most that a setting of each box can be worth: its objective, less a price of its budgets.

        Exact for a box of one setting; for others a bound if the model is monotone. -inf where no setting
        keeps the limits on R_v and on memory. Shape (k,).
        """
        low, high = (self._pick(self._levels, places) for places in (boxes.low, boxes.high))
        least, most = self.problem.virtual_resource
        fits = (low.sum(axis=1) <= most + 1e-9) & (high.sum(axis=1) >= least - 1e-9)
        if self.problem.memory:
            fits &= self._pick(self._memory, boxes.batch).sum(axis=1) <= self.problem.memory_limit
        values = np.full(len(boxes), -np.inf)
        if fits.any():
            values[fits] = self._scores(boxes[fits]) * (1.0 - THRIFT * low[fits].sum(axis=1))
        return values

    def plan(self, box: Boxes, bound: float) -> BudgetPlan:
        """The plan of a box that has one row and one setting, with a bound on every setting's value."""
        predicted = self.predicted
        score = float(self._scores(box)[0])
        return BudgetPlan(
            batches=tuple(int(batch) for batch in self._pick(self._batches, box.batch)[0]),
            budgets=tuple(float(budget) for budget in self._pick(self._levels, box.low)[0]),
            rates=tuple(float(rate) for rate in self._rates(box)[0]),
            score=score,
            bound=max(score, bound),
            predicted=predicted,
        )

    def _pick(self, lists: Array, places: Index) -> Array:
        return lists[np.arange(len(lists)), places]

    def _scores(self, boxes: Boxes) -> Array:
        match self.problem.objective:
            case Objective.RAW:
                scores = self._rates(boxes).sum(axis=1)
            case Objective.FAIRNESS:
                scores = (self._rates(boxes) / self._solo).sum(axis=1)
            case Objective.MAKESPAN:
                scores = sum(self.problem.samples) / self._makespans(boxes)
        return np.asarray(scores)

    def _rates(self, boxes: Boxes, running: Mask | None = None) -> Array:
        """Each task's rate with its highest budget beside the lowest of the others; shape (k, n)."""
        low, high = (self._pick(self._levels, places) for places in (boxes.low, boxes.high))
        if running is not None:
            low = np.where(running, low, 0.0)
        self.predicted += int(np.count_nonzero(low))
        return self._model.rates(
            CoRuns(
                device=self.problem.device,
                tasks=self.problem.tasks,
                batches=self._pick(self._batches, boxes.batch),
                budgets=low,
                ceilings=None if boxes.low is boxes.high else high,
            )
        )

    def _makespans(self, boxes: Boxes) -> Array:
        """Seconds until the last task has computed, all started at once and budgets held; shape (k,).

        A task's end changes the others' rates. Boxes that differ only in tasks that have ended share a
        prediction. With the most that rates can be in place of the rates this is a lower bound: whoever
        computes faster, in whatever company, is never later (rates do not fall when another ends).
        """
        left = np.tile(np.array(self.problem.samples, dtype=float), (len(boxes), 1))
        now = np.zeros(len(boxes))
        rates = self._rates(boxes)
        width = self._levels.shape[1]
        digits = (boxes.batch * width + boxes.low) * width + boxes.high + 1
        hashes = digits * np.random.default_rng(0).integers(2**62, size=len(self._solo))
        for _ in self._solo[1:]:
            ends = np.divide(left, rates, out=np.full_like(left, np.inf), where=left > 0)
            step = ends.min(axis=1, keepdims=True)
            step[np.isinf(step)] = 0.0
            left = np.where(ends <= step, 0.0, np.maximum(0.0, left - rates * step))
            now += step[:, 0]
            running = left > 0
            keys = (hashes * running).sum(axis=1)
            _, first, place = np.unique(keys, return_index=True, return_inverse=True)
            rates = self._rates(boxes[first], running[first])[place]
        rest = np.divide(left, rates, out=np.zeros_like(left), where=left > 0)
        return np.asarray(now + rest.max(axis=1))


def _padded(lists: Sequence[Sequence[float]]) -> Array:
    """The lists as rows of one array, the shorter ones filled with their last entry."""
    width = max(map(len, lists))
    return np.array([[*row, *[row[-1]] * (width - len(row))] for row in lists], dtype=float)
