"""Each task ends as if it had been federated alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
    Result,
    Strategy,
)

from fedmt_flower import FedMT, Task, client_app
from fedmt_flower.domain.device import Backend, DeviceSettings

INLINE = DeviceSettings(backend=Backend.INLINE)
ROUNDS = 3
HOSTED = {1: ("seg", "det", "enc"), 2: ("det", "seg"), 3: ("seg", "det", "enc")}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "FedAvg": FedAvg,
    "FedAdam": lambda: FedAdam(eta=0.01),
    "FedProx": lambda: FedProx(proximal_mu=0.5),
    "FedMedian": FedMedian,
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.34),
    "Krum": lambda: Krum(num_malicious_nodes=0),
}


def bits(record: ArrayRecord) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype, tuple(array.shape), array.data) for name, array in record.items()}


def together(
    grid: Any, tasks: dict[str, Task], models: dict[str, ArrayRecord], make: Callable[[], Strategy]
) -> dict[str, Result]:
    app = client_app(*tasks.values(), device=INLINE)
    for node, hosted in HOSTED.items():
        grid.add(node, app, **{"partition-id": node - 1, "tasks": ",".join(hosted)})
    return FedMT({name: make() for name in tasks}).start(grid, models, num_rounds=ROUNDS)


def alone(grid: Any, task: Task, model: ArrayRecord, make: Callable[[], Strategy]) -> Result:
    app = client_app(task, device=INLINE)
    for node, hosted in HOSTED.items():
        if task.name in hosted:
            grid.add(node, app, **{"partition-id": node - 1})
    return make().start(grid, model, num_rounds=ROUNDS)


@pytest.mark.parametrize("name", STRATEGIES)
def test_each_task_ends_as_if_it_were_alone(
    name: str, grid: Any, tasks: dict[str, Task], models: Callable[[], dict[str, ArrayRecord]]
) -> None:
    make = STRATEGIES[name]
    results = together(grid, tasks, models(), make)
    for task in tasks.values():
        expected = alone(type(grid)(), task, models()[task.name], make)
        result = results[task.name]
        assert bits(result.arrays) == bits(expected.arrays)
        assert result.train_metrics_clientapp == expected.train_metrics_clientapp
        evaluations = dict(result.evaluate_metrics_clientapp)
        # The initial models' is one that Flower's own strategies do not make.
        assert evaluations.pop(0)
        assert evaluations == expected.evaluate_metrics_clientapp


def test_two_runs_give_the_same_bits(
    grid: Any, tasks: dict[str, Task], models: Callable[[], dict[str, ArrayRecord]]
) -> None:
    first = together(grid, tasks, models(), FedAvg)
    second = together(type(grid)(), tasks, models(), FedAvg)
    assert {name: bits(one.arrays) for name, one in first.items()} == {
        name: bits(one.arrays) for name, one in second.items()
    }
