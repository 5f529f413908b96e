"""The folder of a run's checkpoints: a file per round, the last two of which are kept, and the rounds so far.

``round-<number>.npz`` is what `numpy.load` reads: every array in npy form, and ``state.json``. Its checksums
tell a whole file from a broken one. ``history.jsonl`` has a line per round.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from fedmt_flower.domain.history import FederationRound
from fedmt_flower.errors import FederationError
from fedmt_flower.federation.durable import extend_file, guarded, replace_file
from fedmt_flower.federation.state import Frozen, Node

_log = logging.getLogger("flwr.fedmt")

_KEPT = 2
_FORMAT = 1
_STATE = "state.json"
_HISTORY = "history.jsonl"
_NAME = re.compile(r"round-(\d{6,})\.npz")
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    KeyError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)
"""What zipfile and json raise for a file with any bit changed or missing."""


class CheckpointError(FederationError):
    """Checkpoints that cannot be written, read or gone on from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Where a run stood when `round` was over; round 0 is its beginning.

    Parameters
    ----------
    round, seed
        The round, and the seed of the run.
    identity
        By task, what must be the same for the run to go on: its strategy and the shape of its model.
    state
        Each task's model, its strategy and its metrics so far.
    """

    round: int
    seed: int
    identity: Mapping[str, Node]
    state: Frozen


class CheckpointFolder:
    """The checkpoints at `path`, locked against a second run until `close`.

    Raises
    ------
    CheckpointError
        If the folder cannot be made or locked, or has other things in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise CheckpointError(f"checkpoint {path}: cannot be a folder: {error.strerror}") from error
        try:
            self._claim()
        except BaseException:
            self.close()
            raise
        self._unwritten: list[bytes] = []

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._lock)

    def newest(self) -> Checkpoint | None:
        """The last round that is whole; None if there never was one.

        A broken file is set aside with a warning.

        Raises
        ------
        CheckpointError
            If every file is broken.
        """
        causes = []
        for path in reversed(self._files()):
            try:
                found = _read(path)
            except _BROKEN as error:
                causes.append(f"{path.name}: {str(error) or type(error).__name__}")
                continue
            for cause in causes:
                _log.warning("Checkpoint %s: %s; round %d is used instead", self.path, cause, found.round)
            return found
        if causes:
            raise CheckpointError(
                f"checkpoint {self.path}: none can be read ({'; '.join(causes)}); remove it to begin anew"
            )
        return None

    def save(self, checkpoint: Checkpoint, played: FederationRound | None = None) -> None:
        """Write a checkpoint and `played`, its round, and remove what is then too old.

        Raises
        ------
        CheckpointError
            If it cannot be written; the checkpoints before it are intact.
        """
        with self._guarded(f"round {checkpoint.round} not written"):
            if played is not None:
                self._append(played)
            target = self.path / f"round-{checkpoint.round:06d}.npz"
            replace_file(target, lambda file: _write(file, checkpoint))
            self._tidy()

    def go_on_after(self, number: int) -> tuple[FederationRound, ...]:
        """The rounds up to `number`; all that there is of later ones is removed."""
        with self._guarded("cannot be gone on from"):
            for path in self._files():
                if _number(path) > number:
                    path.unlink()
            self._tidy()
            rounds = {played.round: played for played in self._history() if played.round <= number}
            if lost := number - len(rounds):
                _log.warning("Checkpoint %s: %s lacks %d of %d rounds", self.path, _HISTORY, lost, number)
            content = b"".join(map(_line, rounds.values()))
            replace_file(self.path / _HISTORY, lambda file: file.write(content))
        return tuple(rounds.values())

    def _history(self) -> Iterator[FederationRound]:
        history = self.path / _HISTORY
        for line in history.read_bytes().splitlines() if history.exists() else ():
            # A kill may cut a line short.
            with suppress(ValueError):
                yield msgspec.convert(json.loads(line), FederationRound)

    def _claim(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {self.path}: another run writes there; stop it, or name another folder"
            ) from error
        others = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        if others and not self._files():
            raise CheckpointError(
                f"checkpoint {self.path}: has {others[0]!r} in it but no checkpoint; name a folder of its own"
            )

    def _files(self) -> list[Path]:
        return sorted((path for path in self.path.iterdir() if _NAME.fullmatch(path.name)), key=_number)

    def _tidy(self) -> None:
        for old in self._files()[:-_KEPT]:
            old.unlink()

    def _append(self, played: FederationRound) -> None:
        self._unwritten.append(_line(played))
        extend_file(self.path / _HISTORY, b"".join(self._unwritten))
        self._unwritten.clear()

    def _guarded(self, what: str) -> AbstractContextManager[None]:
        return guarded(CheckpointError, f"checkpoint {self.path}", what)


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _line(played: FederationRound) -> bytes:
    # Unlike msgspec's own JSON, json writes a metric that is not a number as it is.
    return json.dumps(msgspec.to_builtins(played)).encode() + b"\n"


def _write(file: BinaryIO, checkpoint: Checkpoint) -> None:
    head = {
        "format": _FORMAT,
        "round": checkpoint.round,
        "seed": checkpoint.seed,
        "identity": checkpoint.identity,
        "state": checkpoint.state.node,
        "arrays": len(checkpoint.state.blobs),
    }
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(_STATE, json.dumps(head))
        for number, blob in enumerate(checkpoint.state.blobs):
            archive.writestr(f"{number}.npy", blob)


def _read(path: Path) -> Checkpoint:
    with zipfile.ZipFile(path) as archive:
        head = json.loads(archive.read(_STATE))
        if head["format"] != _FORMAT:
            raise ValueError(f"format {head['format']}, expected {_FORMAT}: another version wrote it")
        blobs = [archive.read(f"{number}.npy") for number in range(head["arrays"])]
    if head["round"] != _number(path):
        raise ValueError(f"holds round {head['round']}")
    return Checkpoint(
        round=head["round"],
        seed=head["seed"],
        identity=head["identity"],
        state=Frozen(head["state"], blobs),
    )
