"""What several tasks under one FedMT get, give and survive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord
from flwr.server.strategy import FedAvg as LegacyFedAvg
from flwr.serverapp.exception import InconsistentMessageReplies
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    FedAdam,
    FedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    Strategy,
)

from fedmt_flower import FedMT, Task, client_app
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.errors import ConfigError, FederationError
from fedmt_flower.federation import packing, spool, turn
from fedmt_flower.federation.arrays import digest
from fedmt_flower.federation.record import entries
from fedmt_flower.federation.shelf import Shelf
from fedmt_flower.federation.spool import Spool

INLINE = DeviceSettings(backend=Backend.INLINE)
Models = Callable[[], dict[str, ArrayRecord]]


class Spy(FedAvg):
    """FedAvg that keeps what it is given."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.trained: list[list[Message]] = []
        self.evaluated: list[list[Message]] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        self.trained.append(list(replies))
        return super().aggregate_train(server_round, self.trained[-1])

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        self.evaluated.append(list(replies))
        return super().aggregate_evaluate(server_round, self.evaluated[-1])


class Run:
    """A federation of the three toy tasks on three nodes, in the making."""

    def __init__(self, grid: Any, tasks: dict[str, Task], models: Models) -> None:
        self.grid, self.tasks, self.models = grid, tasks, models()
        self.rounds: list[FederationRound] = []
        for node in (1, 2, 3):
            self.add(node)
        self.strategies: dict[str, Strategy] = {name: Spy() for name in tasks}

    def add(self, node: int, **task_changes: Task) -> None:
        tasks = {**self.tasks, **task_changes}
        self.grid.add(node, client_app(*tasks.values(), device=INLINE), **{"partition-id": node - 1})

    def start(self, rounds: int = 1, *, join_timeout: float | None = 0.0, **arguments: Any) -> Any:
        arguments = {"timeout": 20.0, **arguments}
        return FedMT(self.strategies, join_timeout=join_timeout).start(
            self.grid, self.models, num_rounds=rounds, on_round=self.rounds.append, **arguments
        )

    def failures(self, task: str) -> list[str]:
        return [line for played in self.rounds for line in played.tasks[task].failures]


@pytest.fixture
def run(grid: Any, tasks: dict[str, Task], models: Models) -> Run:
    return Run(grid, tasks, models)


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Message, Message], Message]:
    """A tamperer that changes one array of a package's reply."""

    def tamper(sent: Message, reply: Message) -> Message:
        record = one_by_one(reply)
        if key in record:
            record[key] = Array(change(record[key].numpy()))
        return reply

    return tamper


def one_by_one(reply: Message) -> ArrayRecord:
    """The arrays of a package's reply, which are unpacked in it."""
    if not reply.has_content() or "arrays" not in reply.content:
        return ArrayRecord()
    record = reply.content.array_records["arrays"]
    for task, packed in list(record.items()):
        for name, array in packing.unpack(packed).items():
            record[f"{task}/{name}"] = array
        del record[task]
    return record


# --- What travels


def test_an_exchange_serves_all_tasks_and_evaluation_rides_along(run: Run) -> None:
    run.start(rounds=2)
    kinds = [(message.metadata.message_type, message.metadata.dst_node_id) for message in run.grid.sent]
    assert kinds == [(kind, node) for kind in ("query", "train", "train", "evaluate") for node in (1, 2, 3)]
    assert all(len(message.content.array_records) <= 1 for message in run.grid.sent)


def test_each_round_is_told_with_what_the_sites_reported(run: Run) -> None:
    results = run.start(rounds=2)
    assert [(played.round, played.final) for played in run.rounds] == [(1, False), (2, False), (3, True)]
    for played in run.rounds:
        assert [answer.site for answer in played.answers] == ["site-0", "site-1", "site-2"]
        assert all(answer.report and len(answer.report.tasks) == 3 for answer in played.answers)
        assert all(outcome.failures == () for outcome in played.tasks.values())
        for name, outcome in played.tasks.items():
            expected = results[name].evaluate_metrics_clientapp[played.round - 1]
            assert outcome.evaluate_metrics == dict(expected)
            assert outcome.sites == (() if played.final else ("site-0", "site-1", "site-2"))
    assert results["seg"].evaluate_metrics_clientapp.keys() == {0, 1, 2}
    assert results["seg"].train_metrics_clientapp.keys() == {1, 2}


