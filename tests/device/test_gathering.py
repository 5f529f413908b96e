"""A round whose weights come by several lanes is one round: planned as one, and the same to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from fedmt_flower.device.contract import RoundResult
from fedmt_flower.device.engine.client import EngineClient, EngineGone
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.device.engine.home import Home
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.coordination import Coordination, NetworkRules
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.network import Link
from fedmt_flower.domain.round import RoundOrder, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError

State = Mapping[str, NDArray[Any]]
MakeTask = Callable[..., Task]
MakeOrder = Callable[..., RoundOrder]

CPU = DeviceSettings(backend=Backend.CPU, idle_timeout_s=120)


@pytest.fixture(scope="module")
def engine(home: Path) -> Iterator[EngineClient]:
    client = connect(CPU)
    assert isinstance(client, EngineClient)
    yield client
    client.close()


@pytest.fixture
def lanes() -> Iterator[Callable[..., Future[RoundResult]]]:
    """Brings some of the tasks of an order to the engine, from a client of their own."""
    with ThreadPoolExecutor(4) as pool:

        def bring(order: RoundOrder, weights: State, *tasks: str) -> Future[RoundResult]:
            def play() -> RoundResult:
                with closing(connect(CPU)) as client:
                    return client.run_round(replace(order, lane=tasks), dict.fromkeys(tasks, weights))

            return pool.submit(play)

        yield bring


def bits(*results: RoundResult) -> dict[str, dict[str, bytes]]:
    weights = {task: state for result in results for task, state in result.weights.items()}
    return {task: {key: a.tobytes() for key, a in state.items()} for task, state in weights.items()}


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def busy(engine: EngineClient, task: str) -> bool:
    return any(worker.task == task and worker.busy for worker in engine.status().workers)


def test_a_lane_has_its_update_while_others_train_and_the_bits_are_those_of_one_order(
    engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, flag: Path, lanes: Any
) -> None:
    tasks = make_task("tumour"), make_task("dose", lr=0.01), make_task("slow", "wait", flag=str(flag))
    order = make_order(*tasks, run="lanes", policy=Policy.ISOLATED)
    slow = lanes(order, weights, "slow")
    until(lambda: busy(engine, "slow"))
    tumour, dose = (lanes(order, weights, task).result(timeout=30) for task in ("tumour", "dose"))
    assert not slow.done()
    flag.unlink()
    last = slow.result(timeout=30)

    one = engine.run_round(replace(order, run="whole"), dict.fromkeys(("tumour", "dose", "slow"), weights))
    assert bits(tumour, dose, last) == bits(one)
    for result, name in ((tumour, "tumour"), (dose, "dose"), (last, "slow")):
        assert [task.task for task in result.report.tasks] == [name]
        assert {span.task for span in result.report.timeline} == {name}
        assert result.report.plan == one.report.plan

    def computed(result: RoundResult) -> tuple[float, float]:
        (span,) = [span for span in result.report.timeline if span.phase is Phase.COMPUTE]
        return result.report.arrived + span.start_s, result.report.arrived + span.end_s

    assert computed(last)[0] < computed(tumour)[0] < computed(dose)[1] < computed(last)[1]


def test_a_lane_that_never_comes_costs_the_others_nothing_and_is_told(
    engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, lanes: Any
) -> None:
    order = make_order(make_task("here"), make_task("late"), run="missing", policy=Policy.ISOLATED)
    here = lanes(order, weights, "here").result(timeout=30)
    assert [place.task for place in here.report.plan.tasks] == ["here", "late"]
    line = "site 'clinic', round 1: it went on without 'late', whose weights no node of the site has brought"
    until(lambda: line in Home("cpu").log_tail(20))
    assert engine.status().queue == ()

    # Should it come after all, its task is played, and nobody waits for those that were.
    late = lanes(order, weights, "late").result(timeout=30)
    assert [place.task for place in late.report.plan.tasks] == ["late"]
    assert late.report.task("late").status is Status.DONE


def test_a_lane_that_is_lost_takes_its_own_tasks_along_and_may_come_again(
    engine: EngineClient, make_task: MakeTask, make_order: MakeOrder, weights: State, flag: Path, lanes: Any
) -> None:
    tasks = make_task("hangs", "forever"), make_task("slow", "wait", flag=str(flag))
    order = make_order(*tasks, run="lost")
    slow = lanes(order, weights, "slow")
    until(lambda: busy(engine, "slow"))
    lost = connect(CPU)
    assert isinstance(lost, EngineClient)

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(lost.run_round, replace(order, lane=("hangs",)), {"hangs": weights})
        until(lambda: busy(engine, "hangs"))
        lost._channel.hang_up()
        with pytest.raises(EngineGone):
            hanging.result(timeout=20)
    until(lambda: not busy(engine, "hangs"))
    assert busy(engine, "slow")
    again = lanes(make_order(make_task("hangs"), tasks[1], run="lost"), weights, "hangs")
    until(lambda: engine.status().queue == ("clinic",))
    flag.unlink()
    assert list(slow.result(timeout=30).weights) == ["slow"]
    assert list(again.result(timeout=30).weights) == ["hangs"]


def test_lanes_have_a_real_link_each_and_none_emulated(make_task: MakeTask, make_order: MakeOrder) -> None:
    order = make_order(make_task("a"), make_task("b"))
    link = Coordination(network=NetworkRules(link=Link(up_mbps=1, down_mbps=1), force=True))
    with pytest.raises(ConfigError, match=r"site 'clinic' has several nodes, .* use network=none"):
        replace(order, coordination=link, lane=("a",))
    with pytest.raises(ConfigError, match="lane: got c, expected some of a, b"):
        replace(order, lane=("c",))
