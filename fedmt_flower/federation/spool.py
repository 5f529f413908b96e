"""Room for the updates of a turn: a few in memory, the others in a file without a name."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import IO

import numpy as np
from flwr.app import ArrayRecord

from fedmt_flower.federation.arrays import Region, StoredArray, raw_values, read_head

_log = logging.getLogger("flwr.fedmt")

IN_MEMORY_BYTES = 512 << 20
"""What is kept in memory; to write a byte to a file and to read it took as long as to aggregate it twice."""


class Spool:
    """Keeps records of arrays until they are aggregated.

    What a mean weighs an update by is known when the last has come, so every update is kept until then:
    in memory up to `limit` bytes, then in a file of the directory for temporary files (``$TMPDIR``). It has
    no name and its room is free again when its last array is gone. An array in it is an Array like any
    other, whose values are read whenever they are asked for.
    """

    def __init__(self, limit: int = IN_MEMORY_BYTES) -> None:
        self._left = limit
        self._file: _File | None = None

    def put(self, record: ArrayRecord) -> None:
        """Have the values of `record` lie here; to whoever reads it, it is the same."""
        size = sum(read_head(array).size for array in record.values())
        if size <= self._left:
            self._left -= size
            return
        try:
            self._file = self._file or _File()
            for name, array in record.items():
                if not isinstance(array, StoredArray):
                    array = record[name] = StoredArray(read_head(array), Region(raw_values(array)), 0)
                array.region.move(self._file)
        except OSError as error:
            _log.warning("updates stay in memory: %s: %s", tempfile.gettempdir(), error)


class _File:
    """A file without a name, open for as long as anything is in it."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="fedmt-", buffering=0)  # noqa: SIM115
        self._end = 0

    def put(self, data: memoryview) -> int:
        """See `Elsewhere`."""
        place, done = self._end, 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], place + done)
        self._end += done
        return place

    def read(self, place: int, size: int) -> memoryview:
        """See `Elsewhere`."""
        out = memoryview(np.empty(size, np.uint8).data)
        done = 0
        while done < size:
            got = os.preadv(self._file.fileno(), [out[done:]], place + done)
            if not got:
                raise OSError(f"a turn's file of updates ends at {place + done}, expected {size - done} more")
            done += got
        return out
