"""The start order π of a round, and small changes of its batch sizes (§ V-B, Algorithm 1)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmt_flower.domain.network import Overlap
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.bounds import lower_bound
from fedmt_flower.planning.rates import Index, RateTable
from fedmt_flower.planning.simulator import Jobs, alone, simulate
from fedmt_flower.planning.throughput import Array, Mask

EXACT: Final = 5
"""Up to so many tasks every order is tried with every choice of batch sizes."""
_CLIMBS: Final = 24
"""Orders from which the search beyond that climbs, at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OrderPlan:
    """A start order with its batch sizes.

    Parameters
    ----------
    order
        The task at each place of π; shape (n,).
    choice
        Each task's setting in the table of rates; shape (n,).
    makespan_s
        Predicted seconds of the round.
    lower_bound_s
        Seconds that no order with any of the settings can beat, at the same rates.
    points
        How many rounds were simulated.
    """

    order: Index
    choice: Index
    makespan_s: float
    lower_bound_s: float
    points: int


def nearby_batches(batch: int, delta: float, least: int, most: int) -> tuple[int, ...]:
    """Batch sizes (1-δ)B, B and (1+δ)B of Algorithm 1: whole, from `least` to `most`, without repeats.

    Raises
    ------
    ConfigError
        If δ is outside [0, 1).
    """
    if not (math.isfinite(delta) and 0.0 <= delta < 1.0):
        raise ConfigError(f"overlap delta: got {delta:g}, expected from 0 to below 1")
    sizes = (round(batch * (1.0 - delta)), batch, round(batch * (1.0 + delta)))
    return tuple(sorted({min(most, max(least, size)) for size in sizes}))


def plan_order(
    jobs: Jobs,
    table: RateTable,
    choice: Index,
    *,
    overlap: Overlap,
    workloads: Array | None = None,
    allowed: Mask | None = None,
) -> OrderPlan:
    """Choose π, and with `Overlap.FLEXIBLE` the settings too.

    Parameters
    ----------
    jobs, table
        The round, and its rates in every state.
    choice
        The setting of each task from which to start: that of § V-A; shape (n,).
    overlap
        The kind of order.
    workloads
        Oᵢ·Dᵢ/Bᵢ in seconds, for `Overlap.WORKLOAD`; shape (n,). None ranks by solo time.
    allowed
        Which combinations of settings may be chosen, by `RateTable.steps` of all tasks; None allows all.
    """
    n = len(jobs.names)
    given = np.arange(n)
    solo_s = jobs.samples / alone(table, choice)
    ranked = np.argsort(-(solo_s if workloads is None else workloads), kind="stable")
    settings = table.fastest() if overlap is Overlap.FLEXIBLE else _of(table, choice).rates
    bound = lower_bound(jobs, settings, overlap)
    if overlap is not Overlap.FLEXIBLE:
        order = ranked if overlap is Overlap.WORKLOAD else given
        span = simulate(jobs, table, order, choice, overlap=overlap).makespan[0]
        return OrderPlan(order=order, choice=choice, makespan_s=float(span), lower_bound_s=bound, points=1)
    search = _Search(jobs, table, allowed)
    if n <= EXACT:
        orders = np.array(list(itertools.permutations(range(n))))
        choices = np.indices((table.choices,) * n).reshape(n, -1).T
        # Of equals the first is taken: that is the one from which to start.
        choices = choices[np.argsort((choices != choice).any(axis=1), kind="stable")]
        search.visit(np.repeat(orders, len(choices), axis=0), np.tile(choices, (len(orders), 1)))
    else:
        heavy_last = np.argsort(-(solo_s + jobs.up_s), kind="stable")
        search.climb(np.stack([given, ranked, heavy_last]), choice)
    return OrderPlan(
        order=search.order,
        choice=search.choice,
        makespan_s=search.makespan,
        lower_bound_s=bound,
        points=search.points,
    )


def _of(table: RateTable, choice: Index) -> RateTable:
    """The rates of one choice of settings."""
    n = len(choice)
    running = np.arange(2**n)[:, None] >> np.arange(n) & 1
    return RateTable(choices=1, rates=table.rates[(running * table.steps(choice)).sum(axis=1)])


class _Search:
    """The best round among those simulated so far; of equals the first."""

    def __init__(self, jobs: Jobs, table: RateTable, allowed: Mask | None) -> None:
        self._jobs, self._table, self._allowed = jobs, table, allowed
        self.points = 0
        self.makespan = np.inf
        self.order = self.choice = np.empty(0, dtype=np.intp)

    def visit(self, orders: Index, choices: Index) -> Array:
        """Simulate rounds, shape (k, n) each, and return their makespans, infinite where not allowed."""
        spans = simulate(self._jobs, self._table, orders, choices).makespan
        self.points += len(spans)
        if self._allowed is not None:
            spans = np.where(self._allowed[self._table.steps(choices).sum(axis=1)], spans, np.inf)
        place = int(spans.argmin())
        if spans[place] < self.makespan:
            self.makespan = float(spans[place])
            self.order, self.choice = orders[place], choices[place]
        return spans

    def climb(self, orders: Index, choice: Index) -> None:
        """Climb from `orders` and random ones until no neighbour is better."""
        n = orders.shape[1]
        generator = np.random.default_rng(0)
        others = generator.permuted(np.tile(np.arange(n), (_CLIMBS - len(orders), 1)), axis=1)
        orders = np.concatenate([orders, others])
        choices = np.tile(choice, (len(orders), 1))
        spans = self.visit(orders, choices)
        moves = _moves(n)
        while len(orders):
            near_orders = np.concatenate(
                [orders[:, moves], np.repeat(orders[:, None], n * self._table.choices, 1)], 1
            )
            near_choices = np.concatenate(
                [np.repeat(choices[:, None], len(moves), axis=1), _changes(choices, self._table.choices)],
                axis=1,
            )
            near = self.visit(near_orders.reshape(-1, n), near_choices.reshape(-1, n)).reshape(
                len(orders), -1
            )
            place = near.argmin(axis=1)
            rows = np.arange(len(orders))
            better = near[rows, place] < spans * (1.0 - 1e-12)
            orders, choices = near_orders[rows, place][better], near_choices[rows, place][better]
            spans = near[rows, place][better]
            kept = np.unique(np.concatenate([orders, choices], axis=1), axis=0, return_index=True)[1]
            orders, choices, spans = orders[kept], choices[kept], spans[kept]


def _moves(n: int) -> Index:
    """Every exchange of two places, and every move of a task to another place, as permutations."""
    found = set()
    for i, j in itertools.permutations(range(n), 2):
        moved = list(range(n))
        moved.insert(j, moved.pop(i))
        found.add(tuple(moved))
        moved = list(range(n))
        moved[i], moved[j] = moved[j], moved[i]
        found.add(tuple(moved))
    return np.array(sorted(found))


def _changes(choices: Index, count: int) -> Index:
    """Each row with one task's setting changed, in every way: shape (k, n·count, n)."""
    n = choices.shape[1]
    changed = np.repeat(choices[:, None], n * count, axis=1)
    changed[:, np.arange(n * count), np.repeat(np.arange(n), count)] = np.tile(np.arange(count), n)
    return changed
