"""The file of a profile: what was measured, a JSON object a line, written as it is measured.

Each object has a ``kind``. The first line is the ``profile``, what is sampled and from what; ``device``
and ``task`` lines tell features, ``rates`` lines hold one measurement each, and ``missing`` lines the
settings that could not be measured, with the reason. Their other fields are those of the classes below.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, StepKind, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.features import quarter_share

VERSION: Final = 1


class Entry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag=str.lower):
    """A line of the file."""


class Sampled(msgspec.Struct, frozen=True, kw_only=True):
    """A task of a profile.

    `model` labels what it trains; `parameters` are its own, written as text; `batches` are the batch sizes
    in samples that it is measured with, `reference` among them; `levels` are its budgets in per cent, if it
    cannot have all of the profile's.
    """

    task: str
    model: str
    parameters: str
    reference: int
    batches: tuple[int, ...]
    levels: tuple[float, ...] = ()


class Profile(Entry, frozen=True, kw_only=True):
    """What is sampled: `levels` and `quarter` are budgets in per cent that the device has, `seed` draws.

    `origin` says where and how: machine, versions, command and date.
    """

    version: int = VERSION
    tasks: tuple[Sampled, ...]
    levels: tuple[float, ...]
    quarter: float
    seed: int
    backend: str
    origin: dict[str, str] = {}

    def matches(self, other: Profile) -> bool:
        """Whether samples of both may be in one file: all but their origin is the same."""
        return msgspec.structs.replace(self, origin={}) == msgspec.structs.replace(other, origin={})


class Device(Entry, frozen=True, kw_only=True):
    """The device."""

    features: DeviceFeatures


class Task(Entry, frozen=True, kw_only=True):
    """What a sample of a task costs; fields as in `TaskFeatures`."""

    task: str
    flops: float
    traffic: float
    step: StepKind = StepKind.EAGER


class Rates(Entry, frozen=True, kw_only=True):
    """Tasks that ran together: batch sizes, budgets (%) and rates (samples/s) in the order of `tasks`.

    `levels` is what the budgets came to (SMs or threads), `steps` how many steps each rate rests on, `at_s`
    the second of the profile, and `spoiled` what spoiled earlier attempts.
    """

    tasks: tuple[str, ...]
    batches: tuple[int, ...]
    budgets: tuple[float, ...]
    rates: tuple[float, ...]
    levels: tuple[int, ...]
    steps: tuple[int, ...]
    at_s: float
    spoiled: tuple[str, ...] = ()


class Missing(Entry, frozen=True, kw_only=True):
    """A setting that could not be measured, and why."""

    tasks: tuple[str, ...]
    batches: tuple[int, ...]
    budgets: tuple[float, ...]
    why: str


Line = Profile | Device | Task | Rates | Missing

_decoder = msgspec.json.Decoder(Line)


class SamplesFile:
    """A profile's file, open for more.

    Parameters
    ----------
    path
        The file; made if it is not there.
    profile
        What will be sampled.
    resume
        Whether to go on with what the file has; else it is begun anew.

    Raises
    ------
    ConfigError
        If the file is to be resumed but is of another profile, or no profile at all.
    """

    def __init__(self, path: Path, profile: Profile, *, resume: bool) -> None:
        self.path = path
        self.entries: list[Line] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume and path.exists():
            self.entries = read_lines(path)
            begun = self.entries[0]
            if not (isinstance(begun, Profile) and begun.matches(profile)):
                raise ConfigError(
                    f"{path}: begun with other tasks, batch sizes or budgets; take the same, or another file"
                )
            # A kill may have cut off the last line; the file is then written again without it.
            self._write("wb", self.entries)
        else:
            self._write("wb", [profile])
            self.entries = [profile]

    @property
    def settings(self) -> int:
        """Settings that were measured, or found not to be measurable."""
        return sum(isinstance(entry, Rates | Missing) for entry in self.entries)

    @property
    def described(self) -> set[str]:
        """Tasks whose features are known."""
        return {entry.task for entry in self.entries if isinstance(entry, Task)}

    @property
    def seconds(self) -> float:
        """When the last measurement was taken, in seconds of the profile."""
        return max((entry.at_s for entry in self.entries if isinstance(entry, Rates)), default=0.0)

    def add(self, *entries: Line) -> None:
        """Write `entries` at the end."""
        self.entries += entries
        self._write("ab", entries)

    def _write(self, mode: str, entries: Iterable[Line]) -> None:
        with self.path.open(mode) as file:
            file.write(b"".join(msgspec.json.encode(entry) + b"\n" for entry in entries))


def read_lines(path: Path) -> list[Line]:
    """The lines of a profile's file, but for a last one that was cut off.

    Raises
    ------
    ConfigError
        If the file is not there or not a profile's.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; fedmt profile makes such a file") from error
    entries: list[Line] = []
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_decoder.decode(line))
        except msgspec.DecodeError as error:
            if number == len(lines) > 1:
                break
            raise ConfigError(f"{path}, line {number}: not what fedmt profile writes ({error})") from error
    if not entries or not isinstance(entries[0], Profile):
        raise ConfigError(f"{path}: does not begin as a file of fedmt profile does")
    if entries[0].version != VERSION:
        raise ConfigError(f"{path}: of version {entries[0].version}, expected {VERSION}; profile again")
    return entries