def test_each_update_that_was_taken_is_told_with_its_hash(run: Run) -> None:
    run.grid.tamper[2] = changed("det/0.bias", lambda array: array[:-1])
    run.start(rounds=1)
    first, last = run.rounds
    taken = {answer.site: answer.updates for answer in first.answers}
    assert {site: sorted(updates) for site, updates in taken.items()} == {
        "site-0": ["det", "enc", "seg"],
        "site-1": ["enc", "seg"],
        "site-2": ["det", "enc", "seg"],
    }
    for name, spy in run.strategies.items():
        assert isinstance(spy, Spy)
        good = [reply for reply in spy.trained[0] if not reply.has_error()]
        given = [digest(reply.content.array_records["arrays"]) for reply in good]
        assert given == [updates[name] for updates in taken.values() if name in updates]
    written = {(entry.site, entry.task): entry for entry in entries(first)}
    assert written["site-2", "det"].update == taken["site-2"]["det"]
    assert written["site-2", "det"].train_examples == 64
    assert written["site-1", "det"].update == ""
    assert all(answer.updates == {} for answer in last.answers)


def test_updates_are_hashed_only_for_who_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> str:
        raise AssertionError("hashed")

    monkeypatch.setattr(turn, "digest", refuse)
    FedMT(run.strategies).start(run.grid, run.models, num_rounds=1)
    assert all(spy.trained for spy in run.strategies.values())
    with pytest.raises(AssertionError, match="hashed"):
        run.start(rounds=1)


def test_a_rounds_updates_are_let_go_with_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    shelves: weakref.WeakSet[Shelf] = weakref.WeakSet()
    kept: list[int] = []

    class Watched(Shelf):
        def __init__(self) -> None:
            super().__init__()
            shelves.add(self)

    monkeypatch.setattr(turn, "Spool", partial(Spool, limit=0))
    monkeypatch.setattr(spool, "Shelf", Watched)
    strategies = {name: FedAvg() for name in run.tasks}
    gc.disable()
    try:
        FedMT(strategies).start(
            run.grid, run.models, num_rounds=2, on_round=lambda _: kept.append(len(shelves))
        )
    finally:
        gc.enable()
    assert kept == [0, 0, 0]


def test_strategies_see_replies_of_their_own_task_by_site_name(run: Run) -> None:
    for node, site in ((1, "c"), (2, "b"), (3, "a")):
        run.grid.apps[node][1].node_config["site"] = site
    run.start()
    for name, spy in run.strategies.items():
        assert isinstance(spy, Spy)
        (replies,) = spy.trained
        assert [reply.metadata.src_node_id for reply in replies] == [3, 2, 1]
        for reply in replies:
            assert list(reply.content.array_records["arrays"]) == list(run.models[name])
            assert "num-examples" in reply.content.metric_records["metrics"]


def test_no_node_sees_a_task_that_it_does_not_host(run: Run) -> None:
    run.grid.apps[2][1].node_config["tasks"] = "seg"
    run.start(rounds=2)
    for message in (*run.grid.sent, *run.grid.received):
        node = message.metadata.dst_node_id if message in run.grid.sent else message.metadata.src_node_id
        if node == 2:
            named = {
                key.partition("/")[0] for record in message.content.values() for key in record if "/" in key
            }
            assert named <= {"seg"}
    assert [len(replies) for replies in run.strategies["det"].trained] == [2, 2]  # type: ignore[attr-defined]


def test_configurations_reach_their_task_alone(run: Run) -> None:
    run.start(
        train_config={"seg": ConfigRecord({"lr": 0.5})}, evaluate_config=ConfigRecord({"threshold": 0.1})
    )
    config = next(m for m in run.grid.sent if m.metadata.message_type == "train").content["config"]
    assert config["seg/lr"] == 0.5
    assert "det/lr" not in config
    assert config["det/threshold"] == 0.1
    assert config["det/server-round"] == 1


def test_configurations_that_one_message_cannot_carry_are_refused(run: Run) -> None:
    run.start(
        train_config={"seg": ConfigRecord({"size": 1})}, evaluate_config={"seg": ConfigRecord({"size": 2})}
    )
    (line, *_) = run.failures("seg")
    assert "'size' is 1 in train_config and 2 in evaluate_config" in line
    assert run.failures("det") == []


