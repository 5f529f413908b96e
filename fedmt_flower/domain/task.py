"""What a federated task is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Self

from fedmt_flower.domain.step import StepRules
from fedmt_flower.errors import ConfigError

Scalar = bool | int | float | str
"""What a hyperparameter may be; the same set that Flower's run configuration carries."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", re.ASCII)
_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", re.ASCII)


class TaskKind(StrEnum):
    """How much of a task's training the package sees."""

    WHOLE_CALL = "whole-call"
    """The user's own `train(model, data, …)`; its budget holds for the whole round."""
    STEPPED = "stepped"
    """A loop that the package drives step by step; it can be handed over between two steps."""


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name a task or a site, else raise ConfigError.

    A name is 1 to 64 ASCII letters, digits, dots, dashes and underscores and begins with a letter or a
    digit: it becomes part of file names and of record keys, which use the slash as a separator.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{what} name {name!r}: expected 1 to 64 of the ASCII characters A-Z a-z 0-9 _ . - that "
            "begin with a letter or a digit; choose another name"
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One federated task: a model, its data and how it is trained, each named by import path.

    Nothing here is imported: an import path ``package.module:object`` is resolved only inside the worker
    process that runs the task (and by the server, for `model` alone, to make the initial weights).

    Parameters
    ----------
    name
        The task's name, the same on every site and on the server; see `check_name`.
    model
        Import path of a callable that returns a new ``torch.nn.Module``.
    data
        Import path of a callable that returns ``(train, test)``: each a ``DataLoader``, a map-style
        ``Dataset`` or a tuple of tensors.
    train
        Import path of the user's ``train(model, data, …)``: a *whole-call* task. Empty: *stepped*.
    evaluate
        Import path of the user's ``evaluate(model, data, …)``. Empty: the objective's own metrics.
    trainer
        Import path of a stepped trainer (see `fedmt_flower.device.training.trainer`). Empty: the
        package's loop.
    objective
        Import path of the loss and metrics that the package's loop uses.
    optimizer
        Import path of a ``torch.optim`` optimizer that the package's loop uses.
    parameters
        Hyperparameters, handed by name to each callable above that has a parameter so named. The package's
        loop reads some of its own, among them those of `fedmt_flower.domain.step.StepRules`.
    python_path
        Directories to put in front of ``sys.path`` before importing anything of the task.

    Raises
    ------
    ConfigError
        If the name or an import path cannot be one, `train` and `trainer` are both given, or the package's
        loop cannot take the steps asked for.
    """

    name: str
    model: str
    data: str
    train: str = ""
    evaluate: str = ""
    trainer: str = ""
    objective: str = "fedmt_flower.tasks.objectives:classification"
    optimizer: str = "torch.optim:SGD"
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    python_path: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("task", self.name)
        required = {"model": self.model, "data": self.data}
        optional = {
            "train": self.train,
            "evaluate": self.evaluate,
            "trainer": self.trainer,
            "objective": self.objective,
            "optimizer": self.optimizer,
        }
        problems = [
            f"task {self.name!r}, {key}: got {path!r}, expected an import path like 'package.module:object'"
            for key, path in (required | {k: p for k, p in optional.items() if p}).items()
            if not _PATH.fullmatch(path)
        ]
        if not self.train and not self.trainer:
            try:
                StepRules.of(self.parameters)
            except ConfigError as error:
                problems += [f"task {self.name!r}, {problem}" for problem in error.problems]
        if self.train and self.trainer:
            problems.append(f"task {self.name!r}: give `train` (whole-call) or `trainer` (stepped), not both")
        if problems:
            raise ConfigError(*problems)

    def with_parameters(self, **parameters: Scalar) -> Self:
        """This task with these hyperparameters; its others stay."""
        return replace(self, parameters={**self.parameters, **parameters})

    def step_rules(self, parameters: Mapping[str, Scalar] | None = None) -> StepRules:
        """How the package's loop takes the task's steps, with a round's `parameters` besides its own.

        The plain rules for a task that brings a loop of its own, and where a round's cannot be: then its
        worker says so.
        """
        if self.train or self.trainer:
            return StepRules()
        try:
            return StepRules.of({**self.parameters, **(parameters or {})})
        except ConfigError:
            return StepRules()

    @classmethod
    def in_module(
        cls,
        name: str,
        module: str,
        *,
        model: str = "Net",
        data: str = "load_data",
        train: str = "train",
        evaluate: str = "test",
        parameters: Mapping[str, Scalar] | None = None,
    ) -> Self:
        """The whole-call task that a Flower app of the usual shape has in one module.

        Parameters
        ----------
        name
            The task's name.
        module
            Import path of the module, such as ``digits.task``.
        model, data, train, evaluate
            Names in `module`; those that Flower's own app templates use are the defaults.
        parameters
            See the class.

        Raises
        ------
        ConfigError
            As the class does.
        """
        return cls(
            name=name,
            model=f"{module}:{model}",
            data=f"{module}:{data}",
            train=f"{module}:{train}",
            evaluate=f"{module}:{evaluate}",
            parameters=parameters or {},
        )

    @property
    def kind(self) -> TaskKind:
        """Whole-call if the user brings a `train` function, else stepped."""
        return TaskKind.WHOLE_CALL if self.train else TaskKind.STEPPED


def check_unique(tasks: tuple[Task, ...]) -> None:
    """Raise ConfigError if there is no task or two of one name (compared without case)."""
    if not tasks:
        raise ConfigError("no task given: expected at least one")
    names = [task.name.casefold() for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"two tasks are named {', '.join(map(repr, twice))}: names must differ, case aside")
