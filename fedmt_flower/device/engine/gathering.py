"""A round whose weights come from several clients: a site's nodes, each a lane of the network to it.

A node sends nothing before its client has returned. Where each task of a site has a node of its own, the
weights of one come while another trains, and its update goes while others still do; the round is one, and
planned as one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.engine.rounds import OnProgress, OnUpdate, Round
from fedmt_flower.device.ipc.frames import Advanced
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.domain.plan import DevicePlan
from fedmt_flower.domain.round import RoundOrder, RoundReport

log = logging.getLogger(__name__)

_SITES: Final = 256
"""Of so many sites it is known which tasks of their last round were played."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """What one client brings to a round, and how it is told of it.

    Parameters
    ----------
    weights
        The memory file of each task's weights; they stay the client's.
    on_progress, on_update
        As of `Round.run`, for its own tasks.
    """

    weights: Mapping[str, int]
    on_progress: OnProgress
    on_update: OnUpdate


class Gathering:
    """One round of one site, and the lanes that its weights come by.

    Parameters
    ----------
    order
        The whole round, as the lane that came first has it.
    play
        Plans it, has it `run` when the device is free, and gives its report.
    """

    def __init__(self, order: RoundOrder, play: Callable[[Gathering], Awaitable[RoundReport]]) -> None:
        self.order = order
        self._arrival = time.monotonic()
        self.weights: dict[str, int] = {}
        self._lanes: dict[str, Lane] = {}
        self._carried: set[Lane] = set()
        self._round: Round | None = None
        self._begun = asyncio.Event()
        self._given_up = False
        self._playing = asyncio.ensure_future(play(self))

    @property
    def over(self) -> bool:
        """Whether the round has ended, however it did, or is being given up."""
        return self._playing.done() or self._given_up

    def admits(self, order: RoundOrder) -> bool:
        """Whether the tasks that `order` brings still find their places in this round."""
        if self.over:
            return False
        names = frozenset(assignment.task.name for assignment in self.order.assignments)
        return self._waits(names).issuperset(order.brings)

    async def carry(self, lane: Lane) -> RoundReport:
        """Bring what comes by `lane`; the report of its tasks, once they have ended.

        Cancelled, it ends its tasks, and the round if that has no other lane.

        Raises
        ------
        FedMTError
            If the round cannot be played.
        """
        self._carried.add(lane)
        self._lanes |= dict.fromkeys(lane.weights, lane)
        self.weights |= lane.weights
        if self._round is not None:
            self._round.bring(lane.weights)
        ending = asyncio.create_task(self._end(lane))
        try:
            await asyncio.wait({self._playing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if self._round is not None and not self.over and self._round.under_way:
                report = self._round.report()
            else:
                report = await asyncio.shield(self._playing)
        except asyncio.CancelledError:
            self._carried.discard(lane)
            await self._leave(lane)
            raise
        finally:
            ending.cancel()
            self._carried.discard(lane)
        return report.part(lane.weights)

    async def run(self, planned: DevicePlan, pool: Pool, backend: DeviceBackend) -> RoundReport:
        """Run the round as it is planned, with the lanes that have come and those that come meanwhile.

        Raises
        ------
        EngineError
            As `Round`.
        """
        self._round = Round(self.order, planned, self.weights, pool, backend, self._arrival)
        self._begun.set()
        report = await self._round.run(self._on_progress, self._on_update)
        if missing := [a.task.name for a in self.order.assignments if a.task.name not in self.weights]:
            log.warning(
                "site %r, round %d: it went on without %s, whose weights no node of the site has brought",
                self.order.site,
                self.order.round,
                ", ".join(map(repr, missing)),
            )
        return report

    def _waits(self, names: frozenset[str]) -> frozenset[str]:
        return names - self._lanes.keys() if self._round is None else self._round.waits

    async def _end(self, lane: Lane) -> None:
        await self._begun.wait()
        assert self._round is not None
        await self._round.ended(lane.weights)

    async def _leave(self, lane: Lane) -> None:
        if not self._carried:
            self._given_up = True
            self._playing.cancel()
            await asyncio.wait({self._playing})
            return
        tasks = ", ".join(map(repr, lane.weights))
        log.warning("site %r, round %d: it goes on without %s", self.order.site, self.order.round, tasks)
        if self._round is not None:
            await self._round.leave(lane.weights)
        else:
            for task in lane.weights:
                del self.weights[task], self._lanes[task]

    async def _on_progress(self, progress: Advanced) -> None:
        await self._lanes[progress.task].on_progress(progress)

    async def _on_update(self, task: str, file: int) -> None:
        await self._lanes[task].on_update(task, file)


class Gatherings:
    """The rounds that are under way or wait for the device.

    Parameters
    ----------
    play
        See `Gathering`.
    """

    def __init__(self, play: Callable[[Gathering], Awaitable[RoundReport]]) -> None:
        self._play = play
        self._open: dict[tuple[str, str, int], Gathering] = {}
        self._played: OrderedDict[tuple[str, str], tuple[int, frozenset[str]]] = OrderedDict()

    async def carry(self, order: RoundOrder, lane: Lane) -> RoundReport:
        """As `Gathering.carry`: in the round that waits for what `order` brings, else in a new one."""
        key = order.run, order.site, order.round
        gathering = self._open.get(key)
        if gathering is None or not gathering.admits(order):
            gathering = self._open[key] = Gathering(self._still_to_play(order), self._play)
        try:
            report = await gathering.carry(lane)
        finally:
            if gathering.over and self._open.get(key) is gathering:
                del self._open[key]
        if order.lane:
            self._remember(order)
        return report

    def _still_to_play(self, order: RoundOrder) -> RoundOrder:
        """`order` without the tasks that other nodes of the site have had played in this round already."""
        number, played = self._played.get((order.run, order.site), (0, frozenset()))
        if number != order.round:
            return order
        return order.of(
            [a.task.name for a in order.assignments if a.task.name not in played - {*order.brings}]
        )

    def _remember(self, order: RoundOrder) -> None:
        key = order.run, order.site
        number, played = self._played.pop(key, (0, frozenset[str]()))
        if number > order.round:
            self._played[key] = number, played
            return
        self._played[key] = (
            order.round,
            frozenset(order.brings) | (played if number == order.round else frozenset()),
        )
        while len(self._played) > _SITES:
            self._played.popitem(last=False)
