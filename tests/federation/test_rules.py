"""Quorum and deadlines by task, and answers that come too late."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import ArrayRecord, Message
from flwr.serverapp.strategy import FedAvg

from fedmt_flower import FedMT, Task, TaskRules, client_app
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.errors import ConfigError
from fedmt_flower.federation import codec

INLINE = DeviceSettings(backend=Backend.INLINE)
Models = Callable[[], dict[str, ArrayRecord]]


class Run:
    """Three toy tasks on three nodes, of which some answer later than they work."""

    def __init__(self, grid: Any, tasks: dict[str, Task], models: Models) -> None:
        self.grid, self.tasks, self.models = grid, tasks, models()
        for node in (1, 2, 3):
            self.add(node)
        self.rounds: list[FederationRound] = []
        self.wall_s = 0.0

    def add(self, node: int, **changes: Task) -> None:
        tasks = {**self.tasks, **changes}
        self.grid.add(node, client_app(*tasks.values(), device=INLINE), **{"partition-id": node - 1})

    def start(self, rules: Any, rounds: int = 1) -> Any:
        begin = time.monotonic()
        strategies = {name: FedAvg(min_available_nodes=1, min_train_nodes=1) for name in self.tasks}
        results = FedMT(strategies, join_timeout=0.0, rules=rules).start(
            self.grid, self.models, num_rounds=rounds, timeout=20.0, on_round=self.rounds.append
        )
        self.wall_s = time.monotonic() - begin
        return results

    def delay(self, node: int, seconds: float, numbers: Iterable[int]) -> None:
        """Let `node` answer its trainings of these numbers, from 0, so much later."""
        pull, held, count = self.grid.pull_messages, {}, itertools.count()
        delayed = set(numbers)

        def late(message_ids: Iterable[str]) -> list[Message]:
            now = []
            for reply in pull(message_ids):
                about = reply.metadata
                slow = about.src_node_id == node and about.message_type == "train" and next(count) in delayed
                if slow:
                    held[about.reply_to_message_id] = (time.monotonic() + seconds, reply)
                else:
                    now.append(reply)
            due = [one for one in message_ids if one in held and held[one][0] <= time.monotonic()]
            return [*now, *(held.pop(one)[1] for one in due)]

        self.grid.pull_messages = late


@pytest.fixture
def run(grid: Any, tasks: dict[str, Task], models: Models) -> Run:
    return Run(grid, tasks, models)


# --- Quorum


def test_a_task_below_its_quorum_keeps_its_model_and_says_so(run: Run) -> None:
    for node in (2, 3):
        run.add(node, det=replace(run.tasks["det"], train="toy_tasks:raising"))
    results = run.start({"det": TaskRules(quorum=2), "seg": TaskRules(quorum=3)})
    assert results["det"].arrays == run.models["det"]
    assert results["seg"].arrays != run.models["seg"]
    first = run.rounds[0].tasks
    assert first["det"].failures[-1] == (
        "task 'det': updates: 1, fewer than its quorum of 2; it keeps its model"
    )
    assert first["det"].sites == ()
    assert first["seg"].sites == ("site-0", "site-1", "site-2")


def test_a_task_hosted_below_its_quorum_trains_nowhere(run: Run) -> None:
    run.grid.apps[3][1].node_config["tasks"] = "seg,enc"
    run.start({"det": TaskRules(quorum=3)})
    assert (
        "task 'det': nodes that host it: 2, fewer than its quorum of 3"
        in run.rounds[0].tasks["det"].failures[0]
    )
    for answer in run.rounds[0].answers:
        assert answer.report is not None
        assert [task.samples for task in answer.report.tasks if task.task == "det"] in ([], [0])


def test_a_quorum_is_waited_for(run: Run) -> None:
    looks = itertools.count()
    run.grid.online = lambda: (1, 2) if next(looks) < 2 else (1, 2, 3)
    strategies = {name: FedAvg(min_available_nodes=1) for name in run.tasks}
    FedMT(strategies, join_timeout=10.0, rules=TaskRules(quorum=3)).start(
        run.grid, run.models, num_rounds=1, on_round=run.rounds.append
    )
    assert run.rounds[0].tasks["det"].sites == ("site-0", "site-1", "site-2")


# --- Deadlines


def test_a_deadline_travels_to_the_node_by_task(run: Run) -> None:
    run.start({"det": TaskRules(deadline_s=60), "enc": TaskRules(quorum=1)})
    (package, *_) = [one for one in run.grid.sent if one.metadata.message_type == "train"]
    decoded = codec.decode_package(package.content)
    assert decoded is not None
    assert {task: share.deadline_s for task, share in decoded[1].items()} == {
        "seg": None,
        "det": 60.0,
        "enc": None,
    }


def test_who_is_late_is_not_waited_for(
    run: Run,
) -> None:
    run.delay(2, 60.0, numbers=[0])
    results = run.start(TaskRules(deadline_s=0.5, grace_s=0.5), rounds=4)
    assert [played.tasks["seg"].sites for played in run.rounds[:2]] == [
        ("site-0", "site-2"),
        ("site-0", "site-1", "site-2"),
    ]
    assert run.rounds[0].tasks["seg"].failures == ("site 'site-1', task 'seg': no answer in time",)
    assert run.rounds[0].wall_s < 15
    assert all(not played.tasks["seg"].failures for played in run.rounds[1:])
    assert results["seg"].train_metrics_clientapp.keys() == {1, 2, 3, 4}


def test_a_late_answer_is_told_when_it_comes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run.delay(2, 1.2, numbers=[0])
    run.delay(3, 2.0, numbers=[1])
    run.start(TaskRules(deadline_s=0.5, grace_s=0.5), rounds=3)
    assert "Late and dropped: site 'site-1', round 1: seg, det, enc" in caplog.text


def test_the_longest_deadline_of_a_node_is_waited_for(run: Run) -> None:
    run.delay(2, 1.0, numbers=[0])
    run.start({"seg": TaskRules(deadline_s=0.2, grace_s=0.1), "det": TaskRules(deadline_s=5)})
    assert run.rounds[0].tasks["det"].sites == ("site-0", "site-1", "site-2")
    assert run.rounds[0].tasks["seg"].sites == ("site-0", "site-1", "site-2")


def test_a_reply_of_another_round_is_refused(run: Run) -> None:
    kept: list[Message] = []

    def replay(sent: Message, reply: Message) -> Message:
        """Whatever the node is asked, it sends what it sent first."""
        if sent.metadata.message_type == "query":
            return reply
        kept.append(reply)
        return Message(kept[0].content, reply_to=sent)

    run.grid.tamper[2] = replay
    run.start(None, rounds=2)
    assert run.rounds[0].tasks["det"].failures == ()
    assert run.rounds[1].tasks["det"].failures == (
        "site 'site-1', task 'det': the reply is of round 1, not of 2",
    )
    assert run.rounds[1].tasks["det"].sites == ("site-0", "site-2")


# --- Refused


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"quorum": -1}, "quorum: got -1, expected 0 sites or more"),
        ({"deadline_s": 0.0}, "deadline_s: got 0.0, expected more than 0 seconds, or none"),
        ({"grace_s": float("nan")}, "grace_s: got nan, expected 0 seconds or more"),
    ],
)
def test_rules_out_of_range_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TaskRules(**wrong)
    assert str(raised.value) == told


def test_rules_for_an_unknown_task_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rules: 'sog' is no task of this FedMT; .* did you mean seg\?"):
        FedMT({"seg": FedAvg(), "det": FedAvg()}, rules={"sog": TaskRules()})
