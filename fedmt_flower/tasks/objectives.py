"""Losses and metrics of the built-in kinds of learning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Values = Callable[[Any, Any], Tensor]
"""From a model's outputs and the targets to one value per sample."""


@dataclass(frozen=True, slots=True)
class PerSample:
    """An objective made of values per sample.

    Parameters
    ----------
    losses
        What is minimised; the metric ``loss``.
    others
        Further metrics by name, computed in evaluation alone.
    split
        From a batch to inputs and targets.
    """

    losses: Values
    others: Mapping[str, Values]
    split: Callable[[Any], tuple[Tensor, Tensor]]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean of the losses over `batch`."""
        inputs, targets = self.split(batch)
        return self.losses(model(inputs), targets).mean()

    def measure(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Every metric of every sample of `batch`."""
        inputs, targets = self.split(batch)
        outputs = model(inputs)
        return {name: of(outputs, targets) for name, of in {"loss": self.losses, **self.others}.items()}


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(scores, labels, reduction="none")


def _correct(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(dim=1) == labels).to(scores.dtype)


def _squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return _errors(outputs, targets).square().mean(dim=1)


def _absolute_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return _errors(outputs, targets).abs().mean(dim=1)


def _errors(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.reshape(len(outputs), -1) - targets.reshape(len(targets), -1)


def _parts(batch: Any) -> tuple[Any, ...]:
    return tuple(batch.values() if isinstance(batch, Mapping) else batch)


def _inputs_and_targets(batch: Any) -> tuple[Tensor, Tensor]:
    parts = _parts(batch)
    if len(parts) != 2:
        raise ValueError(f"got a batch of {len(parts)} parts, expected (inputs, targets)")
    return parts[0], parts[1]


def _inputs_alone(batch: Any) -> tuple[Tensor, Tensor]:
    inputs = batch if isinstance(batch, Tensor) else _parts(batch)[0]
    return inputs, inputs


classification = PerSample(_cross_entropy, {"accuracy": _correct}, _inputs_and_targets)
"""Cross-entropy over class scores; batches of (inputs, class indices)."""
regression = PerSample(_squared_error, {"mae": _absolute_error}, _inputs_and_targets)
"""Squared error, and the mean absolute error ``mae``; batches of (inputs, targets)."""
reconstruction = PerSample(_squared_error, {}, _inputs_alone)
"""Squared error between a model's output and its input; the first part of each batch is used."""
