"""The host's CPUs: a budget is a number of threads."""

from __future__ import annotations

import math
import os

import psutil

from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.domain.plan import Sharing, check_budget

_THREADS_OF = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads_of(budget: float, total: int) -> int:
    """Threads that a budget of `budget` % comes to on `total` CPUs: rounded down, at least one.

    Raises
    ------
    ConfigError
        If `budget` is not in (0, 100].
    """
    check_budget("a task", budget)
    # The epsilon keeps a third of three CPUs, 33.333… %, at one and two thirds at two.
    return max(1, math.floor(total * budget / 100 + 1e-9))


class CpuBackend:
    """Seats on the CPUs that this process may use."""

    def __init__(self) -> None:
        self.name = "cpu"
        self.max_workers = 64
        self.spares = True
        self._threads = len(os.sched_getaffinity(0))

    def open(self) -> None:
        """Nothing: CPUs are always there."""

    def seat(self, budget: float, sharing: Sharing, *, yields: bool = False) -> Seat:
        """The threads that `budget` comes to, or all where the round does not cap its tasks; none yields."""
        level = threads_of(budget if sharing is Sharing.CAPPED else 100.0, self._threads)
        return Seat(device="cpu", level=level, environment=dict.fromkeys(_THREADS_OF, str(level)))

    def sound(self, budget: float) -> float:
        """`budget`: any number of threads computes the same."""
        return budget

    def welcome(self, pid: int, seat: Seat) -> None:
        """Nothing to check: a worker sets its own threads."""

    def healthy(self) -> str:
        """Always empty."""
        return ""

    def lost(self) -> str:
        """Always empty."""
        return ""

    def memory(self) -> tuple[int, int]:
        """The host's."""
        memory = psutil.virtual_memory()
        return memory.total - memory.available, memory.total

    def reopen(self) -> None:
        """Nothing: CPUs do not fail."""

    def evict(self, pid: int) -> None:
        """Nothing: the kernel takes a killed process from its CPUs."""

    def close(self) -> None:
        """Nothing to end."""
