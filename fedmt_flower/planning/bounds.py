"""A lower bound on the time of a round, whatever its start order."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from fedmt_flower.domain.network import Overlap
from fedmt_flower.planning.rates import Index, states
from fedmt_flower.planning.simulator import Jobs, upload
from fedmt_flower.planning.throughput import Array

_TRIED: Final = 5
"""Up to so many tasks the device's bound is taken for every order: 120 in 10 ms."""
_LINKED: Final = 8
"""Up to so many tasks the link's bound is taken for every order, the device's for every set."""
_STEPS: Final = 25
"""Improvements of the prices; more than that moved no bound by 0.1 % in random rounds."""


def lower_bound(jobs: Jobs, fastest: Array, overlap: Overlap = Overlap.FLEXIBLE) -> float:
    """Seconds that no start order can beat.

    The device has a bound for each set of tasks, with each transfer as early or as late as it ever is. The
    link has one for each order, with each task as fast as it ever is, and so has the device; a round takes
    at least as long as the best order's larger one.

    Parameters
    ----------
    jobs
        The round.
    fastest
        The highest rate of each task in each set of computing tasks (`RateTable.fastest`); shape (2ⁿ, n).
    overlap
        How transfers and computation overlap.
    """
    n = len(jobs.samples)
    alone = jobs.samples / fastest.max(axis=0)
    if overlap is Overlap.OFF:
        still = np.zeros(n)
        device = _device_bound_of_sets(jobs.samples, still, still, fastest)
        return float(jobs.down_s.sum() + max(alone.max(), device) + jobs.up_s.sum())
    device = _device_bound_of_sets(jobs.samples, jobs.down_s, jobs.up_s, fastest)
    free = jobs.down_s.sum() if overlap is Overlap.SERIAL or not jobs.full_duplex else 0.0
    if n > _LINKED:
        return max(device, _link_bound(alone, jobs.down_s, jobs.up_s, free))
    order = np.array(list(itertools.permutations(range(n)))).T
    arrived = np.cumsum(jobs.down_s[order], axis=0)
    ready = np.take_along_axis(arrived, np.argsort(order, axis=0), axis=0)
    ends = upload(jobs.up_s[:, None], order, ready + alone[:, None], np.full(order.shape[1], free))
    bounds = ends.max(axis=0)
    if n <= _TRIED:
        members = states(n, 1) * (np.argsort(order, axis=0).T[:, None] + 1)
        edges = arrived.T + jobs.up_s.min()
        every = np.ones((order.shape[1], n))
        bounds = np.maximum(bounds, _device_bounds(jobs.samples, every, members.max(axis=2), edges, fastest))
    return float(max(device, bounds.min()))


def _link_bound(alone: Array, down: Array, up: Array, free: float) -> float:
    """The link works without a pause to the last download and then waits for a task, or the reverse."""
    first = max((down + alone).min(), free)
    return float(max(down.sum() + (alone + up).min(), first + up.sum(), (down + alone + up).max()))


def _device_bound_of_sets(samples: Array, down: Array, up: Array, fastest: Array) -> float:
    """The longest time for which a set of tasks needs the device, with transfers before and after.

    k tasks of a set compute no sooner than its k shortest downloads are over, and no later than its k
    shortest uploads before the end. Beyond `_LINKED` tasks only the set of all is looked at.
    """
    sets = states(len(samples), 1)
    rows = sets[1:] if len(samples) <= _LINKED else sets[-1:]
    member = rows.astype(float)
    edges = np.zeros(member.shape)
    for transfers in (down, up):
        mine = np.sort(np.where(member > 0, transfers, np.inf), axis=1)
        edges += np.cumsum(np.where(np.isinf(mine), 0.0, mine), axis=1)
    return float(_device_bounds(samples, member, rows @ sets.T, edges, fastest).max())


def _device_bounds(samples: Array, member: Array, stage: Index, edges: Array, fastest: Array) -> Array:
    """Seconds in which the device can do the work of each row's tasks.

    Give each sample of task i a price pᵢ. The row's tasks U have to earn V = Σ pᵢDᵢ; up to stage k of the
    row they earn at most c_k a second, and all that is not between the beginning and the end of stage k
    lasts at least tₖ. So a round of T seconds earns at most Σₖ (c_k - c_{k-1})·max(0, T - tₖ), and has to
    earn V. Every choice of prices gives a bound; the best is approached by raising the prices of what is
    scarce.

    Parameters
    ----------
    samples
        Volumes; shape (n,).
    member
        1 for the row's tasks, else 0; shape (rows, n).
    stage
        The first stage in which each set may compute; shape (rows, 2ⁿ).
    edges
        tₖ of stages 1 to n, in seconds, not falling; shape (rows, n).
    fastest
        As for `lower_bound`.
    """
    n = len(samples)
    prices = member / fastest[2 ** np.arange(n), np.arange(n)]
    best = np.zeros(len(member))
    for step in range(_STEPS):
        earned = prices @ fastest.T
        speed = np.stack([np.where(stage <= k, earned, 0.0).max(axis=1) for k in range(1, n + 1)], axis=1)
        lost = np.cumsum(np.diff(speed, axis=1, prepend=0.0) * edges, axis=1)
        value = prices @ samples
        times = (value[:, None] + lost) / speed
        best = np.maximum(best, times.min(axis=1))
        at_best = fastest[earned.argmax(axis=1)] * prices
        scarce = samples * prices / value[:, None] - at_best / at_best.sum(axis=1, keepdims=True)
        prices = prices * np.exp(scarce / (1.0 + 0.1 * step))
    return best