def test_the_server_evaluates_each_task(run: Run) -> None:
    def evaluate(task: str, number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"arrays": len(arrays), "round": number})

    results = run.start(evaluate_fn=evaluate)
    assert results["det"].evaluate_metrics_serverapp == {
        number: MetricRecord({"arrays": len(run.models["det"]), "round": number}) for number in (0, 1)
    }
    results = run.start(evaluate_fn={"det": lambda number, arrays: MetricRecord({"round": number})})
    assert results["det"].evaluate_metrics_serverapp.keys() == {0, 1}
    assert results["seg"].evaluate_metrics_serverapp == {}


def test_a_node_that_joins_later_is_asked_then(run: Run) -> None:
    looks = iter([[1, 2]] * 2)
    run.grid.online = lambda: next(looks, [1, 2, 3])
    run.start(rounds=3)
    assert [played.tasks["seg"].sites for played in run.rounds[:3]] == [
        ("site-0", "site-1"),
        ("site-0", "site-1"),
        ("site-0", "site-1", "site-2"),
    ]


# --- What goes wrong


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            lambda a: a * np.float32("nan"),
            "site 'site-1', task 'det': '0.bias': expected finite values, got 4",
        ),
        (lambda a: a[:3], "site 'site-1', task 'det': '0.bias': expected shape [4], got [3]"),
        (lambda a: a.astype(np.complex64), "'0.bias': expected float32, got complex64"),
        (lambda a: a.astype("S8"), "'0.bias': expected float32, got |S8"),
    ],
)
def test_an_invalid_update_is_left_out_for_its_task_and_node_alone(
    run: Run, change: Callable[[np.ndarray], np.ndarray], line: str
) -> None:
    run.grid.tamper[2] = changed("det/0.bias", change)
    run.start()
    assert run.rounds[0].tasks["det"].sites == ("site-0", "site-2")
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-1", "site-2")
    assert len(run.failures("det")) == 1
    assert line in run.failures("det")[0]
    assert run.failures("seg") == []


def test_updates_of_other_names_are_left_out(run: Run) -> None:
    def rename(sent: Message, reply: Message) -> Message:
        if record := one_by_one(reply):
            record["det/extra"] = record.pop("det/0.bias") if "det/0.bias" in record else Array(np.ones(2))
        return reply

    run.grid.tamper[1] = rename
    run.start()
    assert run.failures("det")[0] == (
        "site 'site-0', task 'det': expected 4 arrays, got 4: '0.bias' is missing"
    )


def test_a_task_that_fails_on_one_node_costs_that_node_alone(run: Run) -> None:
    run.add(2, det=replace(run.tasks["det"], train="toy_tasks:raising"))
    run.start()
    assert run.rounds[0].tasks["det"].sites == ("site-0", "site-2")
    assert run.rounds[0].tasks["enc"].sites == ("site-0", "site-1", "site-2")
    (line,) = run.failures("det")
    assert "'site-1'" in line
    assert "'det'" in line
    assert "the disk is on fire" in line


