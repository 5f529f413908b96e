"""Which of Flower's strategies can serve a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from fedmt_flower.domain.task import check_name
from fedmt_flower.errors import ConfigError

_TREES = (flower.FedXgbBagging, flower.FedXgbCyclic)
_CLIENT_SIDE_DP = (
    flower.DifferentialPrivacyClientSideAdaptiveClipping,
    flower.DifferentialPrivacyClientSideFixedClipping,
)


def find_problems(strategies: Mapping[str, Strategy]) -> list[str]:
    """One line for everything that keeps `strategies`, by task, from working together."""
    if not strategies:
        return ["no task given: expected a dict of a strategy for each task"]
    problems = list(_name_problems(strategies))
    owners: dict[int, str] = {}
    for task, strategy in strategies.items():
        owner = owners.setdefault(id(strategy), task)
        if owner != task:
            problems.append(
                f"tasks {owner!r} and {task!r} share one strategy object, which keeps state; "
                "give each its own"
            )
        problems += _strategy_problems(task, strategy, several=len(strategies) > 1)
    return problems


def _name_problems(strategies: Mapping[str, Strategy]) -> Iterator[str]:
    if len({task.casefold() for task in strategies}) < len(strategies):
        yield f"tasks {', '.join(strategies)}: names must differ, case aside"
    for task in strategies:
        try:
            check_name("task", task)
        except ConfigError as error:
            yield str(error)


def _strategy_problems(task: str, strategy: object, *, several: bool) -> Iterator[str]:
    name = type(strategy).__name__
    if not isinstance(strategy, Strategy):
        yield (
            f"task {task!r}: {type(strategy).__module__}.{name} is no strategy of "
            "flwr.serverapp.strategy; those of flwr.server.strategy have namesakes there"
        )
    elif isinstance(strategy, _TREES):
        yield f"task {task!r}: {name} joins boosted trees, not the arrays of a model; run it without FedMT"
    elif isinstance(strategy, _CLIENT_SIDE_DP) and several:
        yield (
            f"task {task!r}: {name} needs a mod on the client that reads one task's configuration, but a mod "
            f"sees all tasks at once; use {name.replace('ClientSide', 'ServerSide')}"
        )
    elif isinstance(inner := getattr(strategy, "strategy", None), Strategy):
        yield from _strategy_problems(task, inner, several=several)
