"""Rounds on a virtual clock: downloads, computation at shared rates, uploads; thousands at once.

Downloads run back to back in the start order π. A task computes once its weights are in, at the rate that
the set of tasks then computing leaves it; where tasks compute in turn, at its rate alone once those before
it have computed. Uploads run one at a time, first finished first. Where both directions share the link
(half duplex, or `Overlap.SERIAL`) downloads go before uploads, so uploads wait for the last download.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.rates import Index, RateTable
from fedmt_flower.planning.throughput import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Jobs:
    """What n tasks have to do in a round, over their device's link.

    Parameters
    ----------
    names
        Names of the tasks.
    samples
        Samples to train on; shape (n,).
    down_s, up_s
        Seconds for which each download and upload holds the link; shape (n,).
    full_duplex
        Whether a download and an upload run at once.
    in_turn
        Whether one task computes at a time, in the start order.
    """

    names: tuple[str, ...]
    samples: Array
    down_s: Array
    up_s: Array
    full_duplex: bool = True
    in_turn: bool = False

    @classmethod
    def over(cls, volumes: Sequence[Volume], link: Link | None, *, in_turn: bool = False) -> Jobs:
        """The jobs of `volumes` over `link`; None: transfers take no time."""
        return cls(
            names=tuple(volume.task for volume in volumes),
            samples=np.array([volume.samples for volume in volumes], dtype=float),
            down_s=np.array([link.download_s(v.download_bytes) if link else 0.0 for v in volumes]),
            up_s=np.array([link.upload_s(v.upload_bytes) if link else 0.0 for v in volumes]),
            full_duplex=link is None or link.full_duplex,
            in_turn=in_turn,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Times:
    """Seconds since the round's start; shape (k, n), tasks in the order of `Jobs`.

    A task waits from `ready` (downloaded) to `started`, when it computes, where the round is phased or the
    tasks compute in turn.
    """

    ready: Array
    started: Array
    computed: Array
    uploaded: Array

    @property
    def makespan(self) -> Array:
        """End of the last upload; shape (k,)."""
        makespan: Array = self.uploaded.max(axis=1)
        return makespan


def simulate(
    jobs: Jobs,
    table: RateTable,
    order: Index,
    choice: Index,
    *,
    overlap: Overlap = Overlap.FLEXIBLE,
    constant_rates: bool = False,
    swap: tuple[Index, Index] | None = None,
) -> Times:
    """Simulate k rounds.

    Parameters
    ----------
    jobs, table
        The tasks, and their rates.
    order
        Start orders π: the task at each place; shape (k, n), or (n,) for all.
    choice
        Which of its settings each task has (see `RateTable`); shape (k, n), or (n,) for all.
    overlap
        How transfers and computation overlap; the orders after `SERIAL` differ only in `order`.
    constant_rates
        Keep the rates of the full set throughout: the paper's Dᵢ/Pᵢ.
    swap
        A state and a row of the table for each round: that state has the rates of that row instead of its
        own; shape (k,) each.
    """
    order, choice = np.broadcast_arrays(np.atleast_2d(order), np.atleast_2d(choice))
    place = np.argsort(order, axis=1).T
    ready = np.take_along_axis(np.cumsum(jobs.down_s[order.T], axis=0), place, axis=0)
    downloaded = jobs.down_s.sum()
    started = np.full_like(ready, downloaded) if overlap is Overlap.OFF else ready
    settings = table.steps(choice).T
    if jobs.in_turn:
        started, computed = _in_turn(order, started, jobs.samples / alone(table, choice))
    elif constant_rates:
        computed = started + jobs.samples[:, None] / table.rates[settings.sum(axis=0)].T
    else:
        left = np.repeat(jobs.samples[:, None], ready.shape[1], axis=1)
        computed = drain(table, settings, left, started, swap)
    if overlap is Overlap.OFF:
        free = computed.max(axis=0)
    elif overlap is Overlap.SERIAL or not jobs.full_duplex:
        free = np.full(ready.shape[1], downloaded)
    else:
        free = np.zeros(ready.shape[1])
    uploaded = upload(jobs.up_s[:, None], order.T, computed, free)
    return Times(ready=ready.T, started=started.T, computed=computed.T, uploaded=uploaded.T)


def alone(table: RateTable, choice: Index) -> Array:
    """Each task's rate while no other computes, with its setting in `choice`; shape of `choice`, (…, n)."""
    return np.asarray(table.rates[table.steps(choice), np.arange(choice.shape[-1])])


