"""The course of a run: its rounds one after the other, evaluated on the server, told and kept."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ArrayRecord, MetricRecord

from fedmt_flower.domain.history import FederationRound
from fedmt_flower.errors import FederationError
from fedmt_flower.federation.pacing import pace_of
from fedmt_flower.federation.resumption import Journal
from fedmt_flower.federation.rounds import Rounds
from fedmt_flower.federation.tracks import Track

_log = logging.getLogger("flwr.fedmt")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]
TaskEvaluateFn = Callable[[str, int, ArrayRecord], MetricRecord | None]


def play(
    rounds: Rounds,
    num_rounds: int,
    evaluate: TaskEvaluateFn | None,
    on_round: Callable[[FederationRound], None] | None,
    journal: Journal | None = None,
) -> None:
    """Play the rounds up to `num_rounds` that `journal` does not have, and one that only evaluates.

    Raises
    ------
    FederationError
        If no node connects, or no task was updated in any round.
    """
    begin, failure, done = time.monotonic(), "", 0
    if journal:
        done, num_rounds = journal.round, max(journal.round, num_rounds)
        for earlier in journal.history:
            if on_round:
                on_round(earlier)
    if not done:
        _evaluate_here(evaluate, 0, rounds.tracks)
    for number in range(done + 1, num_rounds + 2):
        final = number > num_rounds
        _log.info("[EVALUATION]" if final else f"[ROUND {number}/{num_rounds}]")
        played = rounds.play(number, final=final)
        # Flower's records refer to themselves: a round's updates, in memory and on disk, would stay until
        # Python next looks for cycles, over one round or more. It takes 10 ms, and 75 where torch is loaded.
        gc.collect()
        _log_round(played)
        failure = failure or _first_failure(played)
        if not final:
            _evaluate_here(evaluate, number, rounds.tracks)
            if journal:
                journal.save(played)
        if on_round:
            on_round(played)
    _log.info("FedMT finished in %.2f s", time.monotonic() - begin)
    if num_rounds and not any(track.updates for track in rounds.tracks):
        raise FederationError(
            f"no task was updated in {num_rounds} rounds: {failure or 'no strategy asked for it'}"
        )


def server_evaluation(evaluate_fn: Any, *, one: bool) -> TaskEvaluateFn | None:
    """`evaluate_fn`, in whichever form it was given, as one function of task, round and arrays."""
    if isinstance(evaluate_fn, Mapping):
        return lambda task, number, arrays: evaluate_fn.get(task, lambda *_: None)(number, arrays)
    if evaluate_fn is not None and one:
        return lambda _, number, arrays: evaluate_fn(number, arrays)
    return evaluate_fn  # type: ignore[no-any-return]


def _evaluate_here(evaluate: TaskEvaluateFn | None, number: int, tracks: list[Track]) -> None:
    if evaluate is None:
        return
    for track in tracks:
        metrics = evaluate(track.name, number, track.arrays)
        if metrics is not None:
            _log.info("\t└──> %s on the server: %s", track.name, metrics)
            track.result.evaluate_metrics_serverapp[number] = metrics


def _log_round(played: FederationRound) -> None:
    for task, outcome in played.tasks.items():
        if outcome.sites:
            _log.info("\t├──> %s: updated by %s", task, ", ".join(outcome.sites))
        for what, metrics in (("trained", outcome.train_metrics), ("evaluated", outcome.evaluate_metrics)):
            if metrics:
                shown = ", ".join(f"{key} {value:.4g}" for key, value in metrics.items())
                _log.info("\t│\t└── %s: %s", what, shown)
    if (pace := pace_of(played)).site:
        _log.info("\t└──> The slowest site: %s", pace)


def _first_failure(played: FederationRound) -> str:
    return next((line for outcome in played.tasks.values() for line in outcome.failures), "")
