"""A lower bound on the time of a round, whatever its start order."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from fedmt_flower.domain.network import Overlap
from fedmt_flower.planning.rates import states
from fedmt_flower.planning.simulator import Jobs, upload
from fedmt_flower.planning.throughput import Array

_ORDERS: Final = 8
"""Up to so many tasks the link's bound tries every order: 40,320 in 30 ms."""
_STEPS: Final = 40
"""Improvements of the prices; more than that moved no bound by 0.1 % in random rounds."""


def lower_bound(jobs: Jobs, fastest: Array, overlap: Overlap = Overlap.FLEXIBLE) -> float:
    """Seconds that no start order can beat.

    The larger of two bounds: the link's, with each task as fast as it ever is, and the device's, with
    each transfer as early or as late as it ever is.

    Parameters
    ----------
    jobs
        The round.
    fastest
        The highest rate of each task in each set of computing tasks (`RateTable.fastest`); shape (2ⁿ, n).
    overlap
        How transfers and computation overlap.
    """
    alone = jobs.samples / fastest.max(axis=0)
    if overlap is Overlap.OFF:
        still = np.zeros_like(alone)
        device = _device_bound(jobs.samples, still, still, fastest)
        return float(jobs.down_s.sum() + max(alone.max(), device) + jobs.up_s.sum())
    device = _device_bound(jobs.samples, jobs.down_s, jobs.up_s, fastest)
    shared = overlap is Overlap.SERIAL or not jobs.full_duplex
    return max(device, _link_bound(alone, jobs.down_s, jobs.up_s, shared))


def _link_bound(alone: Array, down: Array, up: Array, shared: bool) -> float:
    """The shortest round if no task slowed another.

    Up to `_ORDERS` tasks every order is tried. Beyond, the link works without a pause from the first
    download to the last and then waits for a task, or waits for a task and then works to the last upload.
    """
    n = len(alone)
    free = down.sum() if shared else 0.0
    if n > _ORDERS:
        first = max((down + alone).min(), free)
        ends = (down.sum() + (alone + up).min(), first + up.sum(), (down + alone + up).max())
        return float(max(ends))
    order = np.array(list(itertools.permutations(range(n)))).T
    ready = np.take_along_axis(np.cumsum(down[order], axis=0), np.argsort(order, axis=0), axis=0)
    ends_ = upload(up[:, None], order, ready + alone[:, None], np.full(order.shape[1], free))
    return float(ends_.max(axis=0).min())


def _device_bound(samples: Array, down: Array, up: Array, fastest: Array) -> float:
    """The longest time that a set of tasks needs the device for, with its transfers before and after.

    Give each sample of task i a price pᵢ. A set U has to earn V = Σ pᵢDᵢ; while at most k of its tasks
    compute it earns at most c_k a second. k of them compute no sooner than the k shortest downloads are
    over, and no later than the k shortest uploads before the end, together tₖ seconds. So a round of T
    seconds earns at most Σₖ (c_k - c_{k-1})·max(0, T - tₖ), and has to earn V. Every choice of prices gives
    a bound; the best is approached by raising the prices of what is scarce.
    """
    n = len(samples)
    member = states(n, 1)[1:].astype(float)
    size = (member @ states(n, 1).T).astype(int)
    edges = sum(np.cumsum(np.sort(np.where(member > 0, t, np.inf), axis=1), axis=1) for t in (down, up))
    prices = member / np.maximum(fastest[2 ** np.arange(n), np.arange(n)], 1e-300)
    best = 0.0
    for step in range(_STEPS):
        earned = prices @ fastest.T
        speed = np.stack([np.where(size <= k, earned, 0.0).max(axis=1) for k in range(1, n + 1)], axis=1)
        gains = np.diff(speed, axis=1, prepend=0.0)
        lost = np.cumsum(np.where(gains > 0, gains * np.where(np.isinf(edges), 0.0, edges), 0.0), axis=1)
        value = prices @ samples
        times = ((value[:, None] + lost) / speed).min(axis=1)
        best = max(best, float(times.max()))
        at_best = fastest[earned.argmax(axis=1)] * prices
        scarce = samples * prices / value[:, None] - at_best / at_best.sum(axis=1, keepdims=True)
        prices *= np.exp(scarce / (1.0 + 0.1 * step))
    return best
