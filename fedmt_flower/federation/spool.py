"""Room for the updates of a turn: a few in memory, the others in a file without a name."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from flwr.app import ArrayRecord

from fedmt_flower.federation.arrays import Region, StoredArray, raw_values, read_head
from fedmt_flower.federation.shelf import Shelf

_log = logging.getLogger("flwr.fedmt")

IN_MEMORY_BYTES = 256 << 20
"""What is kept in memory; half a gigabyte saved no time beside a file that is written meanwhile."""


class Spool:
    """Keeps records of arrays until they are aggregated.

    What a mean weighs an update by is known when the last has come, so every update is kept until then:
    in memory up to `limit` bytes, then in a file of the directory for temporary files (``$TMPDIR``). It has
    no name and its room is free again when its last array is gone. An array in it is an Array like any
    other, whose values are read whenever they are asked for.
    """

    def __init__(self, limit: int = IN_MEMORY_BYTES) -> None:
        self._left = limit
        self._shelf: Shelf | None = None
        self._writer = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[bool] | None = None

    def put(self, record: ArrayRecord) -> None:
        """Have the values of `record` lie here; to whoever reads it, it is the same.

        They are written while the caller goes on; at most one record waits for that. Once the disk has no
        room, what comes stays in memory.
        """
        size = sum(read_head(array).size for array in record.values())
        if size <= self._left:
            self._left -= size
            return
        if self._writing is not None and not self._writing.result():
            return
        regions: dict[Region, None] = {}
        for name, array in record.items():
            if not isinstance(array, StoredArray):
                array = record[name] = StoredArray(read_head(array), Region(raw_values(array)), 0)
            regions[array.region] = None
        self._writing = self._writer.submit(self._move, list(regions))

    def expect(self, records: Iterable[ArrayRecord]) -> None:
        """Say that `records` will be read in this order."""
        if self._writing is not None and self._writing.result() and self._shelf is not None:
            arrays = (array for record in records for array in record.values())
            regions = dict.fromkeys(array.region for array in arrays if isinstance(array, StoredArray))
            self._shelf.expect(regions)

    def _move(self, regions: list[Region]) -> bool:
        """Have `regions` lie in the file; whether there was room for them."""
        try:
            self._shelf = self._shelf or Shelf()
            self._shelf.put(regions)
        except OSError as error:
            _log.warning("updates stay in memory: %s: %s", tempfile.gettempdir(), error)
            return False
        return True
