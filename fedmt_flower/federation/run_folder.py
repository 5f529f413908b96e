"""The folder of a run: what is written there, and how it is read back.

``config.yaml`` (the resolved configuration), ``rounds.jsonl`` (an entry per round, site and task),
``summary.json``, ``trace.json`` (the timelines, observed and planned; open it in Perfetto or
chrome://tracing) and ``weights/<task>.safetensors`` (each task's final `state_dict`).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from fedmt_flower.errors import FedMTError
from fedmt_flower.federation.durable import extend_file, guarded, replace_file
from fedmt_flower.federation.record import Entry, Summary
from fedmt_flower.federation.trace import trace

CONFIG = "config.yaml"
ROUNDS = "rounds.jsonl"
SUMMARY = "summary.json"
TRACE = "trace.json"
TIMELINE = "timeline.png"
LOG = "log.txt"
SWEEP = "sweep.json"
WEIGHTS = "weights"

_T = TypeVar("_T")


class RunFolderError(FedMTError):
    """The folder of a run cannot be made, written or read."""


class _Folder:
    """A folder whose files are written aside and then renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def make(self) -> None:
        """Make the folder; RunFolderError if it cannot be made, or something is there already."""
        with self._guarded("cannot be made"):
            # A hidden file is what a kill left of one that was being written.
            if self.path.is_dir() and any(not path.name.startswith(".") for path in self.path.iterdir()):
                raise RunFolderError(
                    f"run folder {self.path}: exists already and is kept as it is; name another one"
                )
            self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, content: bytes) -> None:
        """Replace the file `name` by `content`; what was there stays if that fails."""
        target = self.path / name
        with self._guarded(f"{name} not written"):
            target.parent.mkdir(exist_ok=True)
            replace_file(target, lambda file: file.write(content))

    def _decode(self, name: str, content: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(content, type=kind)
        except msgspec.DecodeError as error:
            raise RunFolderError(f"run folder {self.path}: {name} cannot be read: {error}") from error

    def _guarded(self, what: str) -> AbstractContextManager[None]:
        return guarded(RunFolderError, f"run folder {self.path}", what)


class RunFolder(_Folder):
    """The folder of one run."""

    @classmethod
    def create(cls, path: Path, config: str, *, again: bool = False) -> RunFolder:
        """Make the folder and save `config` in it.

        If `again`, that of a run of the very same configuration is taken, unless that run goes on still.

        Raises
        ------
        RunFolderError
            If there is something else at `path` already, or it cannot be written.
        """
        folder = cls(path)
        if not (again and folder._is_of(config)):
            folder.make()
            folder.write(CONFIG, config.encode())
        if again:
            folder._claim()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of an earlier run; RunFolderError if there is none at `path`."""
        if not (path / CONFIG).is_file():
            raise RunFolderError(f"run folder {path}: no run there (it has no {CONFIG})")
        return cls(path)

    def _is_of(self, config: str) -> bool:
        path = self.path / CONFIG
        return path.is_file() and path.read_bytes() == config.encode()

    def release(self) -> None:
        """Let a run of the same configuration have the folder again."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _claim(self) -> None:
        with self._guarded("cannot be locked"):
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.release()
                raise RunFolderError(
                    f"run folder {self.path}: a run writes there now; stop it, or name another folder"
                ) from None

    def append(self, lines: Iterable[Entry], *, first: bool = False) -> None:
        """Add `lines` to the rounds, all of them or none; the `first` of a run replace what was there."""
        content = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        if first:
            self.write(ROUNDS, content)
            return
        with self._guarded(f"{ROUNDS} not extended"):
            extend_file(self.path / ROUNDS, content)

    def save_summary(self, summary: Summary) -> None:
        """Replace the summary."""
        self.write(SUMMARY, msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")

    def save_weights(self, task: str, weights: Mapping[str, NDArray[Any]]) -> tuple[str, str]:
        """Save a task's final weights; return the file within the folder, and the line that loads it."""
        name = f"{WEIGHTS}/{task}.safetensors"
        # safetensors reads an array's memory as it lies, whatever its strides.
        self.write(name, save({key: np.asarray(array, order="C") for key, array in weights.items()}))
        return name, f'model.load_state_dict(safetensors.torch.load_file("{self.path / name}"))'

    def save_trace(self) -> None:
        """Write the observed timelines of all rounds so far as a Chrome trace."""
        self.write(TRACE, msgspec.json.encode(trace(self.rounds())))

    def rounds(self) -> tuple[Entry, ...]:
        """The entries written so far."""
        path = self.path / ROUNDS
        lines = path.read_bytes().splitlines() if path.exists() else []
        return tuple(self._decode(ROUNDS, line, Entry) for line in lines)

    def summary(self) -> Summary:
        """The summary; RunFolderError if the run has not come to one."""
        path = self.path / SUMMARY
        if not path.exists():
            raise RunFolderError(f"run folder {self.path}: no {SUMMARY}; no round of that run ended")
        return self._decode(SUMMARY, path.read_bytes(), Summary)


class SweepFolder(_Folder):
    """The folder of a sweep, with its runs' folders in it."""

    @classmethod
    def create(cls, path: Path, runs: Mapping[str, Mapping[str, str]]) -> SweepFolder:
        """Make the folder for `runs`, each the name of its folder and its own overrides by key."""
        folder = cls(path)
        folder.make()
        folder.write(SWEEP, msgspec.json.format(msgspec.json.encode(runs), indent=2) + b"\n")
        return folder

    @classmethod
    def find(cls, path: Path) -> SweepFolder | None:
        """The sweep at `path`, or None if there is none."""
        return cls(path) if (path / SWEEP).is_file() else None

    def runs(self) -> dict[str, dict[str, str]]:
        """The names of the runs' folders, and the overrides by key that set each apart."""
        return self._decode(SWEEP, (self.path / SWEEP).read_bytes(), dict[str, dict[str, str]])
