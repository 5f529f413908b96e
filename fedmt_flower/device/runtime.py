"""A task at work: its model, its data, and one round of it at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fedmt_flower.device.adaptation import adapted
from fedmt_flower.device.batches import Data, resident
from fedmt_flower.device.binding import lookup, names, prepare, resolve
from fedmt_flower.device.contract import Progress, Weights
from fedmt_flower.device.faults import describe
from fedmt_flower.device.graphs import StepGraphs
from fedmt_flower.device.job import ROUND_KEYS, Job, JobResult, Stretch
from fedmt_flower.device.metrics import read_metrics
from fedmt_flower.device.pace import Pace
from fedmt_flower.device.seeding import choose_kernels, seed_everything, seed_sequence
from fedmt_flower.device.splits import Splits, SplitsCache
from fedmt_flower.device.trainer import Loop, SteppedTrainer, evaluate_by
from fedmt_flower.device.training_step import Objective
from fedmt_flower.device.weights import WeightCourier, state_of
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.step import MemoryFormat, StepRules
from fedmt_flower.domain.task import Task, TaskKind
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError, TaskError

OnProgress = Callable[[Progress], None]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
_PROGRESS_EVERY_S = 0.2
_DETERMINISTIC = "deterministic"
"""A hyperparameter of every task: true takes only kernels that give the same bits each time."""


class TaskRuntime:
    """Runs the rounds of `task` on `device`, a torch device such as ``cpu`` or ``cuda:0``.

    The model is built once and kept, each site's data likewise. Still a round is a function of the
    weights, the job's parameters and its seed: whatever a round could leave behind is set back.
    """

    def __init__(self, task: Task, device: str) -> None:
        self.task = task
        self.device = torch.device(device)
        self.courier = WeightCourier()
        self._splits = SplitsCache()
        self._model: nn.Module | None = None
        self._model_key = ""
        self._transient: dict[str, Tensor] = {}
        self._graphs = StepGraphs()

    def run(self, job: Job, weights: Weights, on_progress: OnProgress | None = None) -> JobResult:
        """Do `job` from `weights`.

        Parameters
        ----------
        job
            The round's share of this task.
        weights
            The global weights, in any order; cast to the dtypes of the model.
        on_progress
            Called at most a few times a second while a stepped task trains.

        Raises
        ------
        TaskError
            If the task cannot do it, in one line that names site, task and cause. The next round then
            begins with a new model.
        """
        try:
            return _Round(self, job, on_progress).run(weights)
        except TaskError as error:
            self._model, self._graphs = None, StepGraphs()
            raise TaskError(f"site {job.site!r}, {error}") from error

    def model(self, job: Job) -> nn.Module:
        """The task's model for `job`, on the device; built if there is none or its arguments changed."""
        build = prepare(self.task, "model", known=self._setting(job))
        memory_format = self._memory_format(job)
        key = repr((build.arguments, memory_format))
        if self._model is None or self._model_key != key:
            seed_everything(seed_sequence(job.seed, self.task.name))
            with self.blame("model"):
                model = build()
            if not isinstance(model, nn.Module):
                raise TaskError(
                    f"task {self.task.name!r}, model {self.task.model!r}: gave a {type(model).__name__}, "
                    "expected a torch.nn.Module"
                )
            self._model, self._model_key, self._graphs = model, key, StepGraphs()
            lasting = model.state_dict()
            self._transient = {name: b.clone() for name, b in model.named_buffers() if name not in lasting}
        with self.blame("model"):
            self._model.to(self.device)
            if memory_format is MemoryFormat.CHANNELS_LAST:
                # Once for good: evaluation, too, would choose other kernels for another format.
                self._model.to(memory_format=torch.channels_last)
        self.restore(self._model)
        return self._model

    def restore(self, model: nn.Module) -> None:
        """Set back what `model` holds besides its state_dict: buffers that no weights would overwrite."""
        with self.blame("model"), torch.no_grad():
            for name, buffer in self._transient.items():
                model.get_buffer(name).copy_(buffer)

    def splits(self, job: Job) -> Splits:
        """The data of the job's site, loaded unless it was before with the same arguments."""
        loader = prepare(self.task, "data", known=self._setting(job))

        def load() -> object:
            seed_everything(seed_sequence(job.seed, job.site, self.task.name))
            return loader()

        def keep(split: Data) -> Data:
            return resident(split, self.device) if self._is_ours else split

        with self.blame("data"):
            return self._splits.get(f"{job.site} {loader.arguments!r}", load, keep)

    def trainer(self, job: Job) -> SteppedTrainer:
        """A trainer that is about to take the first step of `job`, from the model's present weights.

        Raises
        ------
        TaskError
            If the task is not a stepped one, or its model, data or training cannot be set up.
        """
        return _Round(self, job, None).begin()

    def loop(self, make_optimizer: MakeOptimizer) -> Loop:
        """The package's own trainer, with the graphs of earlier rounds."""
        return Loop(self.objective(), make_optimizer, self._graphs)

    def release(self) -> None:
        """Give back the memory of steps that were recorded; the next round records them again."""
        self._graphs.drop()

    @property
    def _is_ours(self) -> bool:
        """Whether the package's own loop trains the task."""
        return self.task.kind is TaskKind.STEPPED and not self.task.trainer

    def _memory_format(self, job: Job) -> MemoryFormat:
        if not self._is_ours:
            return MemoryFormat.CONTIGUOUS
        try:
            return StepRules.of(job.parameters).memory_format
        except ConfigError as error:
            raise TaskError(f"task {self.task.name!r}: {error}") from error

    def _setting(self, job: Job) -> dict[str, object]:
        """What model and data may ask for: all that stays the same from round to round."""
        lasting = {name: value for name, value in job.parameters.items() if name not in ROUND_KEYS}
        fixed = {"site": job.site, "seed": job.seed}
        return fixed | names(lasting) | {"device": self.device, "config": lasting}

    def objective(self) -> Objective:
        """The task's loss and metrics."""
        found = resolve(self.task, "objective")
        lacking = [name for name in ("loss", "measure") if not callable(getattr(found, name, None))]
        if lacking:
            raise TaskError(
                f"task {self.task.name!r}, objective {self.task.objective!r}: "
                f"has no {' and no '.join(lacking)}; expected loss(model, batch) and measure(model, batch)"
            )
        return found  # type: ignore[no-any-return]

    @contextmanager
    def blame(self, what: str) -> Iterator[None]:
        """Turn an exception of the user's code into a TaskError that says `what` raised it, and where."""
        try:
            yield
        except TaskError:
            raise
        except (Exception, SystemExit) as error:
            raise TaskError(f"task {self.task.name!r}: {what} raised {describe(error)}") from error


