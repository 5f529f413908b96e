"""Several nodes of one site, each with some of its tasks: one site to strategies, records and the engine."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedmt_flower import FedMT, Task, client_app
from fedmt_flower.device.engine.connection import running
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.history import FederationRound, SiteAnswer
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.round import Mode, RoundReport, Status, TaskReport
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation import codec
from fedmt_flower.federation.arrays import to_weights
from fedmt_flower.federation.lanes import join
from fedmt_flower.federation.pacing import pace_of
from fedmt_flower.federation.package import Share
from fedmt_flower.federation.record import entries
from fedmt_flower.federation.sites import site_of

INLINE = DeviceSettings(backend=Backend.INLINE)
Models = Callable[[], dict[str, ArrayRecord]]

ONE = (("a", "seg,det,enc"), ("b", "seg,det,enc"))
LANES = (("a", "seg"), ("b", "enc,det"), ("a", "det,enc"), ("b", "seg"))


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A home for engines, of which none stays."""
    monkeypatch.setenv("FEDMT_HOME", str(tmp_path))
    yield
    for engine in running():
        engine.stop()


def federate(
    grid: Any, tasks: dict[str, Task], models: Models, nodes: tuple[tuple[str, str], ...]
) -> tuple[dict[str, Any], list[FederationRound]]:
    rounds: list[FederationRound] = []
    app = client_app(*tasks.values(), device=INLINE)
    for node, (site, hosted) in enumerate(nodes, 1):
        # The parts of the data are the sites', whichever node trains on them.
        grid.add(node, app, site=site, tasks=hosted, **{"partition-id": "ab".index(site)})
    strategies = {name: FedAvg() for name in tasks}
    results = FedMT(strategies, join_timeout=0.0).start(
        grid, models(), num_rounds=2, timeout=20.0, on_round=rounds.append
    )
    return results, rounds