def _in_turn(order: Index, ready: Array, lasts: Array) -> tuple[Array, Array]:
    """When each task starts and has computed, one at a time in `order`, shape (k, n); shapes (n, k)."""
    started, computed = np.empty_like(ready), np.empty_like(ready)
    rows = np.arange(len(order))
    free = np.zeros(len(order))
    for task in order.T:
        started[task, rows] = np.maximum(free, ready[task, rows])
        free = computed[task, rows] = started[task, rows] + lasts[rows, task]
    return started, computed


def drain(
    table: RateTable,
    settings: Index,
    left: Array,
    started: Array,
    swap: tuple[Index, Index] | None = None,
) -> Array:
    """Compute until nothing is left, rates changing whenever the set of computing tasks does.

    Parameters
    ----------
    table, settings
        The rates, and each task's term of the table's index (`RateTable.steps`); shape (n, k).
    left
        Samples left, 0 for a task that does not compute; shape (n, k); used up.
    started
        When each task may begin; shape (n, k).
    swap
        As in `simulate`.

    Returns
    -------
    Array
        When each task has finished, 0 for one that had nothing left; shape (n, k).

    Raises
    ------
    ConfigError
        If a task that computes has no rate.
    """
    rates = np.ascontiguousarray(table.rates.T)
    now = np.zeros(left.shape[1])
    ended = np.zeros(left.shape)
    for _ in range(2 * len(left)):
        running = (left > 0) & (started <= now)
        state = (settings * running).sum(axis=0)
        if swap is not None:
            state = np.where(state == swap[0], swap[1], state)
        speed = np.take(rates, state, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            end = np.where(running, now + left / speed, np.inf)
        begin = np.where((left > 0) & ~running, started, np.inf)
        then = np.minimum(end.min(axis=0), begin.min(axis=0))
        open_ = np.isfinite(then)
        if not open_.any():
            break
        then = np.where(open_, then, now)
        left -= np.where(running, speed * (then - now), 0.0)
        over = running & ((end <= then) | (left <= 0))
        left[over] = 0.0
        ended = np.where(over, then, ended)
        now = then
    if (left > 0).any():
        raise ConfigError(
            "round simulation: a task that computes has a rate of 0; check the throughput model"
        )
    return ended


def upload(lasts: Array, order: Index, computed: Array, free: Array) -> Array:
    """When each upload ends, one at a time, first finished first, of equals the first in π.

    Parameters
    ----------
    lasts
        Seconds for which each task's upload holds the link; shape (n, k) or (n, 1).
    order, computed
        π, and when each task has computed; shape (n, k).
    free
        When the link is free for uploads; shape (k,).
    """
    queue = np.argsort(np.take_along_axis(computed, order, axis=0), axis=0, kind="stable")
    queue = np.take_along_axis(order, queue, axis=0)
    computed = np.take_along_axis(computed, queue, axis=0)
    lasts = np.take_along_axis(np.broadcast_to(lasts, queue.shape), queue, axis=0)
    ends = np.empty_like(computed)
    for place in range(len(queue)):
        free = np.maximum(free, computed[place]) + lasts[place]
        ends[place] = free
    uploaded = np.empty_like(ends)
    np.put_along_axis(uploaded, queue, ends, axis=0)
    return uploaded


def timeline(jobs: Jobs, times: Times, row: int = 0) -> tuple[Span, ...]:
    """The spans of round `row`, by their start."""
    spans = []
    for i, name in enumerate(jobs.names):
        ready, uploaded = float(times.ready[row, i]), float(times.uploaded[row, i])
        for phase, start, end in (
            (Phase.DOWNLOAD, ready - float(jobs.down_s[i]), ready),
            (Phase.COMPUTE, float(times.started[row, i]), float(times.computed[row, i])),
            (Phase.UPLOAD, uploaded - float(jobs.up_s[i]), uploaded),
        ):
            if end > start:
                spans.append(Span(task=name, phase=phase, start_s=max(0.0, start), end_s=end))
    return tuple(sorted(spans, key=lambda span: (span.start_s, span.end_s, span.task)))
