"""Weights in sealed memory files, the form in which they pass between processes.

A memory file (memfd) has no name on any file system, goes with its last holder and, once sealed, can
neither change nor shrink under a reader. Its content is packed, as in a message: what comes from one is
written as it is, and what was trained goes into the next as it lies here, mapped and not copied.
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
from collections.abc import Mapping
from threading import Thread
from typing import Any, Self

from numpy.typing import NDArray

from fedmt_flower.device.ipc.packed import Packed, pieces
from fedmt_flower.errors import ProtocolError

log = logging.getLogger(__name__)

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def write(name: str, weights: Mapping[str, NDArray[Any]]) -> int:
    """Write `weights` into a new sealed memory file, shown as `name` in ``/proc/<pid>/maps``.

    Returns
    -------
    int
        The file's descriptor; the caller closes it.

    Raises
    ------
    ValueError
        If an array holds no plain numbers.
    """
    fd = _create(name)
    try:
        _fill(fd, weights)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Draft:
    """A memory file that is still to be written, whose pages are found meanwhile; closed as a context.

    That takes longer than to fill them: 0.06 s of 0.09 for 170 MB.

    Parameters
    ----------
    name
        As of `write`.
    size
        About how many bytes it will have; 0 if nobody knows.
    """

    def __init__(self, name: str, size: int = 0) -> None:
        self._fd = _create(name)
        self._reserving = Thread(target=self._reserve, args=(size,), name="reserving a memory file")
        self._reserving.start()

    def finish(self, weights: Mapping[str, NDArray[Any]]) -> int:
        """Write `weights`, as `write` does; the descriptor is closed with the draft."""
        self._reserving.join()
        _fill(self._fd, weights)
        return self._fd

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reserving.join()
        os.close(self._fd)

    def _reserve(self, size: int) -> None:
        try:
            if size:
                os.posix_fallocate(self._fd, 0, size)
        except OSError as error:
            log.info("no memory for %d bytes of weights is set aside: %s", size, error)


def read(fd: int) -> Packed:
    """The weights in the memory file `fd`, in the order in which they were written.

    They lie in a private mapping of the file, which goes with the last of them: nothing is copied
    until somebody writes to one, and then nobody else sees it. The caller still owns `fd`.

    Raises
    ------
    ProtocolError
        If the file is not sealed, or its content is not packed weights.
    """
    if not _is_sealed(fd):
        raise ProtocolError("weights: got a file that its sender can still change, expected a sealed memfd")
    try:
        return Packed(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    except ValueError as error:
        raise ProtocolError(f"weights: {error}") from error


def _create(name: str) -> int:
    return os.memfd_create(f"fedmt:{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def _fill(fd: int, weights: Mapping[str, NDArray[Any]]) -> None:
    """Have the file hold `weights` and nothing else, for good."""
    for piece in pieces(weights):
        _write_all(fd, memoryview(piece))
    os.ftruncate(fd, os.lseek(fd, 0, os.SEEK_CUR))
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _is_sealed(fd: int) -> bool:
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:
        return False
