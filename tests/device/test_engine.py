"""One contract, every engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedmt_flower.device.contract import Engine, Progress, RoundResult
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.round import Mode, RoundOrder, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError, EngineError

State = Mapping[str, NDArray[Any]]


@pytest.fixture(
    scope="module", params=[Backend.INLINE, Backend.CPU, pytest.param(Backend.MPS, marks=pytest.mark.gpu)]
)
def engine(request: pytest.FixtureRequest, home: Path) -> Iterator[Engine]:
    engine = connect(DeviceSettings(backend=request.param, idle_timeout_s=120))
    yield engine
    engine.close()


@pytest.fixture
def tasks(make_task: Callable[..., Task]) -> tuple[Task, Task]:
    return make_task("tumour"), make_task("dose", lr=0.01, epochs=1)


def bits(result: RoundResult) -> dict[str, dict[str, bytes]]:
    return {task: {key: a.tobytes() for key, a in state.items()} for task, state in result.weights.items()}


def test_a_round_trains_every_task_from_the_weights_it_is_given(
    engine: Engine, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    result = engine.run_round(make_order(*tasks), {"tumour": weights, "dose": weights})
    assert [report.status for report in result.report.tasks] == [Status.DONE, Status.DONE]
    assert list(result.weights) == ["tumour", "dose"]
    for state in result.weights.values():
        assert [(k, a.dtype, a.shape) for k, a in state.items()] == [
            (k, a.dtype, a.shape) for k, a in weights.items()
        ]
        assert not np.array_equal(state["0.weight"], weights["0.weight"])
    assert result.weights["tumour"]["1.num_batches_tracked"] == 8
    tumour, dose = result.report.tasks
    assert (tumour.samples, dose.samples) == (128, 64)
    assert (tumour.train_examples, tumour.evaluate_examples) == (64, 32)
    assert tumour.evaluate_metrics == dose.evaluate_metrics
    assert tumour.compute_s > 0
    assert min(tumour.pid, tumour.level) > 0


def test_a_layer_that_is_wrong_in_bfloat16_fails_its_task_alone_by_name(
    engine: Engine, make_task: Callable[..., Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    sound = make_task("tumour", precision="bfloat16")
    wrong = replace(make_task("dose", precision="bfloat16"), model="engine_tasks:unsound")
    report = engine.run_round(make_order(sound, wrong), {"tumour": weights, "dose": weights}).report
    assert [task.status for task in report.tasks] == [Status.DONE, Status.FAILED]
    assert "task 'dose': layer 0 computes outputs 100% off those in float32" in report.task("dose").error


def test_the_timeline_lies_within_the_round(
    engine: Engine, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    report = engine.run_round(make_order(*tasks), {"tumour": weights, "dose": weights}).report
    assert {(span.task, span.phase) for span in report.timeline} == {
        (task.name, phase) for task in tasks for phase in (Phase.PREPARE, Phase.EVALUATE, Phase.COMPUTE)
    }
    for span in report.timeline:
        assert 0 <= span.start_s <= span.end_s <= report.waited_s + report.wall_s


def test_in_turn_no_two_tasks_overlap(
    engine: Engine, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    order = make_order(*tasks, policy=Policy.TEMPORAL)
    report = engine.run_round(order, {"tumour": weights, "dose": weights}).report
    assert report.plan.sharing is Sharing.IN_TURN
    first = max(span.end_s for span in report.timeline if span.task == "tumour")
    assert first <= min(span.start_s for span in report.timeline if span.task == "dose")


def test_evaluating_alone_changes_and_returns_no_weights(
    engine: Engine, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    result = engine.run_round(make_order(*tasks, mode=Mode.EVALUATE), {"tumour": weights, "dose": weights})
    assert result.weights == {}
    assert [report.samples for report in result.report.tasks] == [0, 0]
    assert "accuracy" in result.report.task("dose").evaluate_metrics


def test_an_order_gives_the_same_bits_whatever_ran_before(
    engine: Engine, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    given = {"tumour": weights, "dose": weights}
    order = make_order(*tasks, round=2)
    first = engine.run_round(order, given)
    other = engine.run_round(make_order(*tasks, round=3, site="elsewhere"), given)
    assert bits(engine.run_round(order, given)) == bits(first)
    assert bits(other) != bits(first)


def test_a_task_that_fails_takes_no_other_with_it(
    engine: Engine, make_task: Callable[..., Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    bad = {
        "raises": (make_task("raises", "raise"), "ValueError: the loss is lost"),
        "nan": (make_task("nan", "nan"), "not finite"),
        "shape": (make_task("shape", "reshape"), "expected [8, 4]"),
        "path": (
            replace(make_task("path"), model="engine_tasks:modle"),
            "has no 'modle'; did you mean model",
        ),
    }
    good = make_task("good")
    order = make_order(*(task for task, _ in bad.values()), good)
    result = engine.run_round(order, dict.fromkeys([*bad, "good"], weights))
    assert list(result.weights) == ["good"]
    assert result.report.task("good").status is Status.DONE
    for name, (_, cause) in bad.items():
        report = result.report.task(name)
        assert report.status is Status.FAILED
        assert report.error.startswith(f"site 'clinic', task '{name}'")
        assert cause in report.error
        assert "\n" not in report.error


def test_progress_is_told_of_the_tasks_of_the_round(
    engine: Engine, make_task: Callable[..., Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    told: list[Progress] = []
    slow = replace(make_task("slow"), trainer="engine_tasks:Slow")
    report = engine.run_round(make_order(slow), {"slow": weights}, told.append).report
    assert report.task("slow").samples == 160
    assert told
    assert {(progress.task, progress.total) for progress in told} == {("slow", 128)}
    assert [p.samples for p in told] == sorted(p.samples for p in told)


def test_what_cannot_be_run_is_refused_and_the_engine_serves_on(
    engine: Engine, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    given = {"tumour": weights, "dose": weights}
    with pytest.raises(EngineError, match="no weights for dose"):
        engine.run_round(make_order(*tasks), {"tumour": weights})
    with pytest.raises(ConfigError, match="3 budgets for 2 tasks"):
        engine.run_round(make_order(*tasks, policy=Policy.STATIC, budgets=(10, 20, 30)), given)
    assert list(engine.run_round(make_order(*tasks), given).weights) == ["tumour", "dose"]


def test_processes_compute_what_one_process_does(
    home: Path, tasks: tuple[Task, Task], make_order: Callable[..., RoundOrder], weights: State
) -> None:
    given = {"tumour": weights, "dose": weights}
    results = []
    for backend in (Backend.INLINE, Backend.CPU):
        engine = connect(DeviceSettings(backend=backend))
        results.append(bits(engine.run_round(make_order(*tasks, round=5), given)))
        engine.close()
    assert results[0] == results[1]
