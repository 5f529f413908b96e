"""What one optimiser step does, and the tensors that it changes besides the model's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from fedmt_flower.device.training.batches import Batch
from fedmt_flower.domain.step import MemoryFormat, Precision, StepRules


class Objective(Protocol):
    """What a task minimises and what it is judged by; a module, a class or a value may be one."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over `batch`, a scalar to differentiate."""
        ...

    def measure(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Metrics by name, each of shape (samples of `batch`,): one value per sample, to be averaged."""
        ...


@dataclass(slots=True)
class TrainingStep:
    """The steps of one round.

    Parameters
    ----------
    model, objective, optimizer
        What learns, what it minimises, and how it is updated.
    weights
        The parameters that the optimizer updates.
    mu, anchor
        FedProx's weight μ, and the weights to stay near; without μ there are none.
    loss
        The sum of the samples' losses so far; a float64 scalar on the device, since reading a loss at
        each step would wait for the GPU at each step.
    rules
        Precision and memory format.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    weights: Sequence[Tensor]
    mu: float
    anchor: Sequence[Tensor]
    loss: Tensor
    rules: StepRules

    def take(self, batch: Batch, samples: int) -> None:
        """Take one step on `batch`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss_of(batch)
        total = loss + self._proximal_term() if self.anchor else loss
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.loss += loss.detach() * samples

    def loss_of(self, batch: Batch) -> Tensor:
        """The mean loss over `batch`, in the arithmetic and the memory format of the rules."""
        with self._arithmetic():
            return self.objective.loss(self.model, self._laid_out(batch))

    def tensors(self) -> Iterator[Tensor]:
        """What a step changes besides the model; always in one order once the optimizer has its state."""
        for weight in self.weights:
            held = self.optimizer.state.get(weight, {})
            yield from (held[name] for name in sorted(held) if isinstance(held[name], Tensor))
        for group in self.optimizer.param_groups:
            yield from (group[name] for name in sorted(group) if isinstance(group[name], Tensor))
        yield from self.anchor
        yield self.loss

    def adopt(self, other: TrainingStep) -> None:
        """Go on where `other`, of the same model, is: its values into this one's own tensors."""
        with torch.no_grad():
            torch._foreach_copy_(list(self.tensors()), list(other.tensors()))

    def _arithmetic(self) -> AbstractContextManager[object]:
        if self.rules.precision is Precision.FLOAT32:
            return nullcontext()
        # Without its cache, whose casts a graph's private memory must not outlive.
        return torch.autocast(self.loss.device.type, torch.bfloat16, cache_enabled=False)

    def _laid_out(self, batch: Batch) -> Batch:
        if self.rules.memory_format is MemoryFormat.CONTIGUOUS:
            return batch
        if isinstance(batch, Tensor):
            return batch.contiguous(memory_format=torch.channels_last) if batch.dim() == 4 else batch
        if isinstance(batch, Mapping):
            return {name: self._laid_out(part) for name, part in batch.items()}
        if isinstance(batch, Sequence) and not isinstance(batch, str):
            return tuple(self._laid_out(part) for part in batch)
        return batch

    def _proximal_term(self) -> Tensor:
        distances = [
            (weight - anchor).square().sum() for weight, anchor in zip(self.weights, self.anchor, strict=True)
        ]
        return 0.5 * self.mu * torch.stack(distances).sum()
