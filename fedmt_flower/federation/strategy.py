"""`FedMT`: one Flower strategy per task, one exchange for all of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedmt_flower.domain.history import FederationRound
from fedmt_flower.domain.round import TaskRules
from fedmt_flower.errors import ConfigError, FederationError, expected_one_of
from fedmt_flower.federation import codec
from fedmt_flower.federation.course import EvaluateFn, TaskEvaluateFn, play, server_evaluation
from fedmt_flower.federation.resumption import Journal, settings_of
from fedmt_flower.federation.rounds import Rounds
from fedmt_flower.federation.suitability import find_problems
from fedmt_flower.federation.tracks import Configs, by_task, make_tracks
from fedmt_flower.federation.turn import Kind, Turn

_log = logging.getLogger("flwr.fedmt")

_JOIN_TIMEOUT_S = 60.0


class FedMT(Strategy):
    """Federates several tasks at once, each under a Flower strategy of its own.

    Every strategy works as if its task were alone: it samples among the nodes that host the task, its
    messages are merged into one per node, and what the nodes send back is split again and given to it in
    the order of the sites' names. FedMT computes nothing on the arrays. An update that is missing, failed
    or invalid (names, shapes, dtypes, values that are not finite) is left out for its task and node alone.

    With a single strategy nothing is merged and an app knows no difference to that strategy alone.

    Parameters
    ----------
    strategies
        A strategy of `flwr.serverapp.strategy` for each task, by the task's name.
    discover
        Whether to ask each node for its tasks; needed by several tasks, and the default for them. With one
        task it makes `fedmt_flower` clients evaluate within the message that trains.
    join_timeout
        Seconds of a round that a task may wait for more nodes if its strategy wants more than host it.
        None: 60 with several tasks, and without limit, as Flower does, with one.
    rules
        What a task asks of each round (a quorum, a deadline): by task, or the same for all.
    checkpoint
        Folder that is given a checkpoint after every round. If it has any, `start` goes on from the last
        complete round, to the same bits as if it had not been cut off. None keeps nothing.
    seed
        Seed of what the strategies draw at random, such as the nodes of a round; 0 or more. None: with
        checkpoints a new one for each run, else the strategies draw as Flower has them.

    Raises
    ------
    ConfigError
        If a name or a strategy cannot work; see the package's documentation of strategies.
    """

    def __init__(
        self,
        strategies: Mapping[str, Strategy],
        *,
        discover: bool | None = None,
        join_timeout: float | None = None,
        rules: Mapping[str, TaskRules] | TaskRules | None = None,
        checkpoint: Path | str | None = None,
        seed: int | None = None,
    ) -> None:
        problems = find_problems(strategies)
        several = len(strategies) > 1
        if discover is False and several:
            problems.append("discover: False works with one task only; leave it out")
        if join_timeout is not None and not join_timeout >= 0:
            problems.append(f"join_timeout: got {join_timeout}, expected 0 seconds or more")
        if isinstance(rules, TaskRules):
            rules = dict.fromkeys(strategies, rules)
        problems += [
            f"rules: {task!r} is no task of this FedMT; {expected_one_of(task, strategies)}"
            for task in rules or {}
            if task not in strategies
        ]
        if seed is not None and seed < 0:
            problems.append(f"seed: got {seed}, expected 0 or more")
        if problems:
            raise ConfigError(*problems)
        self._strategies = dict(strategies)
        self._checkpoint = None if checkpoint is None else Path(checkpoint)
        # Now: a strategy that has aggregated is no longer as it was made.
        self._made = settings_of(strategies) if checkpoint is not None else {}
        self._seed = seed
        self._rules = dict(rules or {})
        self._discover = several if discover is None else discover
        if join_timeout is None:
            join_timeout = _JOIN_TIMEOUT_S if several else math.inf
        self._join_timeout = join_timeout
        self._merged: Rounds | None = None
        self._turns: dict[Kind, Turn] = {}

    def summary(self) -> None:
        """Log the configuration of every task's strategy."""
        for task, strategy in self._strategies.items():
            _log.info("\t├──> Task %s: %s", task, type(strategy).__name__)
            strategy.summary()

    @overload
    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
        on_round: Callable[[FederationRound], None] | None = None,
        **extra: Any,
    ) -> Result: ...

    @overload
    def start(
        self,
        grid: Grid,
        initial_arrays: Mapping[str, ArrayRecord],
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: Configs = None,
        evaluate_config: Configs = None,
        evaluate_fn: TaskEvaluateFn | Mapping[str, EvaluateFn] | None = None,
        on_round: Callable[[FederationRound], None] | None = None,
        **extra: Any,
    ) -> dict[str, Result]: ...

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | Mapping[str, ArrayRecord],
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: Configs = None,
        evaluate_config: Configs = None,
        evaluate_fn: Any = None,
        on_round: Callable[[FederationRound], None] | None = None,
        **extra: Any,
    ) -> Result | dict[str, Result]:
        """Run the federation.

        Parameters
        ----------
        grid
            The Grid that Flower hands to the server app.
        initial_arrays
            Each task's initial model. A federation of one task also takes that task's record as it is, and
            then returns its Result as it is: the arguments and the result of Flower's own strategies.
        num_rounds
            Rounds of training.
        timeout
            Seconds to wait for the replies of an exchange.
        train_config, evaluate_config
            Configuration sent with each task's model: one for all tasks, or one by task.
        evaluate_fn
            Evaluates a model on the server, before the first round and after each: by task, or one
            function of the task's name, the round and the arrays.
        on_round
            Called with every round that is over, and with a last one that only evaluates. A run that goes on
            from a checkpoint first calls it with the rounds before.
        extra
            Arguments of later versions of Flower; they are not used.

        Returns
        -------
        dict[str, Result]
            Flower's Result of each task. A round's evaluation is of the model that the round made, round
            0 being the initial model; a task that was never updated keeps its initial model.

        Raises
        ------
        FederationError
            If no node connects, no task was updated in any round, or the checkpoints are another run's or
            cannot be read.
        """
        if extra:
            _log.warning("FedMT.start does not use %s", ", ".join(sorted(extra)))
        one = isinstance(initial_arrays, ArrayRecord)
        models = by_task("initial_arrays", initial_arrays, ArrayRecord, tuple(self._strategies))
        tracks = make_tracks(self._strategies, models, train_config, evaluate_config, self._rules)
        rounds = Rounds(
            grid,
            tracks,
            discover=self._discover,
            timeout=timeout,
            join_timeout=self._join_timeout,
            seed=self._seed,
            hashes=on_round is not None or self._checkpoint is not None,
        )
        _log.info("Starting FedMT, %d rounds:", num_rounds)
        self.summary()
        self._play(rounds, num_rounds, server_evaluation(evaluate_fn, one=one), on_round)
        results = {track.name: track.result for track in tracks}
        return next(iter(results.values())) if one else results

    # --- Flower's four methods, for whoever drives the rounds without `start`; arrays, configuration and
    # --- metrics of several tasks are then merged under keys `task/name`

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Every strategy's messages, merged to one per node; `arrays` has keys ``task/name``."""
        return self._configure(Kind.TRAIN, server_round, arrays, config, grid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As `configure_train`, for an exchange that only evaluates."""
        return self._configure(Kind.EVALUATE, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """All models under keys ``task/name``, those not updated as they were; None if none was."""
        if self._single:
            return self._single.aggregate_train(server_round, replies)
        rounds, turn = self._take(Kind.TRAIN, replies)
        before = sum(track.updates for track in rounds.tracks)
        for track in rounds.tracks:
            rounds.aggregate_train(track, server_round, turn)
        if sum(track.updates for track in rounds.tracks) == before:
            return None, None
        metrics = {
            track.name: track.result.train_metrics_clientapp.get(server_round) for track in rounds.tracks
        }
        return (
            codec.flatten({track.name: track.arrays for track in rounds.tracks}, ArrayRecord()),
            codec.flatten({task: found for task, found in metrics.items() if found}, MetricRecord()),
        )

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """All evaluations under keys ``task/metric``; None if there is none."""
        if self._single:
            return self._single.aggregate_evaluate(server_round, replies)
        rounds, turn = self._take(Kind.EVALUATE, replies)
        for track in rounds.tracks:
            rounds.aggregate_evaluate(track, server_round, [turn])
        found = {
            track.name: metrics
            for track in rounds.tracks
            if (metrics := track.result.evaluate_metrics_clientapp.get(server_round))
        }
        return codec.flatten(found, MetricRecord()) if found else None

    @property
    def _single(self) -> Strategy | None:
        """The strategy of a federation of one task, which needs nothing merged."""
        strategies = list(self._strategies.values())
        return strategies[0] if len(strategies) == 1 and not self._discover else None

    def _play(
        self,
        rounds: Rounds,
        num_rounds: int,
        evaluate: TaskEvaluateFn | None,
        on_round: Callable[[FederationRound], None] | None,
    ) -> None:
        """Play the rounds; from the last checkpoint on, and kept, where there is a folder for them."""
        if self._checkpoint is None:
            play(rounds, num_rounds, evaluate, on_round)
            return
        with Journal(self._checkpoint, rounds.tracks, self._made, self._seed) as journal:
            rounds.seed = journal.seed
            play(rounds, num_rounds, evaluate, on_round, journal)

    def _configure(
        self, kind: Kind, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if self._single:
            train = kind is Kind.TRAIN
            configure = self._single.configure_train if train else self._single.configure_evaluate
            return configure(server_round, arrays, config, grid)
        if self._merged is None or self._merged.grid is not grid:
            models = dict.fromkeys(self._strategies, ArrayRecord())
            tracks = make_tracks(self._strategies, models, rules=self._rules)
            self._merged = Rounds(
                grid,
                tracks,
                discover=True,
                timeout=3600,
                join_timeout=self._join_timeout,
                seed=self._seed,
                packs=False,  # whoever drives the rounds may look into the messages
                hashes=False,
            )
        rounds = self._merged
        given, settings = codec.split(arrays), codec.split(config)
        shared = {key: value for key, value in config.items() if "/" not in key}
        for track in rounds.tracks:
            if track.name not in given:
                raise ConfigError(f"arrays: none of task {track.name!r}; expected keys '{track.name}/name'")
            track.arrays = codec.fill(ArrayRecord(), given[track.name])
            own = ConfigRecord({**shared, **settings.get(track.name, {})})
            track.train_config, track.evaluate_config = own, ConfigRecord(dict(own))
        deadline = rounds.open()
        turn = self._turns[kind] = rounds.turn(server_round)
        for track in rounds.tracks:
            rounds.ask(track, kind, server_round, turn, deadline)
        return turn.messages()

    def _take(self, kind: Kind, replies: Iterable[Message]) -> tuple[Rounds, Turn]:
        if self._merged is None or kind not in self._turns:
            raise FederationError(f"aggregate_{kind}: nothing was configured; call configure_{kind} first")
        turn = self._turns.pop(kind)
        turn.take_all(replies)
        return self._merged, turn
