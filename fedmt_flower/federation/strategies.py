"""Flower's strategies by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmt_flower.domain.round import TaskRules
from fedmt_flower.domain.task import Scalar
from fedmt_flower.errors import ConfigError, expected_one_of
from fedmt_flower.federation.strategy import FedMT

_LEAST = ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes")
"""Flower waits for two nodes by default; a task may be hosted by one, and the run waits for its sites."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategySettings:
    """A Flower strategy: its name or import path, and its constructor's arguments."""

    name: str = "FedAvg"
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


def build_fedmt(
    chosen: Mapping[str, StrategySettings],
    *,
    rules: Mapping[str, TaskRules] | None = None,
    checkpoint: str = "",
    seed: int | None = None,
) -> FedMT:
    """The strategy of a federation whose tasks are aggregated as `chosen` for each.

    The other arguments are those of `FedMT`.

    Raises
    ------
    ConfigError
        With all that is wrong with any of them.
    """
    made: dict[str, Strategy] = {}
    problems: list[str] = []
    for task, settings in chosen.items():
        try:
            made[task] = build_strategy(settings)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*dict.fromkeys(problems))
    return FedMT(made, discover=True, rules=rules, checkpoint=checkpoint or None, seed=seed)


def build_strategy(settings: StrategySettings) -> Strategy:
    """The strategy that `settings` describe.

    Raises
    ------
    ConfigError
        If there is no such strategy, or it does not take these arguments.
    """
    where = f"strategy {settings.name}"
    make = _find(where, settings.name)
    known = inspect.signature(make).parameters
    unknown = [name for name in settings.parameters if name not in known]
    if unknown:
        raise ConfigError(
            *(f"{where}: takes no {name!r}; {expected_one_of(name, known)}" for name in unknown)
        )
    arguments: dict[str, Any] = {name: 1 for name in _LEAST if name in known}
    try:
        made = make(**arguments | dict(settings.parameters))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be made: {error}") from error
    if not isinstance(made, Strategy):
        raise ConfigError(
            f"{where}: makes no strategy of flwr.serverapp.strategy, but a {type(made).__name__}"
        )
    return made


def _find(where: str, name: str) -> Any:
    if ":" not in name:
        names = [name for name in flower.__all__ if _is_strategy(getattr(flower, name))]
        if name not in names:
            raise ConfigError(f"{where}: there is none of this name; {expected_one_of(name, names)}")
        return getattr(flower, name)
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where}: cannot be imported: {error}") from error


def _is_strategy(thing: object) -> bool:
    """Whether `thing` is a strategy that can be made without another one inside it."""
    if not (inspect.isclass(thing) and issubclass(thing, Strategy)) or inspect.isabstract(thing):
        return False
    empty = inspect.Parameter.empty
    return all(parameter.default is not empty for parameter in inspect.signature(thing).parameters.values())
