"""Which settings a profile takes: {Bᵢ, Rᵢ} at random and on a grid, jointly, over sets of tasks (§ IV)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from fedmt_flower.errors import ConfigError

LARGEST_SET: Final = 5
_MIDDLE: Final = 60.0
"""Near this budget, and at the whole device, every task is measured at its reference batch size."""
_DRAWN: Final = 4
"""Random budgets of a task besides those; every other one comes with a random batch size too."""
_TOGETHER: Final = 12
"""Settings of a set before one of its tasks is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A task to profile: its reference batch size, and all that it may be given (the reference too).

    `levels` are its budgets in per cent, the device's own steps.
    """

    task: str
    reference: int
    batches: tuple[int, ...]
    levels: tuple[float, ...]


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """A task at a batch size (samples) and a budget (%): one warm worker."""

    task: str
    batch: int
    budget: float


Setting = tuple[Place, ...]
"""Places that run together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Settings that share few places.

    Parameters
    ----------
    places
        The workers to have; those of earlier blocks that are not among them can go.
    settings
        What to measure, in this order.
    """

    places: tuple[Place, ...]
    settings: tuple[Setting, ...]


def blocks(candidates: Sequence[Candidate], quarter: float, *, seed: int = 0) -> Iterator[Block]:
    """An endless plan, the same for the same arguments.

    It begins with every task alone. Then one task comes in with each block, with new places, and is first
    measured alone; none, one or two leave. So few workers start for a block, and wherever a plan is cut
    off, it has met all tasks about as often.

    Parameters
    ----------
    candidates
        The tasks; sets have two to five of them.
    quarter
        The device's own step at 25 %.
    seed
        Of what is drawn.

    Raises
    ------
    ConfigError
        If there is no task or no budget.
    """
    if not candidates or not all(candidate.levels for candidate in candidates):
        raise ConfigError(
            f"profile: got {len(candidates)} tasks, expected at least one, each with at least one budget"
        )
    known = {candidate.task: candidate for candidate in candidates}
    for candidate in candidates:
        yield _alone(candidate, quarter)
    generator = np.random.default_rng(seed)
    met = dict.fromkeys(known, 0)
    present: dict[str, tuple[Place, ...]] = {}
    for size in _sizes(len(known)):
        drawn = {task: generator.random() for task in known}
        going = sorted(present, key=lambda task: (-met[task], drawn[task]))
        for task in going[: max(0, len(present) - size + 1)]:
            del present[task]
        absent = sorted(known.keys() - present.keys(), key=lambda task: (met[task], drawn[task]))
        coming = absent[: size - len(present)]
        present |= {task: _places(known[task], generator) for task in coming}
        met |= {task: met[task] + 1 for task in present}
        ends = [place for task in coming for place in (present[task][0], present[task][-1])]
        yield Block(
            places=tuple(itertools.chain.from_iterable(present.values())),
            settings=tuple(
                dict.fromkeys([*((place,) for place in ends), *_together(list(present.values()), generator)])
            ),
        )


def _alone(candidate: Candidate, quarter: float) -> Block:
    """A task alone: at every batch size with the whole device, and on a quarter of it."""
    whole = max(candidate.levels)
    at_whole = [Place(candidate.task, batch, whole) for batch in sorted(candidate.batches)]
    places = tuple(dict.fromkeys([*at_whole, Place(candidate.task, candidate.reference, quarter)]))
    return Block(places=places, settings=tuple((place,) for place in places))


def _sizes(n: int) -> Iterator[int]:
    """Sizes of the sets: from two (one, where there is but one task) up to the largest and down again."""
    least, most = min(2, n), min(LARGEST_SET, n)
    return itertools.cycle([*range(least, most), *range(most, least, -1)] or [least])


def _places(candidate: Candidate, generator: np.random.Generator) -> Setting:
    """The whole device and the middle at the reference batch size; then random places, spread out.

    Most plans leave batch sizes as they are, so two thirds of the places do.
    """
    levels = candidate.levels
    middle = min(levels, key=lambda level: (abs(level - _MIDDLE), level))
    even = [Place(candidate.task, candidate.reference, level) for level in (max(levels), middle)]
    batches, budgets = _spread(candidate.batches, generator), _spread(levels, generator)
    sizes = [candidate.reference if i % 2 else int(batch) for i, batch in enumerate(batches)]
    drawn = [Place(candidate.task, batch, r) for batch, r in zip(sizes, budgets, strict=True)]
    return tuple(dict.fromkeys([*even, *drawn]))


def _spread(values: Sequence[float], generator: np.random.Generator) -> list[float]:
    """`_DRAWN` of `values`, none twice before each was drawn once."""
    turns = math.ceil(_DRAWN / len(values))
    drawn = np.concatenate([generator.permutation(np.array(values)) for _ in range(turns)])
    return [float(value) for value in drawn[:_DRAWN]]


def _together(places: Sequence[Setting], generator: np.random.Generator) -> Iterator[Setting]:
    """One place of each task: all with the whole device, all in the middle, then in random company."""
    possible = math.prod(map(len, places))
    found = dict.fromkeys(zip(*(own[:2] for own in places), strict=False))
    while len(found) < min(_TOGETHER, possible):
        shuffled = ([own[i] for i in generator.permutation(len(own))] for own in places)
        found |= dict.fromkeys(zip(*shuffled, strict=False))
    yield from itertools.islice(found, _TOGETHER)
