"""A task's rounds: what goes in, what comes out, and what it says when it cannot."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedmt_flower.device.contract import Progress, Weights
from fedmt_flower.device.ipc.frames import Rehearse, Rehearsed
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.ipc.packed import Packed
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.worker.measuring import Measurer
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.round import Mode
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import TaskError

SITE = {"partition-id": 1, "num-partitions": 3}
WHOLE = Task(
    name="seg",
    model="quickstart_app:Net",
    data="quickstart_app:load_data",
    train="quickstart_app:train",
    evaluate="quickstart_app:test",
    parameters={"local-epochs": 2, "lr": 0.1, "batch_size": 16},
    python_path=(str(Path(__file__).parent),),
)
STEPPED = replace(WHOLE, data="quickstart_app:load_tensors", train="", evaluate="")
BOTH = Mode.TRAIN_AND_EVALUATE


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads, path = torch.get_num_threads(), list(sys.path)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    sys.path[:] = path


def job(task: Task, round: int = 1, mode: Mode = BOTH, site: str = "a", **parameters: Scalar) -> Job:
    return Job(
        site=site, round=round, seed=5, mode=mode, parameters={**task.parameters, **SITE, **parameters}
    )


def bits(weights: Weights | None) -> dict[str, bytes]:
    assert weights is not None
    return {name: array.tobytes() for name, array in weights.items()}


@pytest.mark.parametrize("task", [WHOLE, STEPPED, replace(STEPPED, data="quickstart_app:load_rows")])
def test_a_round_is_a_function_of_weights_parameters_and_seed(task: Task) -> None:
    start = initial_weights(task, 1)
    runtime = TaskRuntime(task, "cpu")
    first = runtime.run(job(task), start)
    ended = bits(first.weights)
    runtime.run(job(task, round=2, site="b"), first.weights or {})
    torch.rand(7)
    again = runtime.run(job(task), start)
    fresh = TaskRuntime(task, "cpu").run(job(task), start)
    assert bits(again.weights) == ended == bits(fresh.weights)
    assert again.evaluate_metrics == first.evaluate_metrics == fresh.evaluate_metrics
    later = bits(runtime.run(job(task, round=2), start).weights)
    # The app seeds its loader itself: one order in every round, as Flower without the package has it.
    assert (later == ended) is (task is WHOLE)


@pytest.mark.parametrize("task", [WHOLE, STEPPED])
def test_evaluation_leaves_no_mark_on_training(task: Task) -> None:
    start = initial_weights(task, 1)
    runtime = TaskRuntime(task, "cpu")
    both = runtime.run(job(task), start)
    ended = bits(both.weights)
    trained = runtime.run(job(task, mode=Mode.TRAIN), start)
    assert bits(trained.weights) == ended
    judged = runtime.run(job(task, mode=Mode.EVALUATE), start)
    assert judged.evaluate_metrics == both.evaluate_metrics
    assert (trained.evaluate_metrics, judged.train_metrics, judged.weights) == ({}, {}, None)
    assert [s.phase for s in both.stretches] == [Phase.PREPARE, Phase.EVALUATE, Phase.COMPUTE]
    assert all(s.start <= s.end for s in both.stretches)


def test_a_glance_at_evaluation_takes_one_batch_and_leaves_no_mark() -> None:
    task = replace(STEPPED, data="quickstart_app:load_much_to_judge")
    start = initial_weights(task, 1)
    fresh = TaskRuntime(task, "cpu").run(job(task), start)
    runtime, taken = TaskRuntime(task, "cpu"), list[tuple[bool, int]]()
    watching = runtime.model(job(task)).register_forward_hook(
        lambda model, given, _: taken.append((model.training, len(given[0])))
    )
    runtime.glance(job(task, mode=Mode.TRAIN))
    assert not taken
    runtime.glance(job(task))
    watching.remove()
    assert taken == [(False, 256)]
    after = runtime.run(job(task), start)
    assert bits(after.weights) == bits(fresh.weights)
    assert after.evaluate_metrics == fresh.evaluate_metrics


@pytest.mark.parametrize(
    ("asked", "mode", "batches"), [(True, BOTH, 1), (False, BOTH, 0), (True, Mode.TRAIN, 0)]
)
def test_a_rehearsal_evaluates_where_it_is_asked_to(asked: bool, mode: Mode, batches: int) -> None:
    runtime, judged = TaskRuntime(STEPPED, "cpu"), list[bool]()
    asked_for = job(STEPPED, mode=mode)
    runtime.model(asked_for).register_forward_hook(lambda model, *_: judged.append(not model.training))
    answer = Measurer(runtime).answer(Rehearse(job=asked_for, steps=2, evaluate=asked))
    assert isinstance(answer, Rehearsed)
    assert (judged.count(True), judged.count(False)) == (batches, 2)


def test_an_ordinary_app_trains_as_by_hand() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import quickstart_app as app

    start = initial_weights(WHOLE, 1)
    result = TaskRuntime(WHOLE, "cpu").run(job(WHOLE), start)
    net = app.Net()
    net.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in start.items()})
    loader, _ = app.load_data(1, 3, 16)
    loss = app.train(net.train(), loader, 2, 0.1, torch.device("cpu"))
    assert result.train_metrics == {"train_loss": loss}
    assert bits(result.weights) == bits({name: t.numpy() for name, t in net.state_dict().items()})


def test_what_a_round_reports() -> None:
    start = initial_weights(STEPPED, 1)
    result = TaskRuntime(STEPPED, "cpu").run(job(STEPPED), start)
    assert (result.samples, result.train_examples, result.evaluate_examples) == (2 * 97, 97, 97)
    assert set(result.evaluate_metrics) == {"loss", "accuracy"}
    assert result.weights is not None
    assert list(result.weights) == list(start)
    assert [a.dtype for a in result.weights.values()] == [a.dtype for a in start.values()]
    steps = result.weights["layers.1.num_batches_tracked"]
    assert (steps.shape, steps.dtype, int(steps)) == ((), np.int64, 12)  # 97 = 5·16 + 17, twice


def test_training_learns() -> None:
    runtime, weights = TaskRuntime(STEPPED, "cpu"), initial_weights(STEPPED, 1)
    before = runtime.run(job(STEPPED, mode=Mode.EVALUATE), weights).evaluate_metrics["accuracy"]
    for round in range(3):
        weights = runtime.run(job(STEPPED, round, epochs=5), weights).weights or {}
    after = runtime.run(job(STEPPED, mode=Mode.EVALUATE), weights).evaluate_metrics["accuracy"]
    assert before < 0.7 < 0.95 < after


def test_weights_are_cast_to_the_models_own_types() -> None:
    start = initial_weights(STEPPED, 1)
    wide = {name: np.asarray(array, dtype=np.float64) for name, array in reversed(start.items())}
    runtime = TaskRuntime(STEPPED, "cpu")
    assert bits(runtime.run(job(STEPPED), wide).weights) == bits(runtime.run(job(STEPPED), start).weights)


def test_read_only_weights_are_left_alone() -> None:
    start = initial_weights(STEPPED, 1)
    before = bits(start)
    for array in start.values():
        array.setflags(write=False)
    TaskRuntime(STEPPED, "cpu").run(job(STEPPED), start)
    assert bits(start) == before


def test_data_is_loaded_once_for_each_site_and_arguments() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import quickstart_app as app

    runtime, start = TaskRuntime(WHOLE, "cpu"), initial_weights(WHOLE, 1)
    app.LOADED.clear()
    for round in (1, 2):
        for part in (0, 1):
            order = job(WHOLE, round, Mode.EVALUATE, site=f"s{part}")
            runtime.run(replace(order, parameters=order.parameters | {"partition-id": part}), start)
    assert app.LOADED == [0, 1]
    runtime.run(job(WHOLE, 3, Mode.EVALUATE, "s0", batch_size=8), start)
    assert app.LOADED == [0, 1, 1]


def test_progress_counts_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedmt_flower.device.training.execution._PROGRESS_EVERY_S", 0.0)
    told: list[Progress] = []
    TaskRuntime(STEPPED, "cpu").run(job(STEPPED), initial_weights(STEPPED, 1), told.append)
    assert [progress.samples for progress in told][-2:] == [2 * 97 - 17, 2 * 97]
    assert {(progress.task, progress.total) for progress in told} == {("seg", 2 * 97)}


def test_a_trainer_of_the_users_own() -> None:
    task = replace(STEPPED, trainer="quickstart_app:Countdown", parameters={"steps": 4})
    start = initial_weights(task, 1)
    result = TaskRuntime(task, "cpu").run(job(task, round=7, mode=Mode.TRAIN), start)
    assert (result.samples, result.train_metrics) == (20, {"left": 0.0, "round": 7.0})
    assert result.weights is not None
    np.testing.assert_allclose(result.weights["layers.0.bias"], start["layers.0.bias"] + 4, rtol=1e-5)


def _without(weights: dict[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {key: array for key, array in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda w: _without(w, "layers.0.bias"), "no 'layers.0.bias'"),
        (lambda w: {**w, "extra": np.zeros(2)}, "unexpected 'extra'"),
        (lambda w: {**w, "layers.0.bias": np.zeros(3)}, r"'layers.0.bias' has shape \[3\], expected \[8\]"),
        (lambda w: {**w, "layers.0.bias": np.full(8, np.inf)}, "are not finite: 'layers.0.bias'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_the_next_round_works(change: Any, cause: str) -> None:
    start = dict(initial_weights(STEPPED, 1))
    runtime = TaskRuntime(STEPPED, "cpu")
    with pytest.raises(TaskError, match=f"site 'a', task 'seg': weights.*{cause}"):
        runtime.run(job(STEPPED), change(start))
    assert runtime.run(job(STEPPED), start).samples == 2 * 97


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"train": "quickstart_app:train_exits"}, r"train raised SystemExit: 3 \(quickstart_app.py:\d+\)"),
        ({"train": "quickstart_app:train_nan"}, "train returned train_loss nan, which is not finite"),
        ({"train": "quickstart_app:train_text"}, "train returned str as train_loss; expected a number"),
        ({"data": "quickstart_app:load_nothing"}, "the training split is empty"),
        ({"data": "quickstart_app:load_three"}, r"got 3 values, expected \(train, test\)"),
        ({"model": "quickstart_app:samples"}, "gave a tuple, expected a"),
        ({"objective": "quickstart_app:Net", "train": "", "evaluate": ""}, "has no loss and no measure"),
        ({"parameters": {"lr": 0.1, "batch_size": 4}}, "parameter 'epochs' has no value"),
    ],
)
def test_a_task_that_fails_says_so_in_one_line(fields: dict[str, Any], cause: str) -> None:
    task = replace(WHOLE, **fields)
    with pytest.raises(TaskError, match=f"^site 'a', task 'seg'.*{cause}") as info:
        TaskRuntime(task, "cpu").run(job(task), initial_weights(WHOLE, 1))
    assert "\n" not in str(info.value)


def test_training_that_diverges_is_told_from_training_that_ends() -> None:
    runtime, start = TaskRuntime(STEPPED, "cpu"), initial_weights(STEPPED, 1)
    with pytest.raises(TaskError, match="not finite"):
        runtime.run(job(STEPPED, lr=1e30), start)
    assert runtime.run(job(STEPPED), start).samples == 2 * 97


def test_initial_weights_follow_the_seed_and_leave_the_generators_alone() -> None:
    state = torch.get_rng_state()
    first, again, other = (initial_weights(STEPPED, seed) for seed in (1, 1, 2))
    assert bits(first) == bits(again) != bits(other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.parametrize("task", [WHOLE, STEPPED])
def test_weights_cross_to_the_gpu_and_back_unchanged(task: Task) -> None:
    start = initial_weights(task, 1)
    runtime = TaskRuntime(task, "cuda:0")
    for _ in range(2):
        result = runtime.run(job(task, mode=Mode.TRAIN, lr=0.0), start)
        assert result.weights is not None
        for name in ("layers.0.weight", "layers.3.bias"):
            assert result.weights[name].tobytes() == start[name].tobytes()


@pytest.mark.gpu
def test_trained_weights_leave_the_gpu_packed_as_the_model_has_them() -> None:
    parameters: dict[str, Scalar] = {"memory_format": "channels_last", "lr": 0.0}
    task = replace(
        STEPPED,
        model="fedmt_flower.tasks.models:resnet18",
        data="fedmt_flower.tasks.data:synthetic",
        parameters={"samples": 32, "in_channels": 3, "batch_size": 32, **parameters},
    )
    start = initial_weights(task, 1)
    result = TaskRuntime(task, "cuda:0").run(job(task, mode=Mode.TRAIN), start)
    assert isinstance(result.weights, Packed)
    assert list(result.weights) == list(start)
    for name, array in result.weights.items():
        assert (array.dtype, array.shape) == (start[name].dtype, start[name].shape)
        if name.endswith("weight"):
            assert array.tobytes() == start[name].tobytes()
        if name.endswith("tracked"):
            assert array == start[name] + 1


@pytest.mark.gpu
def test_rounds_of_graphs_end_in_the_bits_of_plain_ones() -> None:
    """In one process, over rounds that bring their own weights, and after memory was given back."""
    task = replace(STEPPED, model="fedmt_flower.tasks.models:mlp", data="fedmt_flower.tasks.data:synthetic")
    shape: dict[str, Scalar] = {"in_features": 3072, "out_features": 10, "dropout": 0.2}
    known: dict[str, Scalar] = {**shape, "samples": 100, "momentum": 0.9, "deterministic": True}
    plain, fast = TaskRuntime(task, "cuda:0"), TaskRuntime(task, "cuda:0")
    weights = initial_weights(replace(task, parameters=shape), 1)
    for round_ in (1, 2, 3):
        eager = plain.run(job(task, round_, step="eager", **known), weights)
        graphed = fast.run(job(task, round_, step="graph", **known), weights)
        assert bits(graphed.weights) == bits(eager.weights)
        assert graphed.train_metrics == eager.train_metrics
        assert (eager.step, graphed.step, graphed.why_eager) == (StepKind.EAGER, StepKind.GRAPH, "")
        assert eager.weights is not None
        weights = {name: array.copy() for name, array in eager.weights.items()}
        if round_ == 2:
            fast.release()
