"""A run that is cut off goes on from its last complete round, to the same bits."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    QFedAvg,
    Result,
    Strategy,
)

from fedmt_flower import FedMT
from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.domain.plan import RoundPlan, Sharing, TaskPlan
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.errors import ConfigError
from fedmt_flower.federation import codec
from fedmt_flower.federation.arrays import to_record
from fedmt_flower.federation.checkpoint import CheckpointError
from fedmt_flower.federation.package import Hello
from fedmt_flower.federation.resumption import drawing

ROUNDS = 3
SHAPES = {"weight": (4, 3), "scale": ()}


def quick_app() -> ClientApp:
    """A client whose updates are a function of what it is sent, the round, the site and the task."""
    app = ClientApp()

    def site(context: Context) -> str:
        return str(context.node_config["site"])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(codec.encode_hello(Hello(site=site(context), tasks=("det", "enc"))), reply_to=message)

    @app.evaluate()
    @app.train()
    def answer(message: Message, context: Context) -> Message:
        package = codec.decode_package(message.content)
        assert package is not None
        number, shares = package
        reports, updates = [], {}
        for task, share in shares.items():
            seed = hashlib.sha256(f"{number} {site(context)} {task}".encode()).digest()
            generator = np.random.default_rng(np.frombuffer(seed, np.uint32))
            loss = float(sum(np.abs(array).sum() for array in share.weights.values()))
            if share.mode.trains:
                updates[task] = {
                    name: array + generator.normal(size=array.shape).astype(array.dtype)
                    for name, array in share.weights.items()
                }
            reports.append(
                TaskReport(
                    task=task,
                    status=Status.DONE,
                    train_examples=10 + len(site(context)),
                    evaluate_examples=5 if share.mode.evaluates else 0,
                    train_metrics={"train_loss": 1.0} if share.mode.trains else {},
                    evaluate_metrics={"loss": loss} if share.mode.evaluates else {},
                )
            )
        report = RoundReport(
            site=site(context),
            round=number,
            plan=RoundPlan(
                tasks=tuple(TaskPlan(task=task, budget=50) for task in shares), sharing=Sharing.CAPPED
            ),
            tasks=tuple(reports),
            timeline=(),
            backend="none",
            waited_s=0.0,
            wall_s=0.0,
        )
        return Message(codec.encode_answer(report, updates), reply_to=message)

    return app


def initial(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Weights:
    return {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


class Run:
    """A federation of two tasks on four nodes, which `start` runs as a new process would."""

    def __init__(self, grid: Any) -> None:
        self._new_grid = type(grid)
        self._starts = 0
        self.make: dict[str, Callable[[], Strategy]] = {
            "det": lambda: FedAdam(eta=0.01, fraction_train=0.5, fraction_evaluate=0.5),
            "enc": lambda: FedAvgM(server_momentum=0.5, fraction_train=0.5),
        }
        self.model = initial()
        self.seed: int | None = 3
        self.rounds: list[FederationRound] = []

    def start(self, checkpoint: Path | None = None, rounds: int = ROUNDS) -> dict[str, Result]:
        grid, app = self._new_grid(), quick_app()
        self._starts += 1
        for place in range(4):
            # A SuperNode that connects anew has another id.
            grid.add(100 * self._starts + place * (-1) ** self._starts, app, site=f"site-{place}")
        self.rounds = []
        strategies = {task: make() for task, make in self.make.items()}
        fedmt = FedMT(strategies, discover=True, checkpoint=checkpoint, seed=self.seed)
        models = {task: to_record(self.model) for task in self.make}
        return fedmt.start(grid, models, num_rounds=rounds, on_round=self.rounds.append)

    def sites(self) -> list[tuple[str, ...]]:
        return [outcome.sites for played in self.rounds for outcome in played.tasks.values()]

    def fork(self, *arguments: Any, before: Callable[[], object] = lambda: None) -> int:
        """`start` in a process of its own; how it ended, as `os.waitpid` says."""
        self._starts += 1
        child = os.fork()
        if not child:
            status = 1
            try:
                before()
                self.start(*arguments)
                status = 0
            finally:
                os._exit(status)
        return os.waitpid(child, 0)[1]


@pytest.fixture
def run(grid: Any) -> Run:
    return Run(grid)


def bits(results: Mapping[str, Result]) -> dict[str, Any]:
    return {
        name: (
            {key: (one.dtype, tuple(one.shape), one.data) for key, one in result.arrays.items()},
            result.train_metrics_clientapp,
            result.evaluate_metrics_clientapp,
        )
        for name, result in results.items()
    }


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("round-*"))


def count_steps(tick: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Call `tick` before and after every step that a run takes in the file system."""

    def counted(step: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            tick()
            done = step(*arguments, **options)
            tick()
            return done

        return wrapper

    for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "open"), (Path, "mkdir")):
        patch.setattr(owner, name, counted(getattr(owner, name)))


