"""The record of a benchmark: one JSON file with everything its tables are made of."""

from __future__ import annotations

import math
import os
import platform
import re
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import psutil

from fedmt_flower.bench.spread import Spread
from fedmt_flower.device.backends import facts
from fedmt_flower.errors import ConfigError

Json = Any
"""What JSON can hold."""

_VERSIONED = ("fedmt_flower", "torch", "torchvision", "flwr", "numpy", "nvidia-ml-py")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A goal and whether it was reached.

    Parameters
    ----------
    ci95
        95 % confidence interval of `value`; None is a bound that one repeat cannot give.
    met
        Whether the bound of `ci95` that is nearer to missing still reaches `goal`: a bar counts only when
        the spread leaves no doubt. A bar on a single run has nothing but its value.
    """

    name: str
    goal: float
    value: float
    ci95: tuple[float | None, float | None]
    met: bool

    @staticmethod
    def at_least(name: str, goal: float, measured: Spread) -> Bar:
        """A bar that the lower bound of `measured` must reach."""
        return Bar._of(name, goal, measured, measured.ci95[0] >= goal)

    @staticmethod
    def at_most(name: str, goal: float, measured: Spread) -> Bar:
        """A bar that the upper bound of `measured` must keep."""
        return Bar._of(name, goal, measured, measured.ci95[1] <= goal)

    @staticmethod
    def counted(name: str, goal: float, value: float, met: bool) -> Bar:
        """A bar on something counted, that has no spread."""
        return Bar(name=name, goal=goal, value=value, ci95=(value, value), met=met)

    @staticmethod
    def once(name: str, goal: float, value: float) -> Bar:
        """A bar that the `value` of a run too long to be repeated must reach."""
        return Bar(name=name, goal=goal, value=value, ci95=(None, None), met=value >= goal)

    @staticmethod
    def _of(name: str, goal: float, measured: Spread, met: bool) -> Bar:
        low, high = (bound if math.isfinite(bound) else None for bound in measured.ci95)
        return Bar(name=name, goal=goal, value=measured.mean, ci95=(low, high), met=met)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One repeat of one cell of a benchmark: `values` as measured, `flags` for what was odd about it."""

    cell: str
    repeat: int
    values: dict[str, Json]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a benchmark ran; `kind` names its folder among the results."""

    kind: str
    gpu: str
    multiprocessors: int
    driver: str
    cuda: str
    cpus: int
    memory_gb: int
    system: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A benchmark's record.

    Parameters
    ----------
    name, claim
        The benchmark, and what it is to show.
    machine, versions, command, date
        Where, with what and how it was run; `date` is ISO 8601 in UTC.
    seconds
        Time it took, the runs that it resumed included.
    settings
        What it was run with.
    complete
        Whether every cell has all its repeats.
    samples
        Every repeat, in the order in which they were taken.
    facts
        What was found besides, by name.
    bars
        Its goals.
    """

    name: str
    claim: str
    machine: Machine
    versions: dict[str, str]
    command: str
    date: str
    seconds: float
    settings: dict[str, Json]
    complete: bool
    samples: tuple[Sample, ...]
    facts: dict[str, Json] = field(default_factory=dict)
    bars: tuple[Bar, ...] = ()

    def cells(self) -> tuple[str, ...]:
        """The names of the cells, in the order of their first sample."""
        return tuple(dict.fromkeys(sample.cell for sample in self.samples))

    def of(self, cell: str) -> tuple[Sample, ...]:
        """The samples of `cell`, by repeat."""
        return tuple(sorted((s for s in self.samples if s.cell == cell), key=lambda sample: sample.repeat))


def save(result: Result, path: Path) -> None:
    """Write `result` aside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    aside.replace(path)


def load(path: Path) -> Result:
    """Read a record; ConfigError if the file is not one."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Result, strict=False)
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"{path}: expected the record of a benchmark ({error}); run the benchmark again"
        ) from error


def this_machine(gpu_index: int | None) -> Machine:
    """This host, and its GPU `gpu_index` where one is used."""
    card = None if gpu_index is None else facts.gpu(gpu_index)
    return Machine(
        kind=kind_of(card.name) if card else "cpu",
        gpu=card.name if card else "",
        multiprocessors=card.multiprocessors if card else 0,
        driver=card.driver if card else "",
        cuda="{}.{}".format(*card.cuda) if card else "",
        cpus=len(os.sched_getaffinity(0)),
        memory_gb=round(psutil.virtual_memory().total / 2**30),
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
    )


def kind_of(gpu: str) -> str:
    """The folder of a GPU's results: ``NVIDIA H100 80GB HBM3`` becomes ``h100``."""
    model = re.split(r"[ -]\d+ ?GB", gpu.removeprefix("NVIDIA "))[0]
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def installed() -> dict[str, str]:
    """Versions of what a measurement depends on."""
    found = {}
    for name in _VERSIONED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree, or not needed by this benchmark
            continue
    return found
