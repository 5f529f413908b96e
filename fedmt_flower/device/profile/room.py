"""What a device has room for: which workers rest, and how many start side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Set
from contextlib import asynccontextmanager


def to_rest(awake: Mapping[str, int], wanted: Set[str], needed: int, usable: int) -> tuple[str, ...]:
    """Which workers give their memory back, so that `needed` bytes more fit in `usable`.

    Parameters
    ----------
    awake
        What each worker holds, in bytes, the longest unused first.
    wanted
        Those that must go on.
    """
    resting: list[str] = []
    held = sum(awake.values())
    for key, bytes_ in awake.items():
        if held + needed <= usable:
            break
        if key not in wanted:
            resting.append(key)
            held -= bytes_
    return tuple(resting)


class Admission:
    """Lets workers start side by side while what they may hold together fits the device.

    Parameters
    ----------
    room
        Bytes that they may hold together.
    processors
        How many may start at once, since the first steps of each keep one busy. One may in any case.
    kept
        Bytes that each goes on to hold when it has started and rests.
    """

    def __init__(self, room: int, processors: int, kept: int = 0) -> None:
        self._room = max(0, room)
        self._processors = processors
        self._kept = kept
        self._held = self._starting = 0
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, expect: Callable[[], int]) -> AsyncIterator[None]:
        """Wait until a worker can start that may hold as many bytes as `expect` gives; at the end it has.

        `expect` is asked again whenever another has started, which may have told what to expect.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._fits(expect()))
            need = expect()
            self._held, self._starting = self._held + need, self._starting + 1
        try:
            yield
        finally:
            async with self._changed:
                self._held, self._starting = self._held - need + self._kept, self._starting - 1
                self._changed.notify_all()

    def _fits(self, need: int) -> bool:
        if not self._starting:
            return True
        return self._starting < self._processors and self._held + need <= self._room
