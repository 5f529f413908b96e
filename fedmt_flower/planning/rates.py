"""Rates of every set of tasks that may compute at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedmt_flower.planning.throughput import Array

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RateTable:
    """Rates by *state*: which tasks compute, and with which of its `choices` settings each does.

    A state is a number in base `choices` + 1. Its digit for task i is 0 where the task does not compute,
    else 1 + the index of its setting. Points that differ only in tasks that do not compute share a state,
    so c settings of n tasks need (c + 1)ⁿ rows, not 2ⁿ·cⁿ.

    Parameters
    ----------
    choices
        Settings (for instance batch sizes) of each task.
    rates
        Samples/s, 0 for tasks that do not compute; shape ((choices + 1)ⁿ, n).
    """

    choices: int
    rates: Array

    @property
    def weights(self) -> Index:
        """What a digit of each task counts in a state's number; shape (n,)."""
        return (self.choices + 1) ** np.arange(self.rates.shape[1])

    def steps(self, choice: Index) -> Index:
        """Each task's term of the number of the state in which all compute; shape of `choice`, (…, n)."""
        return (choice + 1) * self.weights

    def fastest(self) -> Array:
        """The highest rates over all settings, by the set of computing tasks: shape (2ⁿ, n).

        The set's number has bit i for task i.
        """
        n = self.rates.shape[1]
        grid = self.rates.reshape((self.choices + 1,) * n + (n,))
        for axis in range(n):
            absent, present = np.split(grid, [1], axis=axis)
            grid = np.concatenate([absent, present.max(axis=axis, keepdims=True)], axis=axis)
        return grid.reshape(2**n, n)


def states(n: int, choices: int) -> Index:
    """The digits of every state: shape ((choices + 1)ⁿ, n)."""
    base = choices + 1
    return np.arange(base**n)[:, None] // base ** np.arange(n) % base
