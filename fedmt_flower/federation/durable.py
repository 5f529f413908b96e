"""Files that are whole whenever the process or the host stops."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fedmt_flower.errors import FedMTError


def replace_file(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """Replace `target` by what `write` writes: aside, then renamed, each lasting before the next begins.

    What was there stays if that fails, or if the process is killed in it; ``.<name>.aside`` may then be left.
    """
    aside = aside_of(target)
    try:
        with aside.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def aside_of(target: Path) -> Path:
    """Where the next content of `target` is written."""
    return target.with_name(f".{target.name}.aside")


def extend_file(target: Path, content: bytes) -> None:
    """Add `content` to `target`: all of it, or none unless the process is killed."""
    with target.open("ab", buffering=0) as file:
        before = os.fstat(file.fileno()).st_size
        try:
            remaining = memoryview(content)
            while remaining:
                remaining = remaining[file.write(remaining) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(before)
            raise


@contextmanager
def guarded(kind: type[FedMTError], where: str, what: str) -> Iterator[None]:
    """Tell a failure of the file system as an error of `kind`, in one line that says `where` and `what`."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise kind(f"{where}: {what}: {cause}; what was written before is intact") from error