def test_a_task_that_fails_everywhere_keeps_its_model(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    for node in (1, 2, 3):
        run.add(node, det=replace(run.tasks["det"], train="toy_tasks:raising"))
    with caplog.at_level("ERROR", logger="flwr.fedmt"):
        results = run.start(rounds=2)
    assert results["det"].arrays == run.models["det"]
    assert results["seg"].arrays != run.models["seg"]
    assert run.rounds[1].tasks["det"].sites == ()
    assert len(run.failures("det")) == 6
    assert "task 'det': no update could be used, it keeps its model" in caplog.text


def test_when_nothing_was_ever_updated_the_run_fails(run: Run) -> None:
    for node in (1, 2, 3):
        run.grid.tamper[node] = lambda sent, reply: (
            reply
            if reply.metadata.message_type == "query"
            else Message(Error(2, "<class 'ValueError'>:<'two\nlines'>"), reply_to=sent)
        )
    with pytest.raises(FederationError, match=r"no task was updated in 2 rounds: site .*two lines"):
        run.start(rounds=2)


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("<class 'OSError'>:<'no space left'>", "OSError: no space left"),
        (
            "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::ClientAppActor.run()\nFile x\n"
            "fedmt_flower.errors.ConfigError: too large\n"
            "\nException ClientAppException occurred. Message: too large\n"
            "\nException ClientAppException occurred. Message: too large'>",
            "too large",
        ),
    ],
)
def test_an_app_that_raises_costs_its_node_the_round(run: Run, reason: str, told: str) -> None:
    run.grid.apps[3][1].node_config["partition-id"] = 2
    site = "site-2"
    answers = iter([False, True])

    def tamper(sent: Message, reply: Message) -> Message:
        if reply.metadata.message_type != "train" or not next(answers, False):
            return reply
        return Message(Error(2, reason), reply_to=sent)

    run.grid.tamper[3] = tamper
    run.start(rounds=3)
    assert [site in played.tasks["seg"].sites for played in run.rounds[:3]] == [True, False, True]
    assert run.failures("seg") == [f"site '{site}', task 'seg': {told}"]
    errors = [answer.error for answer in run.rounds[1].answers]
    assert errors == ["", "", told]


def test_a_reply_that_never_comes_costs_its_node_the_round(run: Run) -> None:
    run.grid.tamper[1] = lambda sent, reply: None if reply.metadata.message_type == "train" else reply
    run.start(timeout=0.2)
    assert run.rounds[0].tasks["seg"].sites == ("site-1", "site-2")
    assert run.failures("seg") == ["site 'site-0', task 'seg': no answer in time"]
    assert len(run.strategies["seg"].trained[0]) == 2  # type: ignore[attr-defined]


def test_a_node_that_is_gone_is_told_by_the_message_it_was_sent(run: Run) -> None:
    """Flower answers for it as node 1."""

    def tamper(sent: Message, reply: Message) -> Message:
        if reply.metadata.message_type == "train":
            reply = Message(Error(5, "Node Unavailable"), reply_to=sent)
            reply.metadata.__dict__["_src_node_id"] = 1
        return reply

    run.grid.tamper[2] = tamper
    run.start()
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-2")
    assert run.failures("seg") == ["site 'site-1', task 'seg': Node Unavailable"]


def test_a_reply_that_is_no_package_is_refused(run: Run) -> None:
    def tamper(sent: Message, reply: Message) -> Message:
        if reply.metadata.message_type == "train":
            reply.content["config"] = ConfigRecord({"fedmt-header": "{'not': json"})
        return reply

    run.grid.tamper[2] = tamper
    run.start()
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-2")
    assert "header of a message" in run.failures("seg")[0]


def test_a_task_with_too_few_hosts_fails_without_hanging_the_others(run: Run) -> None:
    run.grid.apps[1][1].node_config["tasks"] = "seg,det"
    run.grid.apps[2][1].node_config["tasks"] = "seg"
    run.strategies["enc"] = FedAvg(min_train_nodes=2)
    run.start(rounds=3)
    assert [played.tasks["enc"].sites for played in run.rounds] == [()] * 4
    assert [played.tasks["det"].sites for played in run.rounds[:3]] == [("site-0", "site-2")] * 3
    assert "task 'enc': hosted by 1 of 3 nodes" in run.failures("enc")[0]
    assert "min_available_nodes=2" in run.failures("enc")[0]
    assert run.rounds[1].wall_s < 1


def test_a_task_waits_for_hosts_that_join_in_time(run: Run) -> None:
    looks = iter([[1]] * 3)
    run.grid.online = lambda: next(looks, [1, 2, 3])
    run.start(join_timeout=30)
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-1", "site-2")


