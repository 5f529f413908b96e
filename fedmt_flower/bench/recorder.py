"""Repeats of many cells, interleaved, within a time budget, taken up again where they stopped."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec

from fedmt_flower.bench.result import Json, Result, Sample
from fedmt_flower.errors import ConfigError

_Item = TypeVar("_Item", bound=Hashable)


class Recorder:
    """Keeps the samples of one benchmark, each written to `path` as soon as it is taken.

    Parameters
    ----------
    path
        The file of samples, one JSON object a line.
    settings
        What the benchmark runs with; samples taken with other settings are not mixed with these.
    resume
        Whether to go on from the samples in `path`; else they are discarded.
    deadline
        Moment of the monotonic clock after which no further sample is begun.

    Raises
    ------
    ConfigError
        If `resume` is set and the file was begun with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Json], resume: bool, deadline: float) -> None:
        self.samples: list[Sample] = []
        self.deadline = deadline
        self._path = path
        self._began = time.monotonic()
        self._before_s = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            self._read(settings)
        else:
            path.write_bytes(msgspec.json.encode(settings) + b"\n")

    @property
    def seconds(self) -> float:
        """Time spent so far, resumed runs included."""
        return self._before_s + time.monotonic() - self._began

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative after it."""
        return self.deadline - time.monotonic()

    def shares(
        self, names: Sequence[str], until: float = math.inf, *, weights: Sequence[float] | None = None
    ) -> Iterator[tuple[str, float]]:
        """The names, each with the moment until which it has its share of the time.

        That is a part of what is left, when its turn comes, until the moment `until` or the deadline: an
        equal one, or one in proportion to `weights`.
        """
        end = min(self.deadline, until)
        parts = list(weights or [1.0] * len(names))
        for position, name in enumerate(names):
            now = time.monotonic()
            yield name, now + (end - now) * parts[position] / sum(parts[position:])

    def interleave(
        self,
        cells: Sequence[str],
        repeats: int,
        until: float = math.inf,
        *,
        alike: Callable[[str], Hashable] | None = None,
        expected_s: float = 0.0,
    ) -> Iterator[tuple[str, int]]:
        """The cells and repeats still to be taken: all cells once, then all again, in a new order each time.

        Ends when all are there, or when the next would probably outlast the moment `until` or the deadline:
        when it takes as long as the longest so far, and `expected_s` at least. See `shuffled` for `alike`.
        """
        deadline = min(self.deadline, until)
        longest = expected_s
        there = {(sample.cell, sample.repeat) for sample in self.samples}
        for repeat in range(repeats):
            for cell in shuffled(cells, repeat, alike):
                if (cell, repeat) in there:
                    continue
                begun = time.monotonic()
                if begun + longest > deadline:
                    return
                yield cell, repeat
                longest = max(longest, time.monotonic() - begun)

    def add(self, cell: str, repeat: int, values: dict[str, Json], flags: Sequence[str] = ()) -> None:
        """Keep one repeat of `cell`."""
        sample = Sample(cell=cell, repeat=repeat, values=as_read(values), flags=tuple(flags))
        self.samples.append(sample)
        with self._path.open("ab") as file:
            file.write(_line(sample, round(self.seconds, 3)))

    def take(self, cell: str, measure: Callable[[], dict[str, Json]]) -> dict[str, Json]:
        """The values of a cell that has one repeat only, measured unless they are there."""
        if (there := self.find(cell)) is not None:
            return there
        self.add(cell, 0, measure())
        return self.samples[-1].values

    def find(self, cell: str) -> dict[str, Json] | None:
        """The values of the first repeat of `cell` that was taken; None if there is none."""
        return next((sample.values for sample in self.samples if sample.cell == cell), None)

    def has_all(self, cells: Sequence[str], repeats: int) -> bool:
        """Whether every one of `cells` has all its repeats."""
        there = {(sample.cell, sample.repeat) for sample in self.samples}
        return all((cell, repeat) in there for cell in cells for repeat in range(repeats))

    def clear(self) -> None:
        """Forget every sample, for a benchmark whose samples mean something only all together."""
        self.samples.clear()
        with self._path.open("r+b") as file:
            file.readline()
            file.truncate()

    def discard(self) -> None:
        """Remove the file of samples, once they are in the benchmark's record."""
        self._path.unlink(missing_ok=True)

    def _read(self, settings: dict[str, Json]) -> None:
        head, *lines = self._path.read_bytes().splitlines()
        if msgspec.json.decode(head) != as_read(settings):
            raise ConfigError(
                f"{self._path}: begun with other settings ({head.decode()}); use the same, or do not resume"
            )
        if lines and not _is_json(lines[-1]):  # a kill cut it off
            lines.pop()
            self._path.write_bytes(b"\n".join([head, *lines]) + b"\n")
        for line in lines:
            entry = msgspec.json.decode(line)
            self.samples.append(msgspec.convert(entry["sample"], Sample))
            self._before_s = entry["seconds"]


def as_read(values: dict[str, Json]) -> dict[str, Json]:
    """`values` as they will be read again, whatever has been or is yet to be taken up: lists for tuples."""
    read: dict[str, Json] = msgspec.json.decode(msgspec.json.encode(values))
    return read


def unfold(result: Result, path: Path) -> None:
    """Write the samples of a record to the file `path`, which a `Recorder` can go on from."""
    path.write_bytes(
        msgspec.json.encode(result.settings)
        + b"\n"
        + b"".join(_line(sample, result.seconds) for sample in result.samples)
    )


def shuffled(
    items: Sequence[_Item], seed: int | str, alike: Callable[[_Item], Hashable] | None = None
) -> list[_Item]:
    """The items in an order drawn by `seed`.

    Those that are `alike`, which gives the same of both, come one after the other: what one needed in place
    is there for the next.
    """
    order = list(items)
    random.Random(seed).shuffle(order)
    if alike is None:
        return order
    kinds = {item: alike(item) for item in order}
    places = {kind: place for place, kind in enumerate(dict.fromkeys(kinds.values()))}
    return sorted(order, key=lambda item: places[kinds[item]])


def _line(sample: Sample, seconds: float) -> bytes:
    """What a file of samples has of one, taken when the benchmark had run for so long."""
    return msgspec.json.encode({"seconds": seconds, "sample": sample}) + b"\n"


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True
