"""Every kind of client that a FedMT may meet, and our client under Flower's own strategies."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, fixedclipping_mod
from flwr.serverapp.strategy import DifferentialPrivacyClientSideFixedClipping, FedAvg

from fedmt_flower import FedMT, MultiTaskClient, Task, client_app
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.errors import ConfigError, FederationError

INLINE = DeviceSettings(backend=Backend.INLINE)
Models = Callable[[], dict[str, ArrayRecord]]


def move(arrays: list[Any], by: float) -> list[Any]:
    return [np.asarray(array + (1 if array.dtype.kind == "i" else by), array.dtype) for array in arrays]


def message_app() -> ClientApp:
    """An ordinary single-task app: it moves weights by the round's learning rate, and keeps a counter."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        assert list(message.content) == ["arrays", "config"]
        config = message.content["config"]
        assert set(config) == {"lr", "server-round"}
        moved = move(message.content["arrays"].to_numpy_ndarrays(), config["lr"] * context.node_id)
        metrics = MetricRecord({"loss": 0.5, "num-examples": 10 * context.node_id})
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        total = sum(float(array.sum()) for array in message.content["arrays"].to_numpy_ndarrays())
        metrics = MetricRecord({"loss": 0.0, "total": total, "num-examples": 10 * context.node_id})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


class Mover(NumPyClient):
    """The same in the legacy API."""

    def __init__(self, node: int) -> None:
        self.node = node

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        assert set(config) == {"lr", "server-round"}
        moved = move(parameters, config["lr"] * self.node)
        return moved, 10 * self.node, {"loss": 0.5, "note": "text is no metric"}

    def evaluate(self, parameters: list[Any], config: dict[str, Any]) -> tuple[float, int, dict[str, Any]]:
        return 0.0, 10 * self.node, {"total": sum(float(array.sum()) for array in parameters)}


def legacy_app() -> ClientApp:
    return ClientApp(lambda context: Mover(context.node_id).to_client())


def initial() -> ArrayRecord:
    return ArrayRecord([np.linspace(0, 1, 6, dtype=np.float32).reshape(2, 3), np.array(7)])


def populate(grid: Any, app: ClientApp) -> None:
    for node in (1, 2, 3):
        grid.add(node, app, **{"partition-id": node - 1})


def test_an_unmodified_app_knows_no_difference_to_fedavg(grid: Any) -> None:
    """Two lines differ: the import, and `FedMT({...})` around the strategy."""
    arguments: dict[str, Any] = {"num_rounds": 3, "train_config": ConfigRecord({"lr": 0.1})}
    stock = type(grid)()
    populate(stock, message_app())
    populate(grid, message_app())
    expected = FedAvg().start(stock, initial(), **arguments)
    result = FedMT({"x": FedAvg()}).start(grid, initial(), **arguments)
    assert result.arrays == expected.arrays
    assert result.train_metrics_clientapp == expected.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    assert [m.metadata.message_type for m in grid.sent] == [m.metadata.message_type for m in stock.sent]
    # The order of nodes is sampled.
    kinds = [{repr(m.content) for m in one.sent} for one in (grid, stock)]
    assert kinds[0] == kinds[1]


def test_an_invalid_update_of_an_unmodified_app_is_left_out(grid: Any) -> None:
    def tamper(sent: Message, reply: Message) -> Message:
        if "arrays" in reply.content:
            reply.content["arrays"] = ArrayRecord([np.full((2, 3), np.inf, np.float32), np.array(7)])
        return reply

    populate(grid, message_app())
    grid.tamper[2] = tamper
    rounds: list[Any] = []
    FedMT({"x": FedAvg()}).start(
        grid, initial(), num_rounds=1, train_config=ConfigRecord({"lr": 0.1}), on_round=rounds.append
    )
    assert rounds[0].tasks["x"].sites == ("node-1", "node-3")
    assert rounds[0].tasks["x"].failures == (
        "site 'node-2', task 'x': '0': expected finite values, got 6 that are not",
    )


