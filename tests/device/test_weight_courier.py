"""Weights into a model and out of it: what is not finite is found, and what is large is not refused."""

from __future__ import annotations

import pytest
import torch

from fedmt_flower.device.training.weights import WeightCourier, arrays_of, check_finite, state_of

STATE = {
    "wide": torch.tensor([1e300, -1e300], dtype=torch.float64),
    "large": torch.full((4,), 3e38),
    "half": torch.full((9,), 6e4, dtype=torch.float16),
    "count": torch.tensor(3),
    "none": torch.empty(0),
}


def test_finite_values_are_fine_even_where_their_sums_are_not() -> None:
    check_finite("weights", STATE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["wide", "large", "half"])
def test_what_is_not_finite_is_named(name: str, value: float) -> None:
    broken = STATE[name].clone()
    broken[-1] = value
    with pytest.raises(ValueError, match=f"^weights are not finite: '{name}'$"):
        check_finite("weights", {**STATE, name: broken})


def test_trained_weights_are_the_models_own_until_somebody_copies_them() -> None:
    model, courier = torch.nn.Linear(3, 2), WeightCourier()
    start = arrays_of(model)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    read = courier.read(model, shapes)
    courier.load(model, {name: array + 1 for name, array in start.items()})
    for name, array in read.items():
        assert (array == start[name] + 1).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_what_no_array_can_hold_is_named(dtype: torch.dtype) -> None:
    model = torch.nn.Module()
    model.register_buffer("scale", torch.zeros(2, dtype=dtype))
    with pytest.raises(ValueError, match=f"^state_dict entry 'scale' is {dtype} .*, which no array can hold"):
        state_of(model)
