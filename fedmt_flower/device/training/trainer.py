"""Training that the package drives step by step, and its own loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedmt_flower.device.ipc.job import DEFAULT_BATCH
from fedmt_flower.device.training.batches import (
    Batch,
    Data,
    Selection,
    batches,
    draws,
    gathered,
    generators,
    rows,
    whole_batches,
)
from fedmt_flower.device.training.binding import lookup, names
from fedmt_flower.device.training.capturable import obstacle
from fedmt_flower.device.training.graphs import StepGraphs, Steps
from fedmt_flower.device.training.soundness import flaw
from fedmt_flower.device.training.training_step import Objective, TrainingStep
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.step import Precision, StepChoice, StepRules

PROXIMAL = "proximal_mu"
"""FedProx's weight μ; its strategy sends it as ``proximal-mu``."""


class SteppedTrainer(Protocol):
    """A round of training, cut into steps.

    One object trains one round of one site. Only between two steps can a task be handed over from one
    process to another; the model's own state then travels beside what `state_dict` gives.
    """

    def setup(self, model: nn.Module, data: Data, config: Mapping[str, Any], device: torch.device) -> None:
        """Get ready for a round.

        Parameters
        ----------
        model
            On `device`, with the weights that the round begins with.
        data
            The training split.
        config
            The task's hyperparameters and the round's: ``seed``, ``round`` and ``site`` are among them.
        device
            Where to compute.
        """
        ...

    def step(self) -> int:
        """Take one optimiser step; returns the samples it used, 0 when the round is over."""
        ...

    def metrics(self) -> Mapping[str, float]:
        """What the round came to so far, by name."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that `step` needs besides the model's own state, to go on in another process."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `setup`."""
        ...


