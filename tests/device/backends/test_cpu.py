"""Budgets as threads."""

from __future__ import annotations

import os

import pytest

from fedmt_flower.device.backends.cpu import CpuBackend, threads_of
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.errors import ConfigError


@pytest.mark.parametrize(
    ("budget", "total", "threads"),
    [
        (100, 2, 2),
        (99, 2, 1),
        (50, 2, 1),
        (1, 2, 1),
        (100 / 3, 3, 1),
        (200 / 3, 3, 2),
        (60, 128, 76),
        (0.1, 1, 1),
    ],
)
def test_a_budget_is_rounded_down_to_threads_but_never_to_none(
    budget: float, total: int, threads: int
) -> None:
    assert threads_of(budget, total) == threads


@pytest.mark.parametrize("budget", [0, -1, 100.5, float("nan")])
def test_a_budget_that_is_no_share_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match="budget"):
        threads_of(budget, 2)


@pytest.mark.parametrize("sharing", [Sharing.IN_TURN, Sharing.TIME_SLICED])
def test_without_caps_every_task_has_all_threads(sharing: Sharing) -> None:
    assert CpuBackend().seat(1, sharing).level == len(os.sched_getaffinity(0))


def test_budgets_of_one_level_are_one_seat() -> None:
    backend = CpuBackend()
    assert backend.seat(0.1, Sharing.CAPPED) == backend.seat(0.2, Sharing.CAPPED)
    assert backend.seat(0.1, Sharing.CAPPED).environment["OMP_NUM_THREADS"] == "1"
