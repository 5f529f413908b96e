"""How a run is kept from round to round, and how it goes on after it was cut off."""

from __future__ import annotations

import hashlib
import logging
import random
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
from flwr.serverapp.strategy import Strategy

from fedmt_flower.domain.history import FederationRound
from fedmt_flower.errors import ConfigError
from fedmt_flower.federation.checkpoint import Checkpoint, CheckpointError, CheckpointFolder
from fedmt_flower.federation.state import Node, StateError, freeze, thaw
from fedmt_flower.federation.tracks import Track

_log = logging.getLogger("flwr.fedmt")

_ANEW = "name another folder, or remove it to begin anew"
_SEEDS = 1 << 31


class Journal:
    """The tasks of a run as their last checkpoint has them, and what is written after each round.

    Parameters
    ----------
    path
        Folder of the checkpoints. If there are any, `tracks` are set to the last complete round.
    tracks
        The tasks of the run, as they are before its first round.
    settings
        By task, `settings_of` its strategy as it was made.
    seed
        Seed of what strategies draw at random; None takes the checkpoint's, or a new one.

    Attributes
    ----------
    round
        The last complete round; 0 if the run begins.
    history
        The rounds until then.

    Raises
    ------
    CheckpointError
        If the checkpoints cannot be used, are those of another run, or a strategy cannot be kept.
    """

    def __init__(
        self, path: Path, tracks: list[Track], settings: Mapping[str, Node], seed: int | None
    ) -> None:
        self._tracks = tracks
        self._identity = {track.name: _identity(track, settings[track.name]) for track in tracks}
        self._folder = CheckpointFolder(path)
        self.round = 0
        self.history: tuple[FederationRound, ...] = ()
        try:
            found = self._folder.newest()
            self.seed = _seed(path, seed, found)
            if found is None:
                self._folder.save(self._checkpoint(0))
            else:
                self._resume(found)
        except BaseException:
            self._folder.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.close()

    def save(self, played: FederationRound) -> None:
        """Keep the run as it is after the round `played`.

        A full disk costs the checkpoint, not the run; CheckpointError only if a strategy cannot be kept.
        """
        checkpoint = self._checkpoint(played.round)
        try:
            self._folder.save(checkpoint, played)
        except CheckpointError as error:
            _log.error("%s", error)

    def _checkpoint(self, number: int) -> Checkpoint:
        values = {track.name: _values(track) for track in self._tracks}
        try:
            state = freeze(values)
        except StateError as error:
            raise CheckpointError(f"a checkpoint cannot hold everything: {error}") from error
        return Checkpoint(round=number, seed=self.seed, identity=self._identity, state=state)

    def _resume(self, found: Checkpoint) -> None:
        path = self._folder.path
        _check_same(path, found.identity, self._identity)
        try:
            values = thaw(found.state, {track.name: _values(track) for track in self._tracks})
        except (StateError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"checkpoint {path}: does not fit the strategies: {error}") from error
        for track in self._tracks:
            _restore(track, values[track.name])
        self.round = found.round
        self.history = self._folder.go_on_after(found.round)
        _log.info("Going on after round %d, from the checkpoint %s", found.round, path)


@contextmanager
def drawing(seed: int | None, *place: object) -> Iterator[None]:
    """Seed what Flower's strategies draw from, the generators of this process, by `seed` and `place`.

    They are put back afterwards; without a seed they are left alone.
    """
    if seed is None:
        yield
        return
    before, before_numpy = random.getstate(), np.random.get_state()
    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    random.seed(digest)
    np.random.seed(np.frombuffer(digest, np.uint32))
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(before_numpy)


def _seed(path: Path, given: int | None, found: Checkpoint | None) -> int:
    if found is None:
        return secrets.randbelow(_SEEDS) if given is None else given
    if given not in (None, found.seed):
        raise CheckpointError(f"checkpoint {path}: its run has seed {found.seed}, this one {given}; {_ANEW}")
    return found.seed


def _values(track: Track) -> dict[str, Any]:
    result = track.result
    return {
        "arrays": track.arrays,
        "updates": track.updates,
        "train": result.train_metrics_clientapp,
        "evaluate": result.evaluate_metrics_clientapp,
        "evaluate_here": result.evaluate_metrics_serverapp,
        "strategy": track.strategy,
    }


def _restore(track: Track, values: Mapping[str, Any]) -> None:
    track.arrays = track.result.arrays = values["arrays"]
    track.updates = values["updates"]
    track.result.train_metrics_clientapp = values["train"]
    track.result.evaluate_metrics_clientapp = values["evaluate"]
    track.result.evaluate_metrics_serverapp = values["evaluate_here"]


def settings_of(strategies: Mapping[str, Strategy]) -> dict[str, Node]:
    """What strategies, as they were made, must have in common with those that go on in their place.

    Raises
    ------
    ConfigError
        If one has an attribute that no checkpoint can hold.
    """
    settings: dict[str, Node] = {}
    problems = []
    for task, strategy in strategies.items():
        try:
            settings[task] = freeze(strategy).digests()["strategy"]
        except StateError as error:
            problems.append(
                f"task {task!r}: {type(strategy).__name__} cannot be kept in a checkpoint: its attribute "
                f"{error}; use numbers, strings, arrays, and lists or dicts of them, or no checkpoint"
            )
    if problems:
        raise ConfigError(*problems)
    return settings


def _identity(track: Track, settings: Node) -> Node:
    kind = type(track.strategy)
    return {
        "strategy": f"{kind.__module__}.{kind.__qualname__}",
        "settings": settings,
        "model": [[name, str(spec.dtype), list(spec.shape)] for name, spec in track.spec().items()],
    }


def _check_same(path: Path, then: Mapping[str, Node], now: Mapping[str, Node]) -> None:
    """Raise CheckpointError unless a run of the tasks `now` can go on from one of the tasks `then`."""
    if set(then) != set(now):
        raise CheckpointError(
            f"checkpoint {path}: is of the tasks {', '.join(then)}, this run of {', '.join(now)}; {_ANEW}"
        )
    for task, own in now.items():
        difference = _difference(then[task], own)
        if difference:
            raise CheckpointError(f"checkpoint {path}: task {task!r} had {difference}; {_ANEW}")


def _difference(then: Node, now: Node) -> str:
    if then["strategy"] != now["strategy"]:
        return f"the strategy {then['strategy']}, now {now['strategy']}"
    name = now["strategy"].rpartition(".")[2]
    old, new = (dict(map(tuple, one["settings"])) for one in (then, now))
    for key in sorted({*old, *new}):
        if old.get(key) != new.get(key):
            plain = all(not isinstance(one.get(key), list | dict) for one in (old, new))
            return (
                f"{name} with {key} = {old.get(key)}, now {new.get(key)}"
                if plain
                else f"{name} with another {key}"
            )
    if then["model"] != now["model"]:
        pairs = zip(then["model"], now["model"], strict=False)
        first = next(((a, b) for a, b in pairs if a != b), None)
        if first is None:
            return f"a model of {len(then['model'])} arrays, now of {len(now['model'])}"
        return "the array {!r}, {} {}, now {!r}, {} {}".format(*first[0], *first[1])
    return ""
