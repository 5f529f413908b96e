"""A task at work: its model, its data, and one round of it at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedmt_flower.device.contract import Weights
from fedmt_flower.device.ipc.job import ROUND_KEYS, Job, JobResult
from fedmt_flower.device.training.batches import Data, resident
from fedmt_flower.device.training.binding import names, prepare, resolve
from fedmt_flower.device.training.convolutions import kernels_at_hand
from fedmt_flower.device.training.execution import Between, Execution, OnProgress
from fedmt_flower.device.training.faults import describe
from fedmt_flower.device.training.graphs import StepGraphs
from fedmt_flower.device.training.seeding import seed_everything, seed_sequence
from fedmt_flower.device.training.splits import Splits, SplitsCache
from fedmt_flower.device.training.trainer import Loop, SteppedTrainer, evaluate_by
from fedmt_flower.device.training.training_step import Objective
from fedmt_flower.device.training.weights import WeightCourier
from fedmt_flower.domain.step import MemoryFormat, StepRules
from fedmt_flower.domain.task import Task, TaskKind
from fedmt_flower.errors import ConfigError, TaskError

log = logging.getLogger(__name__)

MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


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
        self._practised: set[str] = set()
        self._sound: set[str] = set()

    def run(
        self,
        job: Job,
        weights: Weights,
        on_progress: OnProgress | None = None,
        between: Between | None = None,
    ) -> JobResult:
        """Do `job` from `weights`.

        Parameters
        ----------
        job
            The round's share of this task.
        weights
            The global weights, in any order; cast to the dtypes of the model.
        on_progress
            Called at most a few times a second while a stepped task trains.
        between
            Called after each step of a stepped task; true leaves the rest to another process, which has
            the state.

        Returns
        -------
        JobResult
            Its weights are in memory that the next job uses again: to keep them is to copy them.

        Raises
        ------
        HandedOver
            If another process goes on.
        TaskError
            If the task cannot do it, in one line that names site, task and cause. The next round then
            begins with a new model.
        """
        with self._failing_by_name(job):
            return Execution(self, job, on_progress, between).run(weights)

    def stand(self, job: Job) -> Execution:
        """Get ready to go on with `job`, which another process has begun; TaskError as for `run`.

        The first time the job is rehearsed: memory is then held, and kernels and graphs are there.
        """
        with self._failing_by_name(job):
            return Execution(self, job, None, None).stand()

    def take_over(self, standing: Execution, state: Mapping[str, Any]) -> None:
        """Have `standing` go on from `state`, which is in place after this; TaskError as for `run`."""
        with self._failing_by_name(standing.job):
            standing.load(state)

    def go_on(
        self, standing: Execution, on_progress: OnProgress | None, between: Between | None
    ) -> JobResult:
        """Do the rest of a job that was taken over; see `run`."""
        with self._failing_by_name(standing.job):
            standing.on_progress, standing.between = on_progress, between
            return standing.go_on()

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
            self._model, self._model_key = model, key
            # The recorder stays: every other stream would have a cache and a workspace of its own.
            self._graphs = StepGraphs(self._graphs.recorder)
            self._practised, self._sound = set(), set()
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
        return Execution(self, job, None, None).begin()

    def glance(self, job: Job) -> None:
        """Evaluate the model on one batch, if `job` evaluates by the package's own loop.

        What a GPU needs for that is then there. TaskError if it cannot be done.
        """
        if not job.mode.evaluates or self.task.evaluate or self.task.kind is not TaskKind.STEPPED:
            return
        model, test = self.model(job), self.splits(job).test
        if test is not None:
            model.eval()
            self.evaluate(job, model, test, at_most=1)

    def evaluate(
        self, job: Job, model: nn.Module, data: Data, at_most: int | None = None
    ) -> dict[str, float]:
        """Metrics of `model` by the package's own loop, as `evaluate_by`; TaskError if that fails."""
        with self.blame("evaluate"), kernels_at_hand(self._memory_format(job)):
            return evaluate_by(self.objective(), model, data, self.device, at_most=at_most)

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

    def practise(self, job: Job) -> None:
        """Take note that steps of `job` were taken here."""
        self._practised.add(_shape_of(job))

    def practised(self, job: Job) -> bool:
        """Whether steps like those of `job` were taken before, with this model."""
        return _shape_of(job) in self._practised

    def check(self, job: Job, loop: Loop) -> None:
        """Look once, with this model, whether steps like those of `job` compute what they should.

        Raises
        ------
        TaskError
            If a layer does not.
        """
        if (shape := _shape_of(job)) in self._sound:
            return
        began = time.monotonic()
        with self.blame("train"):
            found = loop.flaw()
        if found:
            raise TaskError(f"task {self.task.name!r}: {found}")
        log.debug("task %s: layers looked at in %.2f s", self.task.name, time.monotonic() - began)
        self._sound.add(shape)

    @contextmanager
    def _failing_by_name(self, job: Job) -> Iterator[None]:
        """Name the site in a TaskError; after one the next round begins with a new model."""
        try:
            yield
        except TaskError as error:
            self._model = None
            self.release()
            raise TaskError(f"site {job.site!r}, {error}") from error

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


def _shape_of(job: Job) -> str:
    """What decides which kernels a job's steps run."""
    known = names(job.parameters)
    return repr([known.get(name) for name in ("batch_size", "step", "precision", "memory_format")])
