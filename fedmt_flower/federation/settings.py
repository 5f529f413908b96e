"""The settings of a federation: what a configuration means once it is checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Coordination
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import TaskRules
from fedmt_flower.domain.task import Scalar, Task, check_unique
from fedmt_flower.errors import ConfigError, expected_one_of
from fedmt_flower.federation.coordination import read_coordination
from fedmt_flower.federation.reading import collect, read
from fedmt_flower.federation.strategies import StrategySettings, build_fedmt
from fedmt_flower.planning.allocation import plan_round

_SHORT = {"model": "models", "data": "data", "objective": "objectives", "optimizer": "optimizers"}
"""The fields of a task that may be a short name, and the section of the catalogue that explains it."""


class Partition(StrEnum):
    """How the classes of a data set are spread over the sites."""

    IID = "iid"
    DIRICHLET = "dirichlet"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """How data is shared out.

    Parameters
    ----------
    partition
        How the sites' shares differ.
    alpha
        The Dirichlet distribution's concentration, above 0: the smaller, the more unlike the shares.
    site_volumes
        Ratio of the sites' volumes; empty: equal.
    task_volumes
        Ratio of the tasks' volumes, in the tasks' order; empty: each task uses all its data.
    """

    partition: Partition = Partition.IID
    alpha: float = 1.0
    site_volumes: tuple[float, ...] = ()
    task_volumes: tuple[float, ...] = ()

    def parameters(self, task: int) -> dict[str, Scalar]:
        """What the data function of the task at place `task` is told, by the names of its parameters."""
        largest = max(self.task_volumes, default=1.0)
        return {
            "partition": str(self.partition),
            "alpha": self.alpha,
            "site_volumes": ":".join(f"{volume:g}" for volume in self.site_volumes),
            "volume": self.task_volumes[task] / largest if self.task_volumes else 1.0,
        }

    def __post_init__(self) -> None:
        problems = []
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            problems.append(f"alpha: got {self.alpha}, expected more than 0")
        for name, volumes in (("site_volumes", self.site_volumes), ("task_volumes", self.task_volumes)):
            if not all(math.isfinite(volume) and volume > 0 for volume in volumes):
                problems.append(f"{name}: got {list(volumes)}, expected numbers above 0, or none")
        if problems:
            raise ConfigError(*problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationSettings:
    """Who takes part, for how long, and how each task is aggregated.

    Parameters
    ----------
    rounds
        Rounds of training, 1 or more.
    sites
        Sites that a simulation has, and nodes that any run waits for before its first round; 1 or more.
    join_timeout_s
        Seconds after which a run begins with the sites that are there.
    seed
        Everything random derives from it; 0 or more.
    timeout_s
        Seconds after which the server gives up on a site's answer.
    checkpoint
        Folder that is given a checkpoint after every round, and from which the same run goes on after it was
        cut off; empty: none.
    strategy
        The strategy of every task that `strategies` does not name.
    strategies
        Strategies by task.
    rules
        What every task that `task_rules` does not name asks of each round.
    task_rules
        Rules by task.
    """

    rounds: int = 3
    sites: int = 3
    join_timeout_s: float = 30.0
    seed: int = 0
    timeout_s: float = 3600.0
    checkpoint: str = ""
    strategy: StrategySettings = field(default_factory=StrategySettings)
    strategies: Mapping[str, StrategySettings] = field(default_factory=dict)
    rules: TaskRules = field(default_factory=TaskRules)
    task_rules: Mapping[str, TaskRules] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"rounds": 1, "sites": 1, "seed": 0}
        problems = [
            f"{name}: got {getattr(self, name)}, expected {bound} or more"
            for name, bound in least.items()
            if getattr(self, name) < bound
        ]
        problems += [
            f"{name}: got {getattr(self, name)}, expected more than 0 seconds"
            for name in ("timeout_s", "join_timeout_s")
            if not getattr(self, name) > 0
        ]
        if problems:
            raise ConfigError(*problems)

    def strategies_of(self, tasks: Iterable[str]) -> dict[str, StrategySettings]:
        """The strategy of each of `tasks`."""
        return {task: self.strategies.get(task, self.strategy) for task in tasks}

    def rules_of(self, tasks: Iterable[str]) -> dict[str, TaskRules]:
        """The rules of each of `tasks`."""
        return {task: self.task_rules.get(task, self.rules) for task in tasks}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """A whole configuration.

    `folder` is where the run's results go, `text` the resolved configuration as YAML.
    """

    folder: Path
    tasks: tuple[Task, ...]
    data: DataSettings
    allocation: Allocation
    coordination: Coordination
    device: DeviceSettings
    federation: FederationSettings
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Top:
    folder: str
    tasks: dict[str, Any]
    data: dict[str, Any]
    allocation: dict[str, Any]
    batching: dict[str, Any]
    overlap: dict[str, Any]
    network: dict[str, Any]
    device: dict[str, Any]
    federation: dict[str, Any]


Catalogue = Mapping[str, Mapping[str, str]]
"""Import paths by short name, by section: ``models``, ``data``, ``objectives``, ``optimizers``."""


def read_settings(
    content: Mapping[str, Any], text: str, catalogue: Catalogue, problems: list[str]
) -> Settings:
    """Turn a composed configuration into settings.

    Parameters
    ----------
    content
        The configuration as plain values.
    text
        The same as YAML.
    catalogue
        What short names stand for.
    problems
        What is already known to be wrong.

    Raises
    ------
    ConfigError
        With `problems` and everything wrong with `content`.
    """
    problems = list(problems)
    top = read(_Top, content, "", problems)
    if top is None:
        raise ConfigError(*problems)
    tasks = [_read_task(name, node, catalogue, problems) for name, node in top.tasks.items()]
    data = read(DataSettings, top.data, "data", problems)
    allocation = read(Allocation, top.allocation, "allocation", problems)
    device = read(DeviceSettings, top.device, "device", problems)
    federation = read(FederationSettings, top.federation, "federation", problems)
    names = tuple(top.tasks)
    coordination = read_coordination(top.batching, top.overlap, top.network, names, problems)
    if coordination and device and device.backend is Backend.INLINE and coordination.network.link:
        problems.append("network: device=inline emulates no link; use device=cpu or mps, or network=none")
    if data and federation:
        problems += _volume_problems(data, len(names), federation.sites)
    if federation:
        problems += [
            f"federation.{key}: there is no task {name!r}; {expected_one_of(name, names)}"
            for key in ("strategies", "task_rules")
            for name in getattr(federation, key)
            if name not in names
        ]
    known = tuple(task for task in tasks if task)
    if len(known) == len(tasks):
        collect(lambda: check_unique(known), "", problems)
    if names and allocation and allocation.policy is not Policy.FEDMT:
        collect(lambda: plan_round(allocation, names), "", problems)
    distinct = {task.name.casefold(): task.name for task in known}.values()
    if distinct and federation:
        collect(
            lambda: build_fedmt(federation.strategies_of(distinct), checkpoint=federation.checkpoint),
            "",
            problems,
        )
    if problems or not (data and allocation and coordination and device and federation):
        raise ConfigError(*problems)
    return Settings(
        folder=Path(top.folder),
        tasks=tuple(
            _sharing(task, data.parameters(place), federation.seed) for place, task in enumerate(known)
        ),
        data=data,
        allocation=allocation,
        coordination=coordination,
        device=device,
        federation=federation,
        text=text,
    )


def _read_task(name: str, node: Any, catalogue: Catalogue, problems: list[str]) -> Task | None:
    where = f"tasks.{name}"
    if not isinstance(node, Mapping):
        problems.append(f"{where}: got {node!r}, expected a task with a model and data")
        return None
    values = {"name": name} | dict(node)
    count = len(problems)
    for key, section in _SHORT.items():
        short, names = values.get(key), catalogue[section]
        if isinstance(short, str) and ":" not in short:
            if short in names:
                values[key] = names[short]
            else:
                problems.append(
                    f"{where}.{key}: there is no {key} {short!r}; expected an import path like "
                    f"package.module:object, or {expected_one_of(short, names).removeprefix('expected ')}"
                )
    places = values.get("python_path")
    if isinstance(places, list):
        values["python_path"] = [str(Path(str(place)).absolute()) for place in places]
    return read(Task, values, where, problems) if len(problems) == count else None


def _sharing(task: Task, data: Mapping[str, Scalar], seed: int) -> Task:
    """`task` with the way in which data is shared out, unless its own parameters say otherwise."""
    return dataclasses.replace(task, parameters={**data, "partition_seed": seed, **task.parameters})


def _volume_problems(data: DataSettings, tasks: int, sites: int) -> list[str]:
    lengths = (
        ("site_volumes", data.site_volumes, sites, "sites"),
        ("task_volumes", data.task_volumes, tasks, "tasks"),
    )
    return [
        f"data.{name}: got {len(volumes)} numbers for {count} {what}, expected one for each, or none"
        for name, volumes, count, what in lengths
        if volumes and len(volumes) != count
    ]