class Loop:
    """The package's own stepped trainer: minibatch descent over E local epochs.

    It reads ``epochs`` (default 1), ``batch_size`` (default 32), ``seed``, FedProx's ``proximal-mu`` and
    those of `fedmt_flower.domain.step.StepRules` from its configuration. Every epoch has its own seed, so
    that one can be re-entered in its middle.

    Parameters
    ----------
    objective
        The loss.
    make_optimizer
        Makes the optimizer from the parameters that require a gradient.
    graphs
        Graphs of earlier rounds' steps, where they are kept.
    """

    def __init__(
        self,
        objective: Objective,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        graphs: StepGraphs | None = None,
    ) -> None:
        self._objective = objective
        self._make_optimizer = make_optimizer
        self._graphs = graphs or StepGraphs()

    def setup(self, model: nn.Module, data: Data, config: Mapping[str, Any], device: torch.device) -> None:
        """Get ready for a round; see `SteppedTrainer.setup`."""
        known = names(config)
        self._epochs = int(lookup(known, "epochs", 1))
        self._batch_size = int(lookup(known, "batch_size", DEFAULT_BATCH))
        self._seed = int(known["seed"])
        mu = float(known.get(PROXIMAL, 0.0))
        if self._epochs < 1 or self._batch_size < 1:
            raise ValueError(
                f"epochs {self._epochs}, batch_size {self._batch_size}: expected 1 or more of each"
            )
        rules = StepRules.of(config)
        self._data, self._device = data, device
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        step = TrainingStep(
            model=model,
            objective=self._objective,
            optimizer=self._make_optimizer(weights),
            weights=weights,
            mu=mu,
            anchor=[weight.detach().clone() for weight in weights] if mu else [],
            loss=torch.zeros((), device=device, dtype=torch.float64),
            rules=rules,
        )
        found = ""
        if rules.step is not StepChoice.EAGER:
            whole = self._epochs * whole_batches(data, self._batch_size)
            found = obstacle(self._graphs.recorder, device, data, step.optimizer, whole)
        self._steps = Steps(step, self._graphs, found, self._batch_size, device)
        self._samples = 0
        self._epoch, self._taken = 0, 0
        self._next: Selection | Batch | None = None
        self._enter_epoch()

    def step(self) -> int:
        """Take one optimiser step; returns its samples, 0 when all epochs are over."""
        return self._advance(self._steps.take)

    def plain_step(self) -> int:
        """As `step`, kernel by kernel whatever the rules say: for what looks at each kernel."""
        return self._advance(self._steps.take_plainly)

    def flaw(self) -> str:
        """What a layer gets wrong in the arithmetic of the rules, see `soundness.flaw`; empty if nothing."""
        step = self._steps.step
        if step.rules.is_plain or self._next is None:
            return ""
        on_gpu = self._device.type == "cuda"
        with torch.random.fork_rng([self._device] if on_gpu else []):
            found = flaw(step, gathered(self._next, self._device))
        if on_gpu:
            torch.cuda.empty_cache()  # a graph takes nothing of it, its memory is a pool of its own
        return found

    def release(self) -> None:
        """Give back memory that the next step can take again."""
        self._steps.release()

    @property
    def step_kind(self) -> StepKind:
        """How steps reach the device, but for the few before a recording."""
        return self._steps.kind

    @property
    def precision(self) -> Precision:
        """The arithmetic of the forward and backward pass."""
        return self._steps.step.rules.precision

    @property
    def why_eager(self) -> str:
        """Why that is kernel by kernel, where the rules allow a graph; else empty."""
        return self._steps.reason

    def metrics(self) -> dict[str, float]:
        """The mean loss over the samples of the round."""
        return {"train_loss": float(self._steps.step.loss) / max(self._samples, 1)}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, place in the data, random state and sums; see `SteppedTrainer.state_dict`."""
        step = self._steps.step
        return {
            "optimizer": step.optimizer.state_dict(),
            "anchor": list(step.anchor),
            "epoch": self._epoch,
            "taken": self._taken,
            "loader": self._loader_states,
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
            "loss": step.loss,
            "samples": self._samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `setup`: the same samples in the same batches.

        Bit for bit so with data in memory; random transforms of a loader are drawn anew.
        """
        step = self._steps.step
        step.optimizer.load_state_dict(state["optimizer"])
        step.anchor = [weight.to(self._device, copy=True) for weight in state["anchor"]]
        step.loss = state["loss"].to(self._device, copy=True)
        self._samples = state["samples"]
        self._steps.go_on(begun=self._samples > 0)
        self._epoch, self._taken = state["epoch"], state["taken"]
        for generator, saved in zip(generators(self._data), state["loader"], strict=True):
            generator.set_state(saved)
        self._enter_epoch()
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"], self._device)

    def _advance(self, take: Callable[[Selection | Batch], object]) -> int:
        while self._next is None:
            if self._epoch + 1 >= self._epochs:
                return 0
            self._epoch, self._taken = self._epoch + 1, 0
            self._enter_epoch()
        used = rows(self._next)
        take(self._next)
        self._samples += used
        self._taken += 1
        self._next = next(self._draws, None)
        return used

    def _enter_epoch(self) -> None:
        seed = self._seed + 0x9E3779B9 * (self._epoch + 1)
        self._loader_states = [generator.get_state() for generator in generators(self._data)]
        torch.manual_seed(seed)
        shuffle = torch.Generator().manual_seed(seed)
        self._draws = draws(self._data, self._batch_size, self._device, shuffle, self._taken)
        # Drawn now, so that whatever a loader takes from the generators is taken at a known moment.
        self._next = next(self._draws, None)


def evaluate_by(
    objective: Objective,
    model: nn.Module,
    data: Data,
    device: torch.device,
    batch_size: int = 256,
    at_most: int | None = None,
) -> dict[str, float]:
    """Metrics of `model` by `objective`, averaged over the samples of `data`, or of `at_most` batches."""
    sums: dict[str, Tensor] = {}
    samples = 0
    with torch.no_grad():
        for batch in islice(batches(data, batch_size, device), at_most):
            samples += rows(batch)
            for name, values in objective.measure(model, batch).items():
                total = values.sum(dtype=torch.float64)
                sums[name] = sums[name] + total if name in sums else total
    return {name: float(total) / samples for name, total in sums.items()}