@dataclass(slots=True)
class _Round:
    """One job in progress."""

    runtime: TaskRuntime
    job: Job
    on_progress: OnProgress | None
    stretches: list[Stretch] = field(default_factory=list)
    step: StepKind = StepKind.EAGER
    why_eager: str = ""

    def run(self, weights: Weights) -> JobResult:
        runtime, mode = self.runtime, self.job.mode
        on_gpu = runtime.device.type == "cuda"
        if on_gpu:
            torch.cuda.synchronize(runtime.device)  # initialises CUDA, before which there are no statistics
            torch.cuda.reset_peak_memory_stats(runtime.device)
        with self._phase(Phase.PREPARE):
            splits = runtime.splits(self.job)
            model = runtime.model(self.job)
            with self._refuse():
                runtime.courier.load(model, weights)
        evaluate_metrics: Mapping[str, float] = {}
        if mode.evaluates:
            with self._phase(Phase.EVALUATE):
                evaluate_metrics = self._evaluate(model, splits)
        samples, trained = 0, None
        train_metrics: Mapping[str, float] = {}
        if mode.trains:
            splits.rewind()
            runtime.restore(model)
            shapes = {name: tensor.shape for name, tensor in state_of(model).items()}
            with self._phase(Phase.COMPUTE):
                samples, train_metrics = self._train(model, splits)
            with self._refuse():
                trained = runtime.courier.read(model, shapes)
            model.zero_grad(set_to_none=True)
        return JobResult(
            weights=trained,
            samples=samples,
            train_examples=splits.train_examples,
            evaluate_examples=splits.evaluate_examples,
            train_metrics=train_metrics,
            evaluate_metrics=evaluate_metrics,
            stretches=tuple(self.stretches),
            memory_bytes=torch.cuda.max_memory_reserved(runtime.device) if on_gpu else 0,
            step=self.step,
            why_eager=self.why_eager,
        )

    def begin(self) -> SteppedTrainer:
        task = self.runtime.task
        if task.kind is TaskKind.WHOLE_CALL:
            raise TaskError(f"task {task.name!r}: its own `train` takes a round as a whole, it has no steps")
        splits, model = self.runtime.splits(self.job), self.runtime.model(self.job)
        splits.rewind()
        known = self._known()
        model.train()
        trainer = self._trainer(known)
        with self.runtime.blame("train"):
            trainer.setup(model, splits.train, known["config"], self.runtime.device)
        return trainer

    def _evaluate(self, model: nn.Module, splits: Splits) -> Mapping[str, float]:
        task, runtime = self.runtime.task, self.runtime
        if splits.test is None or splits.evaluate_examples == 0:
            raise TaskError(f"task {task.name!r}: the test split is empty, there is nothing to evaluate on")
        known = self._known()
        model.eval()
        if not task.evaluate:
            with runtime.blame("evaluate"):
                metrics = evaluate_by(runtime.objective(), model, splits.test, runtime.device)
            return read_metrics(task.name, "evaluate", metrics)
        evaluate = prepare(task, "evaluate", model, splits.test, known=known)
        with runtime.blame("evaluate"):
            returned = evaluate()
        return read_metrics(task.name, "evaluate", returned)

    def _train(self, model: nn.Module, splits: Splits) -> tuple[int, Mapping[str, float]]:
        known = self._known()
        model.train()
        if self.runtime.task.kind is TaskKind.WHOLE_CALL:
            return self._train_whole(model, splits, known)
        return self._train_stepped(model, splits, known)

    def _train_whole(
        self, model: nn.Module, splits: Splits, known: dict[str, Any]
    ) -> tuple[int, Mapping[str, float]]:
        task = self.runtime.task
        known |= {"testloader": splits.test, "valloader": splits.test}
        train = prepare(task, "train", model, splits.train, known=known)
        with self.runtime.blame("train"):
            returned = train()
        epochs = lookup(train.arguments.arguments, "epochs", lookup(known, "epochs", 1))
        metrics = read_metrics(task.name, "train", returned)
        return int(epochs) * splits.train_examples, metrics

    def _train_stepped(
        self, model: nn.Module, splits: Splits, known: dict[str, Any]
    ) -> tuple[int, Mapping[str, float]]:
        task = self.runtime.task
        trainer = self._trainer(known)
        total = int(lookup(known, "epochs", 1)) * splits.train_examples
        samples, told = 0, time.monotonic()
        pace = Pace(self.runtime.device)
        with self.runtime.blame("train"):
            trainer.setup(model, splits.train, known["config"], self.runtime.device)
            while used := trainer.step():
                samples += used
                pace.keep()
                now = time.monotonic()
                if self.on_progress is not None and now - told >= _PROGRESS_EVERY_S:
                    told = now
                    self.on_progress(Progress(task=task.name, samples=samples, total=total))
            metrics = trainer.metrics()
        if isinstance(trainer, Loop):
            self.step, self.why_eager = trainer.step_kind, trainer.why_eager
        return samples, read_metrics(task.name, "train", metrics)

    def _trainer(self, known: Mapping[str, object]) -> SteppedTrainer:
        task, runtime = self.runtime.task, self.runtime
        if task.trainer:
            make = prepare(task, "trainer", known=known)
            with runtime.blame("trainer"):
                return make()  # type: ignore[no-any-return]

        def make_optimizer(weights: list[nn.Parameter]) -> torch.optim.Optimizer:
            return prepare(task, "optimizer", weights, known=known)()  # type: ignore[no-any-return]

        return runtime.loop(make_optimizer)

    def _known(self) -> dict[str, Any]:
        """Seed the generators; give the values that train and evaluate may ask for by name."""
        job = self.job
        if _DETERMINISTIC in job.parameters:
            choose_kernels(bool(job.parameters[_DETERMINISTIC]))
        seed = seed_everything(seed_sequence(job.seed, job.round, job.site, self.runtime.task.name))
        fixed: dict[str, Any] = {"seed": seed, "round": job.round, "site": job.site}
        config = fixed | adapted(self.runtime.task, job)
        return names(config) | {"server_round": job.round, "device": self.runtime.device, "config": config}

    @contextmanager
    def _phase(self, phase: Phase) -> Iterator[None]:
        self._synchronize()
        start = time.monotonic()
        yield
        self._synchronize()
        self.stretches.append(Stretch(phase=phase, start=start, end=time.monotonic()))

    @contextmanager
    def _refuse(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise TaskError(f"task {self.runtime.task.name!r}: {error}") from error

    def _synchronize(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)
