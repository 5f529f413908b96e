"""Room for the updates of a turn: a few in memory, the others in a file without a name."""

from __future__ import annotations

import logging
import os
import tempfile
from typing import IO

import numpy as np
from flwr.app import ArrayRecord

from fedmt_flower.federation.arrays import StoredArray, raw_values, read_head

_log = logging.getLogger("flwr.fedmt")

IN_MEMORY_BYTES = 256 << 20
"""What is kept in memory: the page cache takes more as fast, and gives it back."""


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

    def put(self, record: ArrayRecord) -> ArrayRecord:
        """`record`, the same to whoever reads it, from wherever its arrays are now."""
        size = sum(raw_values(array).nbytes for array in record.values())
        if size <= self._left:
            self._left -= size
            return record
        try:
            self._file = self._file or _File()
            return self._file.put(record)
        except OSError as error:
            _log.warning("updates stay in memory: %s: %s", tempfile.gettempdir(), error)
            return record


class _File:
    """A `Storage` that grows."""

    def __init__(self) -> None:
        # Open for as long as an array is in it.
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="fedmt-", buffering=1 << 20)  # noqa: SIM115
        self._end = 0

    def put(self, record: ArrayRecord) -> ArrayRecord:
        self._file.seek(self._end)
        end = self._end
        stored = ArrayRecord()
        for name, array in record.items():
            values = raw_values(array)
            stored[name] = StoredArray(read_head(array), self, end)
            self._file.write(values)
            end += values.nbytes
        self._file.flush()
        self._end = end
        return stored

    def view(self, offset: int, size: int) -> memoryview:
        """See `Storage`."""
        out = memoryview(np.empty(size, np.uint8).data)
        done = 0
        while done < size:
            got = os.preadv(self._file.fileno(), [out[done:]], offset + done)
            if not got:
                raise OSError(
                    f"the file of a turn's updates ends at {offset + done}, expected {size - done} more"
                )
            done += got
        return out
