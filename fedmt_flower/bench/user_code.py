"""Training functions that benchmarks hand to an engine as a user would: imported by path, in a worker."""

from __future__ import annotations

from typing import Any


def keep(model: Any, data: Any) -> None:
    """Leave the weights as they were handed over."""


def index_out_of_range(model: Any, data: Any) -> dict[str, float]:
    """Look up a row that is not there: on a GPU, an assertion fails on the device and ends its context."""
    weight = next(model.parameters())
    row = weight.new_full((1,), 10**9).long()
    return {"found": float(weight.flatten()[row].sum())}


def grab(model: Any, data: Any, gigabytes: float) -> dict[str, float]:
    """Take so much memory, GiB by GiB."""
    weight = next(model.parameters())
    held = [weight.new_empty(2**28) for _ in range(int(gigabytes))]
    return {"gigabytes": float(len(held))}
