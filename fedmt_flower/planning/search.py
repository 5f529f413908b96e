"""Solvers of Eq. 5: a local search, and branch and bound where the model is monotone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.budgets import Boxes, BudgetPlan, BudgetProblem, Evaluator, common_levels
from fedmt_flower.planning.rates import Index
from fedmt_flower.planning.throughput import ThroughputModel

Moves = Callable[[BudgetProblem, Index], Index]
"""Where a climb may go from a point."""
EXHAUSTIVE: Final = 30_000
"""Up to so many settings are all scored where the model gives no bounds."""
_WAVE: Final = 1_000
"""Boxes that are split at a time."""
_CUTS: Final = 3
"""Tasks whose range of levels is halved at a time."""
_STRIDES: Final = (-4, -2, -1, 1, 2, 4)
"""Steps, in levels, by which the local search moves two tasks at once."""


def solve(problem: BudgetProblem, model: ThroughputModel, *, effort: int = 80_000) -> BudgetPlan:
    """Choose {Bᵢ, Rᵢ} (Eq. 5), a budget that brings nothing given back.

    Parameters
    ----------
    problem, model
        The settings, and what predicts their rates.
    effort
        How many rates may be predicted before the best setting so far is returned, with the bound that was
        reached by then (none, if bounding every combination of batch sizes would take half of it).

    Raises
    ------
    ConfigError
        If no setting keeps the limits on R_v and on memory.
    """
    evaluator = Evaluator(problem, model)
    sizes = [len(row) for row in (*problem.batches, *problem.levels)]
    if not model.monotone and np.prod(sizes, dtype=float) <= EXHAUSTIVE:
        return exhaustive(problem, model)
    first_wave = np.prod(sizes[: len(problem.tasks)], dtype=float) * 2**_CUTS * len(problem.tasks)
    if model.monotone and first_wave <= effort / 2:
        # Branch and bound finds what is left to gain sooner than moves of two tasks at once.
        best = _climb(evaluator, _starts(problem, sizes), [_single_moves])
        best = _branch_and_bound(evaluator, best, effort)
    else:
        best = _climb(evaluator, _starts(problem, sizes), [_single_moves, _double_moves])
    return _plan(evaluator, _cautious(evaluator, best))


def exhaustive(problem: BudgetProblem, model: ThroughputModel) -> BudgetPlan:
    """Score every setting; the reference for `solve`, and practical up to some 10⁵ settings."""
    evaluator = Evaluator(problem, model)
    sizes = [len(row) for row in (*problem.batches, *problem.levels)]
    grid = np.indices(sizes).reshape(len(sizes), -1).T
    values = evaluator.values(_boxes(grid))
    place = int(values.argmax())
    best = _Best(grid[place], float(values[place]), float(values[place]))
    return _plan(evaluator, _cautious(evaluator, best))


@dataclass(frozen=True, slots=True, eq=False)
class _Best:
    """The best setting known: its n batch sizes, then its n levels; its value; a bound on all values."""

    point: Index
    value: float
    bound: float = np.inf


def _boxes(points: Index) -> Boxes:
    n = points.shape[1] // 2
    return Boxes.points(points[:, :n], points[:, n:])


def _plan(evaluator: Evaluator, best: _Best) -> BudgetPlan:
    if best.value == -np.inf:
        least, most = evaluator.problem.virtual_resource
        raise ConfigError(
            f"budgets: found no setting with R_v from {least:g} to {most:g} % that fits into "
            f"{evaluator.problem.memory_limit} bytes; allow smaller batches or other budgets"
        )
    return evaluator.plan(_boxes(best.point[None]), best.bound)


def _cautious(evaluator: Evaluator, best: _Best) -> _Best:
    """Of equal budgets the best, unless `best` passes it by more than the problem's caution."""
    problem, n = evaluator.problem, len(evaluator.problem.tasks)
    common, levels = common_levels(problem.levels), [sorted(row) for row in problem.levels]
    if problem.caution <= 0 or not common:
        return best
    points = np.tile(best.point, (len(common), 1))
    points[:, n:] = [[row.index(level) for row in levels] for level in common]
    values = evaluator.values(_boxes(points))
    place = int(values.argmax())
    if best.value > values[place] * (1.0 + problem.caution):
        return best
    return _Best(points[place], float(values[place]), max(best.bound, best.value))


