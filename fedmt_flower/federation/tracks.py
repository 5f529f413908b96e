"""What a run keeps of each task, and how its arguments are told apart by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import Result, Strategy

from fedmt_flower.domain.round import TaskRules
from fedmt_flower.errors import ConfigError, TaskError
from fedmt_flower.federation.arrays import ArraySpec, spec_of

Configs = ConfigRecord | Mapping[str, ConfigRecord] | None
"""Configuration for all tasks, for some by name, or none."""

R = TypeVar("R", ArrayRecord, ConfigRecord)


@dataclass(slots=True, kw_only=True)
class Track:
    """One task's way through a run: its strategy, its current model and what came of it so far."""

    name: str
    strategy: Strategy
    arrays: ArrayRecord
    rules: TaskRules = field(default_factory=TaskRules)
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    evaluate_config: ConfigRecord = field(default_factory=ConfigRecord)
    result: Result = field(default_factory=Result)
    updates: int = 0

    @property
    def weighted_by(self) -> str:
        """The metric that the strategy weighs updates by; empty if it names none."""
        return str(getattr(self.strategy, "weighted_by_key", ""))

    def spec(self) -> dict[str, ArraySpec]:
        """What an update must be: as the model that is sent."""
        try:
            return spec_of(self.arrays)
        except ValueError as error:
            raise TaskError(f"task {self.name!r}: its model's array {error}") from error


def make_tracks(
    strategies: Mapping[str, Strategy],
    models: Mapping[str, ArrayRecord],
    train_config: Configs = None,
    evaluate_config: Configs = None,
    rules: Mapping[str, TaskRules] | None = None,
) -> list[Track]:
    """The tasks of a run, each with a configuration of its own: strategies write into it."""
    rules = rules or {}
    train = _configs("train_config", train_config, tuple(strategies))
    evaluate = _configs("evaluate_config", evaluate_config, tuple(strategies))
    return [
        Track(
            name=task,
            strategy=strategy,
            arrays=models[task],
            rules=rules.get(task, TaskRules()),
            train_config=train[task],
            evaluate_config=evaluate[task],
            result=Result(arrays=models[task]),
        )
        for task, strategy in strategies.items()
    ]


def by_task(what: str, given: R | Mapping[str, R], kind: type[R], tasks: tuple[str, ...]) -> Mapping[str, R]:
    """`given` by task; a record as it is belongs to the only task.

    Raises
    ------
    ConfigError
        If a task has none, or one is given for no task.
    """
    names = ", ".join(tasks)
    if isinstance(given, kind):
        if len(tasks) == 1:
            return {tasks[0]: given}
        raise ConfigError(f"{what}: got one {kind.__name__}, expected a dict of one for each of {names}")
    missing = ", ".join(task for task in tasks if task not in given)
    if missing:
        raise ConfigError(f"{what}: none for {missing}; expected one for each of the tasks {names}")
    _check_known(what, given, tasks)
    return given  # type: ignore[return-value]


def _configs(what: str, given: Configs, tasks: tuple[str, ...]) -> dict[str, ConfigRecord]:
    if given is None or isinstance(given, ConfigRecord):
        return {task: ConfigRecord(dict(given or {})) for task in tasks}
    _check_known(what, given, tasks)
    return {task: ConfigRecord(dict(given.get(task, {}))) for task in tasks}


def _check_known(what: str, given: Mapping[str, object], tasks: tuple[str, ...]) -> None:
    unknown = ", ".join(task for task in given if task not in tasks)
    if unknown:
        raise ConfigError(f"{what}: {unknown} is no task of this FedMT, which has {', '.join(tasks)}")
