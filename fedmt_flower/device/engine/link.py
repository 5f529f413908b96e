"""A device's link on the wall clock, as `fedmt_flower.planning.simulator` has it on a virtual one."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from fedmt_flower.domain.network import Link, Overlap
from fedmt_flower.domain.timeline import Phase, Span

_DOWNLOAD: Final = 0
_UPLOAD: Final = 1
"""Of two transfers that wait for one lane the download goes first: it lets another task compute."""


class Transfers:
    """The transfers of one round; used as a context, which is the round.

    All downloads wait for the link from the beginning, in the order of `sizes`, and uploads from the moment
    when their tasks have computed. What the link does not emulate takes no time: the weights are in this
    process already.

    Parameters
    ----------
    link
        The link to emulate; None: every transfer is over at once.
    overlap
        How transfers and computation overlap.
    sizes
        Bytes of the weights that each task receives, in start order π.
    origin
        The timeline's zero, on the event loop's clock.
    """

    def __init__(self, link: Link | None, overlap: Overlap, sizes: Mapping[str, int], origin: float) -> None:
        self._link = link
        self._sizes = sizes
        self._origin = origin
        phased = overlap is Overlap.OFF and link is not None
        shared = overlap is Overlap.SERIAL or (link is not None and not link.full_duplex)
        self._down = _Lane()
        self._up = self._down if shared and not phased else _Lane(closed=phased)
        self._receiving = set(sizes if phased else ())
        self._computing = set(sizes if phased else ())
        self._all_received = asyncio.Event()
        if not phased:
            self._all_received.set()
        self._downloads: dict[str, asyncio.Task[None]] = {}
        self.spans: list[Span] = []
        """The transfers that are over."""

    async def __aenter__(self) -> Self:
        if self._link is not None:
            for task, size in self._sizes.items():
                self._downloads[task] = asyncio.create_task(self._download(task, self._link.download_s(size)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for download in self._downloads.values():
            download.cancel()
        await asyncio.gather(*self._downloads.values(), return_exceptions=True)

    @contextmanager
    def taking_part(self, task: str) -> Iterator[None]:
        """Let nobody wait for `task` once the context has ended, however it did."""
        try:
            yield
        finally:
            self._has_received(task)
            self._has_computed(task)

    async def received(self, task: str) -> None:
        """Wait until `task` may compute: its weights are in and, in a phased round, those of all others."""
        if (download := self._downloads.get(task)) is not None:
            await download
        await self._all_received.wait()

    async def upload(self, task: str, size: int) -> None:
        """Upload `size` bytes of `task`, which has computed; in a phased round once all others have too."""
        self._has_computed(task)
        if self._link is not None:
            await self._carry(self._up, task, Phase.UPLOAD, self._link.upload_s(size), _UPLOAD)

    async def _download(self, task: str, lasts: float) -> None:
        await self._carry(self._down, task, Phase.DOWNLOAD, lasts, _DOWNLOAD)
        self._has_received(task)

    def _has_received(self, task: str) -> None:
        self._receiving.discard(task)
        if not self._receiving:
            self._all_received.set()

    def _has_computed(self, task: str) -> None:
        self._computing.discard(task)
        if not self._computing:
            self._up.open()

    async def _carry(self, lane: _Lane, task: str, phase: Phase, lasts: float, urgency: int) -> None:
        start, end = await lane.carry(lasts, urgency)
        self.spans.append(
            Span(task=task, phase=phase, start_s=start - self._origin, end_s=end - self._origin)
        )


class _Lane:
    """Carries one transfer at a time, once it is open: the most urgent that waits, of equals the first."""

    def __init__(self, *, closed: bool = False) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._number = itertools.count()
        self._closed = self._busy = closed
        self._free = 0.0

    def open(self) -> None:
        """Let the first transfer begin; nothing if it is open."""
        if self._closed:
            self._closed = False
            self._free = asyncio.get_running_loop().time()
            self._pass_on()

    async def carry(self, lasts: float, urgency: int) -> tuple[float, float]:
        """Hold the lane for `lasts` seconds; when that began and ended, on the event loop's clock."""
        clock = asyncio.get_running_loop().time
        asked = clock()
        await self._take(urgency)
        # From the end of the transfer before, not from when this process woke: latenesses do not add up.
        start = max(asked, self._free)
        self._free = start + lasts
        try:
            await asyncio.sleep(self._free - clock())
        except asyncio.CancelledError:
            self._free = min(self._free, clock())
            raise
        finally:
            self._pass_on()
        return start, start + lasts

    async def _take(self, urgency: int) -> None:
        if not self._busy:
            self._busy = True
            return
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (urgency, next(self._number), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._busy = False
