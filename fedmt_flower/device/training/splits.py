"""The data of the sites that a task serves: loaded once, given back unchanged each round."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fedmt_flower.device.training.batches import Data, count, generators

_KEPT_SITES = 64


@dataclass(frozen=True, slots=True)
class Splits:
    """One site's data of one task.

    `states` are what the loaders' own generators held when the data was loaded.
    """

    train: Data
    test: Data | None
    train_examples: int
    evaluate_examples: int
    states: tuple[tuple[torch.Generator, torch.Tensor], ...]

    def rewind(self) -> None:
        """Set the loaders' generators back, so that a round depends on nothing that ran before it."""
        for generator, state in self.states:
            generator.set_state(state)


class SplitsCache:
    """Keeps the data of the sites served last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Splits] = OrderedDict()

    def get(self, key: str, load: Callable[[], object], keep: Callable[[Data], Data]) -> Splits:
        """The data called `key`: kept, or made by `load`, each split of it passed through `keep`.

        Raises
        ------
        ValueError
            If `load` gives something other than (train, test), or no training samples.
        """
        if key not in self._kept:
            self._kept[key] = _checked(load(), keep)
            while len(self._kept) > _KEPT_SITES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        splits = self._kept[key]
        splits.rewind()
        return splits


def _checked(loaded: Any, keep: Callable[[Data], Data]) -> Splits:
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        got = f"{len(loaded)} values" if isinstance(loaded, (tuple, list)) else type(loaded).__name__
        raise ValueError(f"got {got}, expected (train, test)")
    if all(isinstance(part, torch.Tensor) for part in loaded):
        raise ValueError(
            "got two tensors, expected (train, test), each a loader, a data set or a tuple of tensors"
        )
    train, test = loaded
    train_examples, evaluate_examples = _count("train", train), 0 if test is None else _count("test", test)
    if train_examples == 0:
        raise ValueError("the training split is empty: give this site some samples, or leave it out")
    train = keep(train)
    test = None if test is None else keep(test)
    found = [generator for split in (train, test) if split is not None for generator in generators(split)]
    states = tuple((generator, generator.get_state()) for generator in found)
    return Splits(train, test, train_examples, evaluate_examples, states)


def _count(which: str, data: Any) -> int:
    try:
        return count(data)
    except TypeError as error:
        raise ValueError(
            f"the {which} split is a {type(data).__name__} without a length; expected a DataLoader, "
            "a map-style Dataset or a tuple of tensors"
        ) from error
