"""Losses and metrics are those of their names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmt_flower.tasks.objectives import classification, reconstruction, regression

X = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])


def test_classification() -> None:
    labels = torch.tensor([0, 1, 1])
    measured = classification.measure(nn.Identity(), (X, labels))
    assert measured["accuracy"].tolist() == [1, 1, 0]
    torch.testing.assert_close(measured["loss"], nn.functional.cross_entropy(X, labels, reduction="none"))
    torch.testing.assert_close(
        classification.loss(nn.Identity(), (X, labels)), nn.functional.cross_entropy(X, labels)
    )


def test_regression_takes_targets_of_one_or_two_dimensions() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    for targets in (torch.tensor([1.0, -2.0, 0.0]), torch.tensor([[1.0], [-2.0], [0.0]])):
        measured = regression.measure(model, (X, targets))
        assert measured["loss"].tolist() == [1, 4, 0]
        assert measured["mae"].tolist() == [1, 2, 0]


@pytest.mark.parametrize("batch", [X, (X,), (X, torch.zeros(3)), {"image": X}])
def test_reconstruction_needs_no_target(batch: object) -> None:
    measured = reconstruction.measure(nn.Flatten(), batch)
    assert measured["loss"].tolist() == [0, 0, 0]
    assert float(reconstruction.loss(nn.ReLU(), (-X,))) == pytest.approx(float(X.square().mean()))


def test_a_batch_without_targets_is_told() -> None:
    with pytest.raises(ValueError, match="got a batch of 1 parts, expected"):
        classification.loss(nn.Identity(), (X,))