# --- Killed


def test_a_run_killed_at_any_step_of_writing_goes_on_to_the_same_bits(run: Run, tmp_path: Path) -> None:
    rounds, taken = 2, []
    unbroken, sites = bits(run.start(rounds=rounds)), run.sites()
    with pytest.MonkeyPatch.context() as patch:
        count_steps(lambda: taken.append(1), patch)
        run.start(tmp_path / "counted", rounds)
    assert len(taken) > 30
    for last in range(len(taken)):
        left = iter(range(last))

        def tick(left: Any = left) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        folder = tmp_path / str(last)
        status = run.fork(folder, rounds, before=lambda: count_steps(tick, pytest.MonkeyPatch()))
        assert status == signal.SIGKILL
        assert bits(run.start(folder, rounds)) == unbroken
        assert run.sites() == sites
        assert [played.round for played in run.rounds] == [1, 2, 3]
        assert [path.name for path in checkpoints(folder)] == ["round-000001.npz", "round-000002.npz"]


def test_a_run_without_a_seed_goes_on_as_it_would_have(run: Run, tmp_path: Path) -> None:
    """The checkpoint of its beginning has the models and the seed that only that run had."""
    run.seed = None
    begun = run.start(tmp_path, rounds=0)
    run.model = {name: array + 1 for name, array in run.model.items()}
    assert bits(run.start(tmp_path, rounds=0)) == bits(begun)
    stopped = {}
    for rounds in (1, 2, 3):
        stopped = run.start(tmp_path, rounds=rounds)
    assert run.rounds[-1].final
    assert bits(run.start(tmp_path)) == bits(stopped)


def test_more_rounds_are_the_rounds_that_a_longer_run_has(run: Run, tmp_path: Path) -> None:
    run.start(tmp_path, rounds=2)
    assert bits(run.start(tmp_path, rounds=5)) == bits(run.start(rounds=5))


@pytest.mark.parametrize(
    "make",
    [
        FedAvg,
        lambda: FedAdagrad(eta=0.1),
        lambda: FedYogi(eta=0.1),
        lambda: FedAvgM(server_momentum=0.9),
        lambda: QFedAvg(client_learning_rate=0.05),
        lambda: DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(), 0.1, 4, clipped_count_stddev=0.2),
    ],
    ids=["FedAvg", "FedAdagrad", "FedYogi", "FedAvgM", "QFedAvg", "AdaptiveClipping"],
)
def test_the_state_of_every_strategy_is_kept(make: Callable[[], Strategy], run: Run, tmp_path: Path) -> None:
    """Noise of differential privacy, drawn from numpy's own generator, included."""
    run.make["det"] = make
    run.start(tmp_path, rounds=2)
    assert bits(run.start(tmp_path)) == bits(run.start())


# --- Broken


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped"])
def test_a_broken_checkpoint_costs_a_round_and_a_warning(
    damage: str, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    unbroken = bits(run.start(tmp_path))
    newest = checkpoints(tmp_path)[-1]
    content = newest.read_bytes()
    middle = len(content) // 2
    newest.write_bytes(
        {
            "cut": content[:middle],
            "empty": b"",
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        }[damage]
    )
    assert bits(run.start(tmp_path)) == unbroken
    assert [played.round for played in run.rounds] == [1, 2, 3, 4]
    assert "round-000003.npz" in caplog.text
    assert "round 2 is used instead" in caplog.text


def test_a_changed_byte_is_noticed_or_changes_nothing(run: Run, tmp_path: Path) -> None:
    run.make = {"det": FedAvg}
    run.start(tmp_path, rounds=1)
    checkpoints(tmp_path)[0].unlink()
    (only,) = checkpoints(tmp_path)
    content, expected = only.read_bytes(), bits(run.start(tmp_path, rounds=1))
    generator = random.Random(1)
    noticed = 0
    for _ in range(60):
        place = generator.randrange(len(content))
        only.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert bits(run.start(tmp_path, rounds=1)) == expected
        except CheckpointError:
            noticed += 1
    assert noticed > 20


def test_only_broken_checkpoints_end_in_one_line(run: Run, tmp_path: Path) -> None:
    run.start(tmp_path)
    for path in checkpoints(tmp_path):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"none can be read \(round-000003.npz: .* remove it") as raised:
        run.start(tmp_path)
    assert "\n" not in str(raised.value)