def test_two_nodes_of_one_name_are_told(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.grid.apps[2][1].node_config["site"] = "site-0"
    with caplog.at_level("WARNING", logger="flwr.fedmt"):
        run.start(should_stop=None)
    assert "site 'site-0': two nodes give this name" in caplog.text
    assert "FedMT.start does not use should_stop" in caplog.text
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-0", "site-2")


def test_nobody_there(run: Run) -> None:
    run.grid.online = list
    with pytest.raises(FederationError, match=r"no node connected within 0\.1 s"):
        run.start(timeout=0.1)


def test_an_exception_of_a_strategy_names_its_task_and_costs_that_task(run: Run) -> None:
    run.strategies["det"] = FedAvg(weighted_by_key="pixels")
    run.start()
    (line, *_) = run.failures("det")
    assert line.startswith("task 'det': FedAvg.aggregate_")
    assert "InconsistentMessageReplies: Missing required key `pixels`" in line
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-1", "site-2")


def test_a_total_weight_of_zero_is_said_so(run: Run) -> None:
    def tamper(sent: Message, reply: Message) -> Message:
        if reply.metadata.message_type == "train":
            reply.content["metrics"]["det/num-examples"] = 0
        return reply

    run.grid.tamper = dict.fromkeys((1, 2, 3), tamper)
    run.start()
    assert any("every site gave num-examples = 0" in line for line in run.failures("det"))


def test_a_weight_that_cannot_be_one_is_refused(run: Run) -> None:
    def tamper(sent: Message, reply: Message) -> Message:
        if reply.metadata.message_type == "train":
            reply.content["metrics"]["det/num-examples"] = -3
        return reply

    run.grid.tamper[1] = tamper
    run.start()
    assert run.failures("det") == [
        "site 'site-0', task 'det': metric 'num-examples': expected a finite number of at least 0, got -3"
    ]


def test_with_a_single_task_the_exception_ends_the_run_and_names_it(run: Run) -> None:
    run.add(1)
    single = FedMT({"det": FedAvg(weighted_by_key="pixels")}, discover=True)
    with pytest.raises(InconsistentMessageReplies, match=r"^task 'det': FedAvg\.aggregate_"):
        single.start(run.grid, run.models["det"], num_rounds=1)


# --- What cannot be asked for


@pytest.mark.parametrize(
    ("strategies", "line"),
    [
        ({}, "no task given"),
        ({"a/b": FedAvg()}, "task name 'a/b'"),
        ({"дет": FedAvg()}, "task name 'дет'"),
        ({"a": FedAvg(), "A": FedAvg()}, "names must differ, case aside"),
        ({"a": FedXgbBagging()}, "FedXgbBagging joins boosted trees"),
        ({"a": FedXgbCyclic()}, "FedXgbCyclic joins boosted trees"),
        ({"a": LegacyFedAvg()}, "is no strategy of flwr.serverapp.strategy"),
        (
            {"a": DifferentialPrivacyClientSideFixedClipping(FedAvg(), 1.0, 1.0, 2), "b": FedAvg()},
            "use DifferentialPrivacyServerSideFixedClipping",
        ),
    ],
)
def test_strategies_that_cannot_work_are_refused(strategies: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        FedMT(strategies)
    assert line in str(error.value)


def test_two_tasks_cannot_share_one_strategy() -> None:
    shared = FedAdam()
    with pytest.raises(ConfigError, match="'a' and 'b' share one strategy object"):
        FedMT({"a": shared, "b": shared})


def test_arguments_by_task_are_checked(run: Run) -> None:
    with pytest.raises(ConfigError, match="initial_arrays: none for enc"):
        FedMT(run.strategies).start(run.grid, {"seg": ArrayRecord(), "det": ArrayRecord()})
    with pytest.raises(ConfigError, match="got one ArrayRecord, expected a dict"):
        FedMT(run.strategies).start(run.grid, ArrayRecord())
    with pytest.raises(ConfigError, match="train_config: tra is no task"):
        run.start(train_config={"tra": ConfigRecord()})


# --- As a plain Strategy, driven by someone else's loop


def test_flowers_own_loop_can_drive_it(run: Run) -> None:
    flat = ArrayRecord()
    for task, record in run.models.items():
        for name, array in record.items():
            flat[f"{task}/{name}"] = array
    merged = Strategy.start(
        FedMT(run.strategies), run.grid, flat, num_rounds=2, train_config=ConfigRecord({"seg/lr": 0.05})
    )
    own = FedMT({name: FedAvg() for name in run.tasks}).start(run.grid, run.models, num_rounds=2)
    for task, result in own.items():
        assert {name: merged.arrays[f"{task}/{name}"] for name in result.arrays} == dict(result.arrays)
        for name, value in result.evaluate_metrics_clientapp[2].items():
            assert merged.evaluate_metrics_clientapp[2][f"{task}/{name}"] == value
