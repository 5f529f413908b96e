"""The plans of a device's rounds."""

from __future__ import annotations

from collections.abc import Mapping

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.pool import Pool
from fedmt_flower.domain.plan import DevicePlan
from fedmt_flower.domain.round import RoundOrder, RoundReport
from fedmt_flower.planning.allocation import plan_round


class Planner:
    """Plans the rounds of one device, and learns from those that it has run.

    Parameters
    ----------
    backend, pool
        The device and its workers.
    """

    def __init__(self, backend: DeviceBackend, pool: Pool) -> None:
        self._backend = backend
        self._pool = pool

    async def plan(self, order: RoundOrder, weights: Mapping[str, int]) -> DevicePlan:
        """How the device runs `order`; `weights` are the memory files of the tasks' weights.

        Raises
        ------
        ConfigError
            If what is asked for cannot be planned.
        """
        return DevicePlan(plan=plan_round(order.allocation, tuple(a.task.name for a in order.assignments)))

    def observe(self, order: RoundOrder, report: RoundReport) -> None:
        """Learn from how `order` went."""
