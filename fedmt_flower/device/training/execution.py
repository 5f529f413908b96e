"""One job of a task at work: its phases, its steps, and what goes along when another process goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from fedmt_flower.device.contract import Progress, Weights
from fedmt_flower.device.ipc.job import Job, JobResult, Stretch
from fedmt_flower.device.training.adaptation import adapted
from fedmt_flower.device.training.binding import lookup, names, prepare
from fedmt_flower.device.training.metrics import read_metrics
from fedmt_flower.device.training.pace import Pace
from fedmt_flower.device.training.seeding import (
    choose_kernels,
    generator_states,
    seed_everything,
    seed_sequence,
    set_generator_states,
)
from fedmt_flower.device.training.splits import Splits
from fedmt_flower.device.training.trainer import Loop, SteppedTrainer
from fedmt_flower.device.training.weights import check_names, state_of
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.task import TaskKind
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import TaskError

if TYPE_CHECKING:
    from fedmt_flower.device.training.runtime import TaskRuntime

OnProgress = Callable[[Progress], None]
Between = Callable[["Execution"], bool]
"""Called between two steps; true if another process goes on with the job."""
_PROGRESS_EVERY_S = 0.2
_REHEARSAL = 3
"""Steps after which a step may have been recorded as a graph."""
_DETERMINISTIC = "deterministic"
"""A hyperparameter of every task: true takes only kernels that give the same bits each time."""


class HandedOver(Exception):
    """Another process goes on with the job; there is no result here."""


class Execution:
    """A job in progress.

    Parameters
    ----------
    runtime
        The task's model and data.
    job
        What to do.
    on_progress, between
        See `TaskRuntime.run`.
    """

    def __init__(
        self, runtime: TaskRuntime, job: Job, on_progress: OnProgress | None, between: Between | None
    ) -> None:
        self.runtime = runtime
        self.job = job
        self.on_progress = on_progress
        self.between = between
        self._stretches: list[Stretch] = []
        self._since = 0.0
        self._loop: Loop | None = None
        self._samples = 0
        self._evaluated: Mapping[str, float] = {}
        self._memory = 0

    def run(self, weights: Weights) -> JobResult:
        """Do all of the job; `HandedOver` if another process goes on with it."""
        runtime, mode = self.runtime, self.job.mode
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)  # initialises CUDA, before which there are no statistics
            torch.cuda.reset_peak_memory_stats(runtime.device)
        with self._phase(Phase.PREPARE):
            self._open()
            with self._refuse():
                runtime.courier.load(self._model, weights)
        if mode.evaluates:
            with self._phase(Phase.EVALUATE):
                self._evaluated = self._evaluate(self._model, self._splits)
        if not mode.trains:
            return self._result(None, {})
        self._splits.rewind()
        runtime.restore(self._model)
        self._begin()
        known = self._known()
        self._model.train()
        if runtime.task.kind is TaskKind.WHOLE_CALL:
            return self._finished(self._train_whole(known))
        self._set_up(known)
        return self._train()

    def begin(self) -> SteppedTrainer:
        """A trainer about to take its first step, from the model's present weights."""
        task = self.runtime.task
        if task.kind is TaskKind.WHOLE_CALL:
            raise TaskError(f"task {task.name!r}: its own `train` takes a round as a whole, it has no steps")
        self._open()
        self._splits.rewind()
        known = self._known()
        self._model.train()
        self._set_up(known)
        return self._trainer

    def stand(self) -> Self:
        """Get ready for `load`; rehearse where that was not done before."""
        on_gpu = self.runtime.device.type == "cuda"
        trainer = self.begin()
        if on_gpu and isinstance(trainer, Loop) and not self.runtime.practised(self.job):
            with self.runtime.blame("train"):
                for _ in range(_REHEARSAL):
                    trainer.step()
            self.begin()
        self._synchronize()
        return self

    def state(self) -> dict[str, Any]:
        """All that another process needs to go on, in the midst of training."""
        with self.runtime.blame("train"):
            trainer = self._trainer.state_dict()
        return {
            "model": _tensors_of(self._model),
            "trainer": trainer,
            "generators": generator_states(self.runtime.device),
            "samples": self._samples,
            "evaluated": dict(self._evaluated),
            "stretches": [(str(s.phase), s.start, s.end) for s in self._stretches],
            "memory": max(self._memory, self._peak()),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `stand`; it is in place when this returns."""
        mine, theirs = _tensors_of(self._model), state["model"]
        with self._refuse(), torch.no_grad():
            check_names("weights handed over", mine, theirs)
            torch._foreach_copy_(list(mine.values()), [theirs[name] for name in mine])
        with self.runtime.blame("train"):
            self._trainer.load_state_dict(state["trainer"])
        set_generator_states(state["generators"], self.runtime.device)
        self._samples, self._evaluated = state["samples"], state["evaluated"]
        self._memory = state["memory"]
        self._stretches = [
            Stretch(phase=Phase(phase), start=start, end=end) for phase, start, end in state["stretches"]
        ]
        self._synchronize()

    def go_on(self) -> JobResult:
        """Do the rest of the training, as `run`."""
        self._begin()
        return self._train()

    def pause(self) -> None:
        """End the present stretch of training, once the device has finished its last step."""
        self._end(Phase.COMPUTE)

    def resume(self) -> None:
        """Begin another stretch of training."""
        self._begin()

    def _open(self) -> None:
        self._splits: Splits = self.runtime.splits(self.job)
        self._model: nn.Module = self.runtime.model(self.job)
        self._shapes = {name: tensor.shape for name, tensor in state_of(self._model).items()}

    def _set_up(self, known: dict[str, Any]) -> None:
        self._trainer = self._make_trainer(known)
        self._loop = self._trainer if isinstance(self._trainer, Loop) else None
        self._total = int(lookup(known, "epochs", 1)) * self._splits.train_examples
        with self.runtime.blame("train"):
            self._trainer.setup(self._model, self._splits.train, known["config"], self.runtime.device)
        if self._loop is not None:
            self.runtime.check(self.job, self._loop)

    def _evaluate(self, model: nn.Module, splits: Splits) -> Mapping[str, float]:
        task, runtime = self.runtime.task, self.runtime
        if splits.test is None or splits.evaluate_examples == 0:
            raise TaskError(f"task {task.name!r}: the test split is empty, there is nothing to evaluate on")
        known = self._known()
        model.eval()
        if not task.evaluate:
            metrics = runtime.evaluate(self.job, model, splits.test)
            return read_metrics(task.name, "evaluate", metrics)
        evaluate = prepare(task, "evaluate", model, splits.test, known=known)
        with runtime.blame("evaluate"):
            returned = evaluate()
        return read_metrics(task.name, "evaluate", returned)

    def _train_whole(self, known: dict[str, Any]) -> Mapping[str, float]:
        task, splits = self.runtime.task, self._splits
        known |= {"testloader": splits.test, "valloader": splits.test}
        train = prepare(task, "train", self._model, splits.train, known=known)
        with self.runtime.blame("train"):
            returned = train()
        epochs = lookup(train.arguments.arguments, "epochs", lookup(known, "epochs", 1))
        self._samples = int(epochs) * splits.train_examples
        return read_metrics(task.name, "train", returned)

    def _train(self) -> JobResult:
        """Take the steps there are; `HandedOver` if another process takes the rest."""
        name, pace, told = self.runtime.task.name, Pace(self.runtime.device), time.monotonic()
        self.runtime.practise(self.job)
        while self._step(pace):
            now = time.monotonic()
            if self.on_progress is not None and now - told >= _PROGRESS_EVERY_S:
                told = now
                self.on_progress(Progress(task=name, samples=self._samples, total=self._total))
            if self.between is not None and self.between(self):
                self._model.zero_grad(set_to_none=True)
                raise HandedOver
        with self.runtime.blame("train"):
            metrics = self._trainer.metrics()
        return self._finished(read_metrics(name, "train", metrics))

    def _step(self, pace: Pace) -> int:
        with self.runtime.blame("train"):
            used = self._trainer.step()
            pace.keep()
        self._samples += used
        return used

    def _finished(self, metrics: Mapping[str, float]) -> JobResult:
        self._end(Phase.COMPUTE)
        with self._refuse():
            trained = self.runtime.courier.read(self._model, self._shapes)
        self._model.zero_grad(set_to_none=True)
        return self._result(trained, metrics)

    def _result(self, weights: Weights | None, metrics: Mapping[str, float]) -> JobResult:
        loop = self._loop
        return JobResult(
            weights=weights,
            samples=self._samples,
            train_examples=self._splits.train_examples,
            evaluate_examples=self._splits.evaluate_examples,
            train_metrics=metrics,
            evaluate_metrics=self._evaluated,
            stretches=tuple(self._stretches),
            memory_bytes=max(self._memory, self._peak()),
            step=loop.step_kind if loop else StepKind.EAGER,
            why_eager=loop.why_eager if loop else "",
        )

    def _make_trainer(self, known: Mapping[str, object]) -> SteppedTrainer:
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
        self._begin()
        yield
        self._end(phase)

    def _begin(self) -> None:
        self._synchronize()
        self._since = time.monotonic()

    def _end(self, phase: Phase) -> None:
        self._synchronize()
        self._stretches.append(Stretch(phase=phase, start=self._since, end=time.monotonic()))

    @contextmanager
    def _refuse(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise TaskError(f"task {self.runtime.task.name!r}: {error}") from error

    def _peak(self) -> int:
        """Most memory of the GPU that torch held, graphs' own included."""
        device = self.runtime.device
        return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0

    def _synchronize(self) -> None:
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)


def _tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """All that a model computes with: parameters, and buffers even if no `state_dict` has them."""
    return {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}