def _starts(problem: BudgetProblem, sizes: list[int]) -> Index:
    """Equal budgets at each of eight heights with small, middling and large batches; and 100 at random."""
    n = len(problem.tasks)
    last = np.array(sizes) - 1
    even = [
        np.concatenate([np.rint(b * last[:n]), np.rint(r * last[n:])])
        for b in (0.0, 0.5, 1.0)
        for r in np.linspace(0.0, 1.0, 8)
    ]
    return np.concatenate([even, np.random.default_rng(0).integers(last + 1, size=(100, 2 * n))]).astype(
        np.intp
    )


def _climb(evaluator: Evaluator, points: Index, moves: Sequence[Moves]) -> _Best:
    """Climb from the best of `points` by `moves`, the later ones where the earlier bring nothing."""
    values = evaluator.values(_boxes(points))
    best = _Best(points[values.argmax()], float(values.max()))
    turn = 0
    while turn < len(moves):
        points = moves[turn](evaluator.problem, best.point)
        values = evaluator.values(_boxes(points)) if len(points) else np.array([-np.inf])
        if values.max() > best.value:
            best, turn = _Best(points[values.argmax()], float(values.max())), 0
        else:
            turn += 1
    return best


def _single_moves(problem: BudgetProblem, point: Index) -> Index:
    """One task to any of its settings."""
    n = len(problem.tasks)
    parts = []
    for i in range(n):
        settings = np.indices((len(problem.batches[i]), len(problem.levels[i]))).reshape(2, -1).T
        moved = np.repeat(point[None], len(settings), axis=0)
        moved[:, [i, n + i]] = settings
        parts.append(moved)
    return np.concatenate(parts)


def _double_moves(problem: BudgetProblem, point: Index) -> Index:
    """Two tasks' levels by strides."""
    n = len(problem.tasks)
    strides = np.array(list(itertools.product(_STRIDES, repeat=2)))
    parts = []
    for i, j in itertools.combinations(range(n), 2):
        moved = np.repeat(point[None], len(strides), axis=0)
        moved[:, [n + i, n + j]] += strides
        parts.append(moved)
    moved = np.concatenate(parts) if parts else np.empty((0, 2 * n), dtype=np.intp)
    counts = np.array([len(levels) for levels in problem.levels])
    return moved[((moved[:, n:] >= 0) & (moved[:, n:] < counts)).all(axis=1)]


def _branch_and_bound(evaluator: Evaluator, best: _Best, effort: int) -> _Best:
    """Split boxes of settings, the most promising first, until none can hold a better setting.

    A box is worth no more than its tasks, each with its highest budget beside the lowest of the others.
    """
    problem = evaluator.problem
    open_ = _halve(_whole(problem))
    bounds = evaluator.values(open_)
    while True:
        alive = bounds > best.value
        open_, bounds = open_[alive], bounds[alive]
        single = (open_.low == open_.high).all(axis=1)
        if single.any():
            place = np.flatnonzero(single)[bounds[single].argmax()]
            point = np.concatenate([open_.batch[place], open_.low[place]])
            best = _Best(point, float(bounds[place]))
            continue
        if not len(open_) or evaluator.predicted >= effort:
            break
        order = np.argsort(-bounds, kind="stable")
        first, rest = order[:_WAVE], order[_WAVE:]
        parts = _halve(open_[first])
        values = evaluator.values(parts)
        open_ = Boxes.joined([parts, open_[rest]])
        bounds = np.concatenate([values, bounds[rest]])
    return _Best(best.point, best.value, float(bounds.max(initial=best.value)))


def _whole(problem: BudgetProblem) -> Boxes:
    """One box for each combination of batch sizes, with all levels."""
    batch = np.indices([len(row) for row in problem.batches]).reshape(len(problem.tasks), -1).T
    high = np.tile([len(levels) - 1 for levels in problem.levels], (len(batch), 1))
    return Boxes(batch=batch, low=np.zeros_like(high), high=high)


def _halve(boxes: Boxes) -> Boxes:
    """Halve each box along its widest ranges of levels."""
    for _ in range(min(_CUTS, boxes.low.shape[1])):
        width = boxes.high - boxes.low
        rows = np.flatnonzero(width.max(axis=1) > 0)
        task = width[rows].argmax(axis=1)
        middle = (boxes.low[rows, task] + boxes.high[rows, task]) // 2
        upper = boxes[rows]
        upper.low[np.arange(len(rows)), task] = middle + 1
        high = boxes.high.copy()
        high[rows, task] = middle
        boxes = Boxes.joined([Boxes(batch=boxes.batch, low=boxes.low, high=high), upper])
    return boxes
