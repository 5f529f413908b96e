"""Training that the package drives step by step, and its own loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedmt_flower.device.batches import Batch, Data, batches, generators, rows
from fedmt_flower.device.binding import lookup, names

PROXIMAL = "proximal_mu"
"""FedProx's weight μ; its strategy sends it as ``proximal-mu``."""
_DEFAULT_BATCH = 32


class Objective(Protocol):
    """What a task minimises and what it is judged by; a module, a class or a value may be one."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over `batch`, a scalar to differentiate."""
        ...

    def measure(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Metrics by name, each of shape (samples of `batch`,): one value per sample, to be averaged."""
        ...


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

    It reads ``epochs`` (default 1), ``batch_size`` (default 32), ``seed`` and FedProx's ``proximal-mu``
    from its configuration. Every epoch has its own seed, so that one can be re-entered in its middle.

    Parameters
    ----------
    objective
        The loss.
    make_optimizer
        Makes the optimizer from the parameters that require a gradient.
    """

    def __init__(
        self,
        objective: Objective,
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    ) -> None:
        self._objective = objective
        self._make_optimizer = make_optimizer

    def setup(self, model: nn.Module, data: Data, config: Mapping[str, Any], device: torch.device) -> None:
        """Get ready for a round; see `SteppedTrainer.setup`."""
        known = names(config)
        self._epochs = int(lookup(known, "epochs", 1))
        self._batch_size = int(lookup(known, "batch_size", _DEFAULT_BATCH))
        self._seed = int(known["seed"])
        self._mu = float(known.get(PROXIMAL, 0.0))
        if self._epochs < 1 or self._batch_size < 1:
            raise ValueError(
                f"epochs {self._epochs}, batch_size {self._batch_size}: expected 1 or more of each"
            )
        self._model, self._data, self._device = model, data, device
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._anchor = [weight.detach().clone() for weight in self._weights] if self._mu else []
        self._optimizer = self._make_optimizer(self._weights)
        self._loss = torch.zeros((), device=device, dtype=torch.float64)
        self._samples = 0
        self._epoch, self._taken = 0, 0
        self._next: Batch | None = None
        self._enter_epoch()

    def step(self) -> int:
        """Take one optimiser step; returns its samples, 0 when all epochs are over."""
        while self._next is None:
            if self._epoch + 1 >= self._epochs:
                return 0
            self._epoch, self._taken = self._epoch + 1, 0
            self._enter_epoch()
        batch = self._next
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._objective.loss(self._model, batch)
        total = loss + self._proximal_term() if self._anchor else loss
        total.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        used = rows(batch)
        # Summed on the device: reading a loss at each step would wait for the GPU at each step.
        self._loss += loss.detach() * used
        self._samples += used
        self._taken += 1
        self._next = next(self._batches, None)
        return used

    def metrics(self) -> dict[str, float]:
        """The mean loss over the samples of the round."""
        return {"train_loss": float(self._loss) / max(self._samples, 1)}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, place in the data, random state and sums; see `SteppedTrainer.state_dict`."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "anchor": self._anchor,
            "epoch": self._epoch,
            "taken": self._taken,
            "loader": self._loader_states,
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
            "loss": self._loss,
            "samples": self._samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, after `setup`: the same samples in the same batches.

        Bit for bit so with data in memory; random transforms of a loader are drawn anew.
        """
        self._optimizer.load_state_dict(state["optimizer"])
        self._anchor = [weight.to(self._device) for weight in state["anchor"]]
        self._epoch, self._taken = state["epoch"], state["taken"]
        for generator, saved in zip(generators(self._data), state["loader"], strict=True):
            generator.set_state(saved)
        self._enter_epoch()
        torch.set_rng_state(state["random"])
        if state["device_random"] is not None:
            torch.cuda.set_rng_state(state["device_random"], self._device)
        self._loss = state["loss"].to(self._device)
        self._samples = state["samples"]

    def _enter_epoch(self) -> None:
        seed = self._seed + 0x9E3779B9 * (self._epoch + 1)
        self._loader_states = [generator.get_state() for generator in generators(self._data)]
        torch.manual_seed(seed)
        shuffle = torch.Generator().manual_seed(seed)
        self._batches: Iterator[Batch] = batches(
            self._data, self._batch_size, self._device, shuffle, self._taken
        )
        # Drawn now, so that whatever a loader takes from the generators is taken at a known moment.
        self._next = next(self._batches, None)

    def _proximal_term(self) -> Tensor:
        distances = [
            (weight - anchor).square().sum()
            for weight, anchor in zip(self._weights, self._anchor, strict=True)
        ]
        return 0.5 * self._mu * torch.stack(distances).sum()


def evaluate_by(
    objective: Objective, model: nn.Module, data: Data, device: torch.device, batch_size: int = 256
) -> dict[str, float]:
    """Metrics of `model` by `objective`, averaged over the samples of `data`."""
    sums: dict[str, Tensor] = {}
    samples = 0
    with torch.no_grad():
        for batch in batches(data, batch_size, device):
            samples += rows(batch)
            for name, values in objective.measure(model, batch).items():
                total = values.sum(dtype=torch.float64)
                sums[name] = sums[name] + total if name in sums else total
    return {name: float(total) / samples for name, total in sums.items()}