def bits(results: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    return {
        task: {name: array.numpy().tobytes() for name, array in result.arrays.items()}
        for task, result in results.items()
    }


def test_lanes_make_the_models_that_one_message_makes(
    grid: Any, tasks: dict[str, Task], models: Models, caplog: pytest.LogCaptureFixture
) -> None:
    expected, whole = federate(type(grid)(), tasks, models, ONE)
    with caplog.at_level("WARNING", logger="flwr.fedmt"):
        results, rounds = federate(grid, tasks, models, LANES)
    assert bits(results) == bits(expected)
    assert "two nodes" not in caplog.text
    for played, other in zip(rounds, whole, strict=True):
        assert [answer.site for answer in played.answers] == ["a", "b"]
        assert [(e.site, e.task) for e in sorted(entries(played), key=lambda e: (e.site, e.task))] == [
            (e.site, e.task) for e in sorted(entries(other), key=lambda e: (e.site, e.task))
        ]
        assert [a.updates for a in played.answers] == [
            {task: a.updates[task] for task in a.updates} for a in other.answers
        ]
        assert {task: outcome.sites for task, outcome in played.tasks.items()} == {
            task: outcome.sites for task, outcome in other.tasks.items()
        }


def test_each_lane_is_given_its_own_arrays_and_told_of_the_whole_round(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    federate(grid, tasks, models, LANES)
    sent = [message for message in grid.sent if message.metadata.message_type == "train"][:4]
    told = {}
    for message in sent:
        package = codec.decode_package(message.content)
        assert package is not None
        told[message.metadata.dst_node_id] = package[1]
    assert all(list(shares) == ["seg", "det", "enc"] for shares in told.values())
    given = {node: [task for task, share in shares.items() if share.weights] for node, shares in told.items()}
    assert given == {1: ["seg"], 2: ["det", "enc"], 3: ["det", "enc"], 4: ["seg"]}
    assert all(share.weights is None for share in (told[1]["det"], told[1]["enc"], told[2]["seg"]))


def test_a_lane_without_an_answer_costs_its_own_tasks_alone(
    grid: Any, tasks: dict[str, Task], models: Models
) -> None:
    def drop(sent: Message, reply: Message) -> Message | None:
        return None if sent.metadata.message_type == "train" else reply

    grid.tamper[3] = drop
    rounds: list[FederationRound] = []
    app = client_app(*tasks.values(), device=INLINE)
    for node, (site, hosted) in enumerate(LANES, 1):
        grid.add(node, app, site=site, tasks=hosted, **{"partition-id": "ab".index(site)})
    FedMT({name: FedAvg() for name in tasks}, join_timeout=0.0).start(
        grid, models(), num_rounds=1, timeout=0.5, on_round=rounds.append
    )
    first = rounds[0]
    assert {task: outcome.sites for task, outcome in first.tasks.items()} == {
        "seg": ("a", "b"),
        "det": ("b",),
        "enc": ("b",),
    }
    assert first.tasks["det"].failures == ("site 'a', task 'det': no answer in time",)
    written = {(entry.site, entry.task): entry for entry in entries(first)}
    assert written["a", "seg"].status is Status.DONE
    assert (written["a", "det"].status, written["a", "det"].error) == (Status.FAILED, "no answer in time")


def test_lanes_begin_their_round_again_when_its_engine_was_killed(
    tasks: dict[str, Task], models: Models, engines: None, caplog: pytest.LogCaptureFixture
) -> None:
    given = {
        task: Share(mode=Mode.TRAIN, weights=to_weights(model), config={"epochs": 600})
        for task, model in models().items()
    }
    beside = {task: replace(share, weights=None) for task, share in given.items()}

    def play(run: int, *own: str) -> dict[str, Any]:
        context = Context(run, 1, {"site": "a", "tasks": ",".join(own)}, RecordDict(), {})
        settings = DeviceSettings(backend=Backend.CPU, idle_timeout_s=60)
        site = site_of(
            context, tuple(tasks.values()), allocation=Allocation(policy=Policy.SHARING), device=settings
        )
        shares = {task: given[task] if task in own else beside[task] for task in tasks}
        report, weights = site.play(1, shares)
        assert {task.task for task in report.tasks} == {*own}
        return {task: {name: a.tobytes() for name, a in state.items()} for task, state in weights.items()}

    with ThreadPoolExecutor(2) as pool:
        lanes = [pool.submit(play, 1, *own) for own in (("seg",), ("det", "enc"))]
        deadline = time.monotonic() + 30
        while not (found := running()) or not any(w.busy for w in found[0].status().workers):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.kill(found[0].pid, signal.SIGKILL)
        first, second = (lane.result(timeout=60) for lane in lanes)
    assert "the round begins again" in caplog.text
    assert first | second == play(2, *tasks)


def test_reports_of_one_round_count_from_the_arrival_of_its_first_order() -> None:
    plan = RoundPlan(
        tasks=(TaskPlan(task="seg", budget=50), TaskPlan(task="det", budget=50)), sharing=Sharing.CAPPED
    )
    first = RoundReport(
        site="a",
        round=1,
        plan=plan,
        tasks=(TaskReport(task="seg", status=Status.DONE),),
        timeline=(Span(task="seg", phase=Phase.COMPUTE, start_s=1.0, end_s=3.0),),
        backend="cpu",
        waited_s=0.5,
        wall_s=2.5,
        arrived=100.0,
    )
    late = replace(
        first,
        tasks=(TaskReport(task="det", status=Status.DONE),),
        timeline=(Span(task="det", phase=Phase.COMPUTE, start_s=0.2, end_s=4.0),),
        waited_s=0.0,
        wall_s=4.0,
        arrived=105.0,
    )
    answers = [
        (SiteAnswer(site="a", node=1, report=late, updates={"det": "d"}), ("det",)),
        (SiteAnswer(site="a", node=2, report=first, updates={"seg": "s"}), ("seg",)),
    ]
    joined = join(answers)
    assert joined.report is not None
    assert {task.task for task in joined.report.tasks} == {"seg", "det"}
    assert joined.updates == {"seg": "s", "det": "d"}
    assert (joined.report.arrived, joined.report.waited_s) == (100.0, 0.5)
    np.testing.assert_allclose(joined.report.wall_s, 8.5)
    np.testing.assert_allclose([s.end_s for s in joined.report.timeline], [3.0, 9.0])
    done = FederationRound(round=1, final=False, started=0.0, wall_s=9.0, answers=(joined,), tasks={})
    assert (pace_of(done).task, pace_of(done).observed_s) == ("det", joined.report.wall_s)
    silent = [(SiteAnswer(site="a", node=node, error="gone"), ("seg",)) for node in (1, 2)]
    assert join(silent).error == "gone"