def test_an_unmodified_client_fn_app_is_spoken_to_in_its_own_records(grid: Any) -> None:
    stock = type(grid)()
    populate(stock, message_app())
    populate(grid, legacy_app())
    arguments: dict[str, Any] = {"num_rounds": 3, "train_config": ConfigRecord({"lr": 0.1})}
    expected = FedAvg().start(stock, initial(), **arguments)
    result = FedMT({"x": FedAvg()}).start(grid, initial(), **arguments)
    assert result.arrays == expected.arrays
    assert result.train_metrics_clientapp == expected.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    # Three messages are misread, once; then nobody is asked twice.
    kinds = [message.metadata.message_type for message in grid.sent]
    expected_kinds = ["train", "get_properties", "train"] + ["evaluate", "train"] * 2 + ["evaluate"]
    assert kinds == [kind for kind in expected_kinds for _ in range(3)]


def test_both_kinds_of_apps_in_one_federation(grid: Any) -> None:
    grid.add(1, message_app())
    grid.add(2, legacy_app())
    stock = type(grid)()
    for node in (1, 2):
        stock.add(node, message_app())
    arguments: dict[str, Any] = {"num_rounds": 2, "train_config": ConfigRecord({"lr": 0.1})}
    expected = FedAvg().start(stock, initial(), **arguments)
    result = FedMT({"x": FedAvg()}).start(grid, initial(), **arguments)
    assert result.arrays == expected.arrays


def test_a_client_fn_app_that_fails_says_why(grid: Any) -> None:
    class Broken(Mover):
        def fit(self, parameters: list[Any], config: dict[str, Any]) -> Any:
            raise RuntimeError("no data today")

    grid.add(1, legacy_app())
    grid.add(2, ClientApp(lambda context: Broken(2).to_client()))
    rounds: list[Any] = []
    FedMT({"x": FedAvg()}).start(
        grid, initial(), num_rounds=1, train_config=ConfigRecord({"lr": 0.1}), on_round=rounds.append
    )
    assert rounds[0].tasks["x"].failures == ("site 'node-2', task 'x': RuntimeError: no data today",)


def multi_task_legacy_app(tasks: dict[str, Task]) -> ClientApp:
    def client_fn(context: Context) -> Any:
        return MultiTaskClient(context, *tasks.values(), device=INLINE).to_client()

    return ClientApp(client_fn)