def read_samples(path: Path) -> tuple[CoRunSample, ...]:
    """The measurements of a profile, for a model to be fitted to.

    P_bᵢ is the median of a task's solo rates with the whole device and its reference batch size; a task
    that has none is left out with all its samples.

    Raises
    ------
    ConfigError
        If the file is not a profile's.
    """
    return samples_of(read_lines(path))


def samples_of(entries: Sequence[Line]) -> tuple[CoRunSample, ...]:
    """As `read_samples`, of lines that were read before; the first is the profile."""
    device = next((entry for entry in entries if isinstance(entry, Device)), None)
    if device is None:
        return ()
    features = task_features(entries)
    return tuple(
        CoRunSample(
            device=device.features,
            tasks=tuple(features[name] for name in entry.tasks),
            batches=entry.batches,
            budgets=entry.budgets,
            rates=entry.rates,
        )
        for entry in entries
        if isinstance(entry, Rates) and features.keys() >= set(entry.tasks)
    )


def task_features(entries: Sequence[Line]) -> dict[str, TaskFeatures]:
    """The features of every task that was described and measured alone, by name."""
    profile = entries[0]
    assert isinstance(profile, Profile)
    alone: dict[tuple[str, int, float], list[float]] = {}
    for entry in entries:
        if isinstance(entry, Rates) and len(entry.tasks) == 1:
            alone.setdefault((entry.tasks[0], entry.batches[0], entry.budgets[0]), []).append(entry.rates[0])
    costs = {entry.task: entry for entry in entries if isinstance(entry, Task)}
    whole, found = max(profile.levels), {}
    for sampled in profile.tasks:
        cost, solo = costs.get(sampled.task), alone.get((sampled.task, sampled.reference, whole))
        if cost is None or solo is None:
            continue
        rate = statistics.median(solo)
        quarter = alone.get((sampled.task, sampled.reference, profile.quarter))
        found[sampled.task] = TaskFeatures(
            task=sampled.task,
            model=sampled.model,
            flops=cost.flops,
            traffic=cost.traffic,
            solo_rate=rate,
            reference_batch=sampled.reference,
            step=cost.step,
            quarter_share=quarter_share(statistics.median(quarter or solo) / rate, profile.quarter),
            batch_rates=tuple(
                (batch, statistics.median(taken))
                for batch in sampled.batches
                if (taken := alone.get((sampled.task, batch, whole)))
            ),
        )
    return found
