"""Each task ends as if it had been federated alone, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Result,
    Strategy,
)

from fedmt_flower import FedMT, Task, client_app
from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.federation import codec
from fedmt_flower.federation.arrays import to_record

INLINE = DeviceSettings(backend=Backend.INLINE)
ROUNDS = 3
HOSTED = {1: ("seg", "det", "enc"), 2: ("det", "seg"), 3: ("seg", "det", "enc")}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "Bulyan": Bulyan,
    "FedAdagrad": lambda: FedAdagrad(eta=0.01),
    "FedAdam": lambda: FedAdam(eta=0.01),
    "FedAvg": FedAvg,
    "FedAvgM": lambda: FedAvgM(server_momentum=0.5),
    "FedMedian": FedMedian,
    "FedProx": lambda: FedProx(proximal_mu=0.5),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(beta=0.34),
    "FedYogi": lambda: FedYogi(eta=0.01),
    "Krum": Krum,
    "MultiKrum": lambda: MultiKrum(num_nodes_to_select=2),
    "QFedAvg": lambda: QFedAvg(client_learning_rate=0.05),
    # Without noise, which no two runs would draw alike.
    "ServerSideFixedClipping": lambda: DifferentialPrivacyServerSideFixedClipping(FedAvg(), 0.0, 0.5, 3),
    "ServerSideAdaptiveClipping": lambda: DifferentialPrivacyServerSideAdaptiveClipping(
        FedAvg(), 0.0, 3, clipped_count_stddev=0.0
    ),
}
"""Every strategy of Flower's that can serve a task."""


def bits(record: ArrayRecord) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (array.dtype, tuple(array.shape), array.data) for name, array in record.items()}


def together(
    grid: Any, tasks: dict[str, Task], models: dict[str, ArrayRecord], make: Callable[[], Strategy]
) -> dict[str, Result]:
    app = client_app(*tasks.values(), device=INLINE)
    for node, hosted in HOSTED.items():
        hosts = ",".join(name for name in hosted if name in tasks)
        grid.add(node, app, **{"partition-id": node - 1, "tasks": hosts})
    own = {name: models[name] for name in tasks}
    return FedMT({name: make() for name in tasks}).start(grid, own, num_rounds=ROUNDS)


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
    if name == "QFedAvg":
        # It cannot take the integers that BatchNorm counts with; see the test below.
        tasks.pop("seg")
    results = together(grid, tasks, models(), make)
    for task in tasks.values():
        expected = alone(type(grid)(), task, models()[task.name], make)
        result = results[task.name]
        # Bulyan wants three sites and leaves a task of two as it was; Flower's result is then empty.
        assert bits(result.arrays) == bits(expected.arrays or models()[task.name])
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


def test_batchnorm_counts_become_steps_of_fedadam(
    grid: Any, tasks: dict[str, Task], models: Callable[[], dict[str, ArrayRecord]]
) -> None:
    """As `docs/strategies.md` says: an adaptive step is about eta, whatever was counted."""
    key = "1.num_batches_tracked"
    adam = together(grid, tasks, models(), lambda: FedAdam(eta=0.01))["seg"].arrays[key].numpy()
    mean = together(type(grid)(), tasks, models(), FedAvg)["seg"].arrays[key].numpy()
    assert models()["seg"][key].dtype == "int64"
    assert (adam.dtype, mean.dtype) == ("float64", "float64")
    assert 0 < adam < 0.1
    assert mean > ROUNDS


def test_qfedavg_costs_a_model_with_integers_its_updates_alone(
    grid: Any, tasks: dict[str, Task], models: Callable[[], dict[str, ArrayRecord]]
) -> None:
    results = together(grid, tasks, models(), STRATEGIES["QFedAvg"])
    assert bits(results["seg"].arrays) == bits(models()["seg"])
    assert bits(results["det"].arrays) != bits(models()["det"])


# --- The same replies in the same order, into FedMT and into the strategy itself

SITES = {1: "c", 2: "a", 3: "b"}
MIXED = {"weight": "f4", "bias": "f8", "half": "f2", "scale": "f4", "count": "i8"}
FLOATS = {"weight": "f4", "bias": "f8"}
EMPTY = ConfigRecord()


def some_weights(generator: np.random.Generator, dtypes: Mapping[str, str]) -> Weights:
    """Arrays of several shapes, one of them without dimensions, that no sum adds up without rounding."""
    shapes = {"weight": (3, 5), "bias": (5,), "half": (4,), "scale": (), "count": ()}
    drawn = {name: generator.normal(scale=50, size=shapes[name]) for name in dtypes}
    return {name: np.asarray(value).astype(dtypes[name]) for name, value in drawn.items()}


def report_of(site: str, number: int, examples: Mapping[str, int]) -> RoundReport:
    return RoundReport(
        site=site,
        round=number,
        plan=RoundPlan(tasks=tuple(TaskPlan(task=t, budget=100) for t in examples), sharing=Sharing.CAPPED),
        tasks=tuple(
            TaskReport(task=t, status=Status.DONE, train_examples=n, train_metrics={"train_loss": 1 / n})
            for t, n in examples.items()
        ),
        timeline=(),
        backend="inline",
        waited_s=0.0,
        wall_s=0.0,
    )


def plain_reply(asked: Message, weights: Weights, report: TaskReport) -> Message:
    """What an app of that task alone would reply."""
    metrics = MetricRecord({"num-examples": report.train_examples, **report.train_metrics})
    return Message(RecordDict({"arrays": to_record(weights), "metrics": metrics}), reply_to=asked)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_same_replies_give_the_same_bits_as_the_strategy_itself(
    name: str, grid: Any, tasks: dict[str, Task]
) -> None:
    make, generator = STRATEGIES[name], np.random.default_rng(5)
    dtypes = {"seg": FLOATS if name == "QFedAvg" else MIXED, "det": FLOATS}
    for node, site in SITES.items():
        grid.add(node, client_app(tasks["seg"], tasks["det"], device=INLINE), site=site)
    bare = {task: make() for task in dtypes}
    models = {task: to_record(some_weights(generator, own)) for task, own in dtypes.items()}
    merged, fedmt = codec.flatten(models, ArrayRecord()), FedMT({task: make() for task in dtypes})
    for number in range(1, ROUNDS + 1):
        reports = {
            node: report_of(site, number, {"seg": 10 * node + 3, "det": 40 - 7 * node})
            for node, site in SITES.items()
        }
        updates = {
            node: {task: some_weights(generator, own) for task, own in dtypes.items()} for node in SITES
        }
        sent = {one.metadata.dst_node_id: one for one in fedmt.configure_train(number, merged, EMPTY, grid)}
        grid.push_messages(sent.values())
        # They arrive in no order: FedMT's own is that of the sites' names.
        packages = [
            Message(codec.encode_answer(reports[node], updates[node]), reply_to=sent[node])
            for node in sorted(sent)
        ]
        arrays, _ = fedmt.aggregate_train(number, packages)
        assert arrays is not None
        merged = arrays
        for task, strategy in bare.items():
            asked = {
                one.metadata.dst_node_id: one
                for one in strategy.configure_train(number, models[task], EMPTY, grid)
            }
            replies = [
                plain_reply(asked[node], updates[node][task], reports[node].task(task))
                for node in sorted(asked, key=lambda node: SITES[node])
            ]
            expected, _ = strategy.aggregate_train(number, replies)
            assert expected is not None
            models[task] = expected
            assert bits(codec.fill(ArrayRecord(), codec.split(merged)[task])) == bits(expected)