def test_half_a_line_of_history_is_written_anew(run: Run, tmp_path: Path) -> None:
    run.start(tmp_path, rounds=2)
    history = tmp_path / "history.jsonl"
    with history.open("ab") as file:
        file.write(history.read_bytes()[:50])
    run.start(tmp_path)
    assert [played.round for played in run.rounds] == [1, 2, 3, 4]
    assert len(history.read_bytes().splitlines()) == ROUNDS


def test_a_full_disk_costs_checkpoints_but_no_round(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected, replace = bits(run.start()), Path.replace

    def full(self: Path, target: Path) -> Path:
        if "000001" in target.name or "000002" in target.name:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    assert bits(run.start(tmp_path)) == expected
    assert "round 1 not written: No space left on device" in caplog.text
    assert [path.name for path in checkpoints(tmp_path)] == ["round-000000.npz", "round-000003.npz"]
    assert bits(run.start(tmp_path)) == expected
    assert len(run.rounds) == ROUNDS + 1


# --- Refused


def test_a_run_of_other_tasks_models_or_strategies_is_refused(run: Run, tmp_path: Path) -> None:
    run.start(tmp_path, rounds=1)
    adam, model = run.make["det"], run.model

    def refusal() -> str:
        with pytest.raises(CheckpointError) as raised:
            run.start(tmp_path)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    run.make["det"] = FedAvg
    assert "task 'det' had the strategy flwr.serverapp.strategy.fedadam.FedAdam, now" in refusal()
    run.make["det"] = lambda: FedAdam(eta=0.02, fraction_train=0.5, fraction_evaluate=0.5)
    assert "FedAdam with eta = 0.01, now 0.02" in refusal()
    run.make["det"], run.model = adam, initial({"weight": (4, 2), "scale": ()})
    assert "the array 'weight', float32 [4, 3], now 'weight', float32 [4, 2]" in refusal()
    run.model = model
    run.seed = 4
    assert "its run has seed 3, this one 4" in refusal()
    run.seed = 3
    del run.make["enc"]
    run.make["seg"] = FedAvg
    assert "is of the tasks det, enc, this run of det, seg" in refusal()


def test_a_strategy_that_cannot_be_kept_is_refused_at_once(tmp_path: Path) -> None:
    class Stateful(FedAvg):
        def __init__(self) -> None:
            super().__init__()
            self.best = {"ever": {1, 2}}

    with pytest.raises(ConfigError, match=r"task 'det': Stateful cannot be kept .* best.ever is a set"):
        FedMT({"det": Stateful()}, checkpoint=tmp_path)
    FedMT({"det": Stateful()})


def test_a_folder_with_other_things_or_another_run_is_left_alone(run: Run, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(CheckpointError, match=r"has 'thesis.tex' in it but no checkpoint"):
        run.start(tmp_path)
    with pytest.raises(CheckpointError, match="cannot be a folder"):
        run.start(tmp_path / "thesis.tex")

    def second(_: FederationRound) -> None:
        with pytest.raises(CheckpointError, match="another run writes there"):
            Run(run._new_grid()).start(tmp_path / "busy")

    fedmt = FedMT({"det": FedAvg()}, discover=True, checkpoint=tmp_path / "busy")
    grid = run._new_grid()
    grid.add(1, quick_app(), site="a")
    grid.add(2, quick_app(), site="b")
    fedmt.start(grid, to_record(initial()), num_rounds=1, on_round=second)


# --- Drawn at random


def test_a_seed_makes_the_same_sites_take_part(run: Run) -> None:
    run.start(rounds=6)
    first = run.sites()
    assert len(set(first)) > 3
    run.start(rounds=6)
    assert run.sites() == first
    run.seed = 4
    run.start(rounds=6)
    assert run.sites() != first


def test_drawing_leaves_the_generators_of_the_process_as_they_were() -> None:
    random.seed(1)
    np.random.seed(1)
    expected = random.random(), float(np.random.random())
    random.seed(1)
    np.random.seed(1)
    with drawing(3, 1, "det"):
        drawn = random.random(), float(np.random.random())
    assert (random.random(), float(np.random.random())) == expected
    with drawing(3, 1, "det"):
        assert (random.random(), float(np.random.random())) == drawn
    with drawing(3, 2, "det"):
        assert (random.random(), float(np.random.random())) != drawn
