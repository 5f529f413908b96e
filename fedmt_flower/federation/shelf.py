"""A file without a name for bytes that are written once and read in the order in which they lie.

It goes around the system's cache of files. A cache of 7 GB that is read once is no use to anybody, and its
pages cost more than the disk: on a virtual machine that had not used its memory before, 45 MB took 120 ms of
CPU through the cache and 14 ms past it, and to read them again 80 ms and 1 ms.
"""

from __future__ import annotations

import bisect
import contextlib
import fcntl
import itertools
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

import numpy as np
from numpy.typing import NDArray

from fedmt_flower.federation.arrays import Region

_BLOCK = 4096
"""Places and sizes of what goes past the cache are multiples of it."""

_WINDOW_BYTES = 32 << 20
"""The most that is moved at once."""

_FIRST_BYTES = 1 << 20
"""What a reader who has just begun to read on waits for."""

_SLOW_BYTES_PER_S = 200e6
"""A disk below it is left to the cache, which may take what comes faster than the disk does."""


@dataclass(frozen=True, slots=True)
class _Window:
    """A part of the file in memory: `size` bytes from `start` on."""

    start: int
    size: int
    pages: NDArray[np.uint8]

    def since(self, place: int) -> NDArray[np.uint8]:
        """What it has from `place` on; nothing if that lies outside."""
        return self.pages[place - self.start : self.size] if place >= self.start else self.pages[:0]


class Shelf:
    """Keeps the bytes of regions; its room is free again when nobody refers to it.

    Who reads on where the last reading ended is given what was read ahead, as far as what was put together
    goes and then where `expect` says; any other reading takes its own bytes only. Regions may be put by one
    thread while others read.

    Attributes
    ----------
    past_cache
        Whether it is read and written past the system's cache.
    """

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="fedmt-", buffering=0)  # noqa: SIM115
        self.past_cache = self._go_past_cache(True)
        self._ends = [0]
        self._writing_s = 0.0
        self._out = _pages()
        self._turn = threading.Lock()
        self._reader = ThreadPoolExecutor(max_workers=1)
        self._window, self._spare = _Window(0, 0, _pages()), _pages()
        self._ahead: Future[_Window] | None = None
        self._last = -_BLOCK
        self._next: dict[int, int] = {}

    def put(self, regions: Iterable[Region]) -> None:
        """Take the bytes of `regions` out of memory, to be read in this order.

        Raises
        ------
        OSError
            If they cannot be written; they then stay where they are.
        """
        places: dict[Region, int] = {}
        place, filled = self._ends[-1], 0
        for region in regions:
            if region.data is None:
                continue
            places[region] = place + filled
            left = np.frombuffer(region.data, np.uint8)
            while left.size:
                part, left = np.split(left, [_WINDOW_BYTES - filled])
                self._out[filled : filled + part.size] = part
                filled += part.size
                if filled == _WINDOW_BYTES:
                    self._write(place, filled)
                    place, filled = place + filled, 0
        self._write(place, filled)
        self._ends.append(place + _blocks(filled))
        for region, where in places.items():
            region.moved(self, where)
        if self.past_cache and self._ends[-1] < _SLOW_BYTES_PER_S * self._writing_s:
            self.past_cache = self._go_past_cache(False)

    def expect(self, regions: Iterable[Region]) -> None:
        """Say in which order `regions` will be read: reading ahead then goes on from one put to the next."""
        found = [region.elsewhere for region in regions if region.size]
        places = [where[1] for where in found if where and where[0] is self]
        starts = set(self._ends)
        begins = [place for place in places if place in starts]
        with self._turn:
            self._next = {self._end(one): other for one, other in itertools.pairwise(begins)}

    def read(self, place: int, size: int) -> memoryview:
        """See `Elsewhere`."""
        out = np.empty(size, np.uint8)
        done = 0
        with self._turn:
            follows = 0 <= place - self._last < _BLOCK or place == self._next.get(_blocks(self._last))
            end = self._end(place) if follows and size else place + size
            while done < size:
                part = self._find(place + done, end)[: size - done]
                out[done : done + part.size] = part
                done += part.size
            self._last = place + size
        return out.data

    def _find(self, place: int, end: int) -> NDArray[np.uint8]:
        """Some bytes from `place` on; those after them, up to `end`, are then read ahead."""
        found = self._window.since(place)
        if found.size:
            return found
        ahead, self._ahead = self._ahead, None
        window = ahead.result() if ahead else self._window
        if not window.since(place).size:
            window = self._load(place, min(end, place + _FIRST_BYTES))
        self._window, self._spare = window, self._window.pages
        following = window.start + window.size
        if following == end and end in self._next:
            following = self._next[end]
            end = self._end(following)
        if following < end:
            self._ahead = self._reader.submit(self._load, following, end)
        return window.since(place)

    def _end(self, place: int) -> int:
        """Where what was put together with the bytes at `place` ends."""
        return self._ends[bisect.bisect_right(self._ends, place)]

    def _load(self, place: int, end: int) -> _Window:
        """The window that begins with the block of `place` and does not go beyond that of `end`."""
        start = place - place % _BLOCK
        size = min(_blocks(end - start), _WINDOW_BYTES)
        done = 0
        while done < size:
            got = os.preadv(self._file.fileno(), [self._spare[done:size].data], start + done)
            if not got:
                raise OSError(f"a turn's file of updates ends at {start + done}, expected {size - done} more")
            done += got
        return _Window(start, size, self._spare)

    def _write(self, place: int, size: int) -> None:
        """Write the first `size` bytes of what is to go out, in whole blocks."""
        size = _blocks(size)
        done = 0
        begin = time.monotonic()
        while done < size:
            done += os.pwrite(self._file.fileno(), self._out[done:size].data, place + done)
        self._writing_s += time.monotonic() - begin

    def _go_past_cache(self, past: bool) -> bool:
        """Have the file read and written past the system's cache, or through it; whether it is past it."""
        flag = getattr(os, "O_DIRECT", 0)
        flags = fcntl.fcntl(self._file.fileno(), fcntl.F_GETFL)
        try:
            fcntl.fcntl(self._file.fileno(), fcntl.F_SETFL, flags | flag if past else flags & ~flag)
        except OSError:  # not every file system can
            return False
        return past


def _pages() -> NDArray[np.uint8]:
    """A window's memory, in huge pages where the system has them.

    A disk is given each page apart: past the cache, a virtual one wrote 2.0 GB/s from pages of 4 kB and 3.3
    from huge ones, and read 1.1 and 3.1.
    """
    memory = mmap.mmap(-1, _WINDOW_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # not every system has them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _blocks(size: int) -> int:
    return size + -size % _BLOCK