def test_a_multi_task_client_fn_app_gives_the_same_bits(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    modern = type(grid)()
    populate(modern, client_app(*tasks.values(), device=INLINE))
    populate(grid, multi_task_legacy_app(tasks))
    grid.apps[2][1].node_config["tasks"] = "seg,det"
    modern.apps[2][1].node_config["tasks"] = "seg,det"
    results = [
        FedMT({name: FedAvg() for name in tasks}).start(one, models(), num_rounds=2) for one in (grid, modern)
    ]
    for name in tasks:
        legacy, expected = results[0][name], results[1][name]
        assert legacy.arrays == expected.arrays
        assert legacy.train_metrics_clientapp == expected.train_metrics_clientapp
        assert legacy.evaluate_metrics_clientapp == expected.evaluate_metrics_clientapp
    assert all("fitins.parameters" in m.content for m in grid.sent if m.metadata.message_type == "train")


@pytest.mark.parametrize("legacy", [False, True])
def test_one_strategy_over_nodes_of_several_tasks(
    legacy: bool, grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    app = multi_task_legacy_app(tasks) if legacy else client_app(*tasks.values(), device=INLINE)
    populate(grid, app)
    rounds: list[Any] = []
    FedMT({"det": FedAvg()}).start(grid, models()["det"], num_rounds=2, on_round=rounds.append)
    assert [played.tasks["det"].sites for played in rounds] == [
        ("site-0", "site-1", "site-2"),
        ("site-0", "site-1", "site-2"),
        (),
    ]
    assert all(not played.tasks["det"].failures for played in rounds)


def test_unmodified_apps_are_left_out_of_a_federation_of_several_tasks(
    grid: Any, tasks: dict[str, Task], models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    populate(grid, client_app(*tasks.values(), device=INLINE))
    grid.add(4, message_app())
    grid.add(5, legacy_app())
    rounds: list[Any] = []
    with caplog.at_level(logging.WARNING, logger="flwr.fedmt"):
        FedMT({name: FedAvg() for name in tasks}).start(grid, models(), num_rounds=1, on_round=rounds.append)
    assert "node 4 is left out: its app answers no query" in caplog.text
    assert "node 5 is left out: it names no task" in caplog.text
    assert rounds[0].tasks["seg"].sites == ("site-0", "site-1", "site-2")
    assert all(not outcome.failures for outcome in rounds[0].tasks.values())


def test_a_node_whose_tasks_are_unknown_plays_no_part(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    populate(grid, client_app(*tasks.values(), device=INLINE))
    grid.apps[3][1].node_config["tasks"] = "enc"
    rounds: list[Any] = []
    FedMT({name: FedAvg() for name in ("seg", "det")}).start(
        grid, {name: models()[name] for name in ("seg", "det")}, num_rounds=1, on_round=rounds.append
    )
    assert rounds[0].tasks["seg"].sites == ("site-0", "site-1")


# --- Our clients under Flower's own strategies


def test_a_node_of_one_task_serves_a_stock_strategy_of_other_keys(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    populate(grid, client_app(tasks["det"], device=INLINE))
    keys = {"arrayrecord_key": "weights", "configrecord_key": "settings"}
    other = FedAvg(**keys).start(grid, models()["det"], num_rounds=1)
    assert all("weights" in reply.content for reply in grid.received[:3])
    usual = type(grid)()
    populate(usual, client_app(tasks["det"], device=INLINE))
    assert other.arrays == FedAvg().start(usual, models()["det"], num_rounds=1).arrays


def test_a_node_of_several_tasks_tells_a_stock_strategy_what_is_wrong(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    populate(grid, client_app(*tasks.values(), device=INLINE))
    FedAvg().start(grid, models()["det"], num_rounds=1)
    assert "the message names no task, but the site hosts seg, det, enc" in str(grid.received[0].error.reason)


def test_a_multi_task_client_needs_fedmt(tasks: dict[str, Task]) -> None:
    context = Context(1, 1, {"partition-id": 0}, RecordDict(), {})
    client = MultiTaskClient(context, tasks["det"], device=INLINE)
    with pytest.raises(FederationError, match="the server of a MultiTaskClient needs FedMT"):
        client.fit([], {})


def test_a_failed_task_of_a_plain_message_is_an_error(grid: Any, tasks: dict[str, Task]) -> None:
    populate(grid, client_app(tasks["det"], device=INLINE))
    wrong = ArrayRecord([np.zeros(3, np.float32)])
    with pytest.raises(FederationError, match=r"no task was updated in 1 rounds: site 'site-0', .*'det'"):
        FedMT({"det": FedAvg()}, discover=True).start(grid, wrong, num_rounds=1)


# --- How arrays travel


def keys(messages: list[Message]) -> set[str]:
    contents = [message.content for message in messages if message.has_content()]
    return {key for content in contents for record in content.array_records.values() for key in record}


def test_arrays_travel_packed_by_task(grid: Any, tasks: dict[str, Task], models: Models) -> None:
    populate(grid, client_app(*tasks.values(), device=INLINE))
    FedMT({name: FedAvg() for name in tasks}).start(grid, models(), num_rounds=1)
    assert keys(grid.sent) == keys(grid.received) == set(tasks)


def test_whoever_looks_at_messages_finds_the_arrays_one_by_one(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    """A mod on the client, a program that drives the strategy's four methods, an older record."""
    flat = {f"{task}/{name}" for task, record in models().items() for name in record}
    strategies = {name: FedAvg() for name in tasks}

    def mod(message: Message, context: Context, call: Any) -> Message:
        assert keys([message]) == flat
        reply: Message = call(message, context)
        assert keys([reply]) == flat
        return reply

    populate(grid, client_app(*tasks.values(), device=INLINE, mods=[mod]))
    FedMT(strategies).start(grid, models(), num_rounds=1)
    assert keys(grid.sent) == keys(grid.received) == flat

    driven = type(grid)()
    populate(driven, client_app(*tasks.values(), device=INLINE))
    fedmt = FedMT({name: FedAvg() for name in tasks})
    arrays = ArrayRecord(
        {f"{task}/{name}": one for task, record in models().items() for name, one in record.items()}
    )
    sent = list(fedmt.configure_train(1, arrays, ConfigRecord(), driven))
    replies = list(driven.send_and_receive(sent))
    assert keys(sent) == keys(replies) == flat
    updated, _ = fedmt.aggregate_train(1, replies)
    assert updated is not None
    assert set(updated) == flat


# --- Mods


def test_local_dp_sees_one_record_in_and_out(grid: Any, tasks: dict[str, Task], models: Models) -> None:
    """It refuses integers, as BatchNorm counts with, under any strategy of Flower's."""
    floats = {name: task for name, task in tasks.items() if name != "seg"}
    mod = LocalDpMod(clipping_norm=1e-6, sensitivity=0.0, epsilon=1.0, delta=0.1)
    populate(grid, client_app(*floats.values(), device=INLINE, mods=[mod]))
    initial = {name: models()[name] for name in floats}
    rounds: list[Any] = []
    results = FedMT({name: FedAvg() for name in floats}).start(
        grid, initial, num_rounds=1, on_round=rounds.append
    )
    for name, result in results.items():
        assert rounds[0].tasks[name].sites == ("site-0", "site-1", "site-2")
        for key, array in result.arrays.items():
            np.testing.assert_allclose(array.numpy(), initial[name][key].numpy(), atol=2e-6)


def test_a_mod_survives_a_failed_task(grid: Any, tasks: dict[str, Task], models: Models) -> None:
    from dataclasses import replace

    floats = {"det": replace(tasks["det"], train="toy_tasks:raising"), "enc": tasks["enc"]}
    mod = LocalDpMod(clipping_norm=1.0, sensitivity=0.0, epsilon=1.0, delta=0.1)
    populate(grid, client_app(*floats.values(), device=INLINE, mods=[mod]))
    rounds: list[Any] = []
    FedMT({name: FedAvg() for name in floats}).start(
        grid, {name: models()[name] for name in floats}, num_rounds=1, on_round=rounds.append
    )
    assert rounds[0].tasks["enc"].sites == ("site-0", "site-1", "site-2")
    assert rounds[0].tasks["det"].sites == ()


def test_client_side_clipping_works_with_a_single_unmodified_app(grid: Any) -> None:
    app = ClientApp()

    @app.train(mods=[fixedclipping_mod])
    def train(message: Message, context: Context) -> Message:
        moved = [array + 100 for array in message.content["arrays"].to_numpy_ndarrays()]
        content = RecordDict({"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    populate(grid, app)
    wrapped = DifferentialPrivacyClientSideFixedClipping(FedAvg(fraction_evaluate=0.0), 0.0, 0.5, 3)
    result = FedMT({"x": wrapped}).start(grid, ArrayRecord([np.zeros(4, np.float32)]), num_rounds=1)
    np.testing.assert_allclose(result.arrays["0"].numpy(), np.full(4, 0.25), rtol=1e-6)


def test_secure_aggregation_is_refused(tasks: dict[str, Task]) -> None:
    from flwr.client.mod import secaggplus_mod

    with pytest.raises(ConfigError, match="secure aggregation"):
        client_app(*tasks.values(), mods=[secaggplus_mod])
