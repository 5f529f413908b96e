"""Batch sizes in proportion to data volumes (Eq. 6, § V-A)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from fedmt_flower.domain.coordination import Batching, BatchRules
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.budgets import BudgetPlan, BudgetProblem
from fedmt_flower.planning.search import solve
from fedmt_flower.planning.throughput import Array, ThroughputModel

_ENUMERATED: Final = 100_000
"""Up to so many combinations of batch sizes are all looked at."""
_SOLVED: Final = 16
"""For so many combinations within ε, and for half as many beyond it, Eq. 5 is solved."""
_EFFORT: Final = 20_000
"""Rates that one of those solutions may predict."""


def valid_batches(
    task: str, candidates: Sequence[int], examples: int, *, least: int = 1, most: int | None = None
) -> tuple[int, ...]:
    """Those of `candidates` that `task` may use: within its limits and not larger than its data.

    Sizes that leave a last batch of a single example are passed over where others are left: BatchNorm
    cannot train on one.

    Raises
    ------
    ConfigError
        If none is left.
    """
    high = examples if most is None else min(examples, most)
    valid = sorted({size for size in candidates if max(1, least) <= size <= high})
    if not valid:
        raise ConfigError(
            f"batch sizes of {task}: none of {sorted(candidates)} lies from {least} to {high} "
            f"(it has {examples} examples); allow another size"
        )
    return tuple(size for size in valid if size == 1 or examples % size != 1) or tuple(valid)


def batch_choices(rules: BatchRules, own: int) -> tuple[int, ...]:
    """The batch sizes that `rules` offer a task whose own is `own`; see `BatchRules`."""
    if rules.choices:
        return tuple(sorted(set(rules.choices)))
    if rules.policy is Batching.FIXED:
        return (own,)
    least, most = max(0, math.ceil(math.log2(own / 4))), math.floor(math.log2(own * 4))
    return tuple(2**power for power in range(least, most + 1))


def mismatch(loads: Array, batches: Array) -> Array:
    """Σ_{a≠b} |D_a/D_b - B_a/B_b| (Eq. 6) of each row of `batches`, shape (k, n): shape (k,)."""
    wanted = loads[:, None] / loads
    total: Array = np.abs(wanted - batches[:, :, None] / batches[:, None, :]).sum(axis=(1, 2))
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPoint:
    """One combination of batch sizes with the best budgets for it."""

    mismatch: float
    plan: BudgetPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPlan:
    """The combination chosen, and the front of both objectives among those for which Eq. 5 was solved.

    `front` goes from the least mismatch to the best score.
    """

    chosen: BatchPoint
    front: tuple[BatchPoint, ...]


def choose_batches(
    problem: BudgetProblem, model: ThroughputModel, loads: Sequence[float], *, epsilon: float = 0.5
) -> BatchPlan:
    """Solve Eq. 6: of the batch sizes with a mismatch up to the least + ε, those with the best score.

    Parameters
    ----------
    problem
        Valid batch sizes and levels, and the objective that scores them (Eq. 5).
    model
        What predicts the rates.
    loads
        Dᵢ, or a smoothed estimate of it (`planning.damping`), of each task.
    epsilon
        How much more mismatch than the least is still balanced, 0 or more.

    Raises
    ------
    ConfigError
        If a load is not above 0, ε is negative, or no combination fits into memory.
    """
    wanted = np.array(loads, dtype=float)
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise ConfigError(f"batching: got loads {list(loads)}, expected numbers above 0")
    if not epsilon >= 0:
        raise ConfigError(f"batching epsilon: got {epsilon:g}, expected 0 or more")
    combinations = _fitting(problem, _combinations(problem, wanted))
    misses = mismatch(wanted, combinations)
    order = np.argsort(misses, kind="stable")
    balanced = int(np.count_nonzero(misses <= misses[order[0]] + epsilon))
    near = order[: min(balanced, _SOLVED)]
    beyond = order[balanced:]
    spread = (
        beyond[np.unique(np.linspace(0, len(beyond) - 1, _SOLVED // 2).astype(int))]
        if len(beyond)
        else beyond
    )
    points = [
        BatchPoint(mismatch=float(misses[row]), plan=_solved(problem, model, combinations[row]))
        for row in (*near, *spread)
    ]
    chosen = max(points[: len(near)], key=lambda point: (point.plan.score, -point.mismatch))
    return BatchPlan(chosen=chosen, front=_front(points))


def _combinations(problem: BudgetProblem, loads: Array) -> Array:
    """Combinations of batch sizes: all, or where they are too many those nearest to the loads' ratios."""
    if np.prod([len(row) for row in problem.batches], dtype=float) <= _ENUMERATED:
        return np.array(list(itertools.product(*problem.batches)), dtype=float)
    sizes = [np.array(row, dtype=float) for row in problem.batches]
    scales = np.unique(np.concatenate([row / load for row, load in zip(sizes, loads, strict=True)]))
    rows = []
    for scale in scales:
        nearest = [np.abs(row - scale * load).argsort()[:2] for row, load in zip(sizes, loads, strict=True)]
        even = [row[near[0]] for row, near in zip(sizes, nearest, strict=True)]
        rows.append(even)
        for i, (row, near) in enumerate(zip(sizes, nearest, strict=True)):
            rows.append([*even[:i], row[near[-1]], *even[i + 1 :]])
    return np.unique(np.array(rows), axis=0)


def _fitting(problem: BudgetProblem, combinations: Array) -> Array:
    if not problem.memory:
        return combinations
    needs = [dict(zip(*row, strict=True)) for row in zip(problem.batches, problem.memory, strict=True)]
    total = sum(
        np.array([need[int(size)] for size in column])
        for need, column in zip(needs, combinations.T, strict=True)
    )
    fits = combinations[total <= problem.memory_limit]
    if not len(fits):
        raise ConfigError(
            f"batch sizes: none of {len(combinations)} combinations fits into {problem.memory_limit} bytes; "
            "allow smaller ones"
        )
    return fits


def _solved(problem: BudgetProblem, model: ThroughputModel, batches: Array) -> BudgetPlan:
    fixed = replace(problem, batches=tuple((int(size),) for size in batches), memory=(), memory_limit=0)
    return solve(fixed, model, effort=_EFFORT)


def _front(points: Sequence[BatchPoint]) -> tuple[BatchPoint, ...]:
    front: list[BatchPoint] = []
    for point in sorted(points, key=lambda point: (point.mismatch, -point.plan.score)):
        if not front or point.plan.score > front[-1].plan.score:
            front.append(point)
    return tuple(front)
