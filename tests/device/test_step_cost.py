"""What a step costs and what a device can do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedmt_flower.device.worker.features import device_features, step_cost


def stepper(model: nn.Module, *shape: int) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    return torch.randn(*shape), torch.optim.SGD(model.parameters(), lr=0.1)


def test_a_linear_layer_costs_two_products_forward_and_backward() -> None:
    model = nn.Linear(64, 32)
    inputs, optimizer = stepper(model, 16, 64)

    def step() -> int:
        optimizer.zero_grad()
        model(inputs).sum().backward()
        optimizer.step()
        return 16

    cost = step_cost(step)
    # Forward, and the gradient of the weights; inputs need none.
    assert cost.flops == 2 * (2 * 64 * 32)
    weights, activations = 64 * 32 * 4, (64 + 32) * 4
    assert cost.traffic > activations + weights / 16
    assert cost.samples == 16


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_grouped_convolution_costs_a_group_s_share(groups: int) -> None:
    model = nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False)
    inputs = torch.randn(2, 16, 8, 8, requires_grad=True)

    def step() -> int:
        model(inputs).sum().backward()
        return 2

    one_pass = 2 * (16 // groups) * 16 * 9 * 8 * 8
    assert step_cost(step).flops == 3 * one_pass


def test_views_move_nothing() -> None:
    tensor = torch.randn(8, 8)

    def step() -> int:
        tensor.view(64).t().reshape(8, 8)
        return 1

    assert step_cost(step).traffic == 1.0


def test_a_step_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        step_cost(lambda: 0)


def test_a_device_is_what_this_process_may_use() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = device_features(torch.device("cpu"))
    finally:
        torch.set_num_threads(before)
    assert found.units == 1
    assert found.name
    assert 1e8 < found.peak < 1e13
    assert 1e8 < found.bandwidth < 1e13
