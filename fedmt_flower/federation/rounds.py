"""The rounds of a federation: each task's own strategy decides, the messages are shared."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid

from fedmt_flower.domain.history import FederationRound, TaskRound
from fedmt_flower.errors import FederationError, FedMTError, TaskError
from fedmt_flower.federation.arrays import settle
from fedmt_flower.federation.exchange import Post
from fedmt_flower.federation.resumption import drawing
from fedmt_flower.federation.roster import Roster
from fedmt_flower.federation.tracks import Track
from fedmt_flower.federation.turn import Kind, Turn
from fedmt_flower.federation.views import TaskGrid

_log = logging.getLogger("flwr.fedmt")

_LOOK_EVERY_S = 1.0
_TAKEN_AHEAD = 1
"""Replies that may wait to be taken in while more are fetched."""


@dataclass(slots=True)
class _Outcome:
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluate_metrics: Mapping[str, float] = field(default_factory=dict)
    sites: tuple[str, ...] = ()
    failures: list[str] = field(default_factory=list)


class Rounds:
    """Plays rounds with the nodes of a Grid.

    Parameters
    ----------
    grid
        The whole Grid.
    tracks
        The tasks. With a single one what goes wrong ends the run, as it would under Flower's own
        strategies; with several it costs that task its round.
    discover
        Whether to ask nodes for their tasks.
    timeout
        Seconds to wait for replies.
    join_timeout
        Seconds of a round that tasks may wait for more nodes to join.
    seed
        Seed of what strategies draw at random, or None.
    packs
        Whether arrays may be packed: False if somebody else handles the messages.
    hashes
        Whether the rounds tell the hash of each update, which takes a quarter of a server's time.
    """

    def __init__(
        self,
        grid: Grid,
        tracks: list[Track],
        *,
        discover: bool,
        timeout: float,
        join_timeout: float,
        seed: int | None = None,
        packs: bool = True,
        hashes: bool = True,
    ) -> None:
        self.tracks = tracks
        self.grid = grid
        self.seed = seed
        self._timeout = timeout
        self._join_timeout = join_timeout
        self._packs = packs
        self._hashes = hashes
        self._post = Post(grid)
        self._roster = Roster(tuple(track.name for track in tracks), discover=discover)
        self._alone = len(tracks) == 1
        self._short: dict[tuple[str, Kind], int] = {}
        self._outcomes: dict[str, _Outcome] = {}

    def play(self, number: int, *, final: bool = False) -> FederationRound:
        """Play round `number`; a `final` one only evaluates.

        Evaluation is of the models as the round found them and counts for the round before. Where a node
        understands packages it rides in the message that trains, else it is an exchange of its own.
        """
        deadline = self.open()
        started, begin = time.time(), time.monotonic()
        separate, together = self.turn(number), self.turn(number)
        for track in self.tracks:
            self._ask_evaluation(track, number, separate, None if final else together, deadline)
        self._exchange(separate)
        for track in self.tracks:
            if not together.asks(track.name, Kind.EVALUATE):
                self.aggregate_evaluate(track, number - 1, [separate])
        if not final:
            for track in self.tracks:
                self.ask(track, Kind.TRAIN, number, together, deadline)
            self._exchange(together)
            for track in self.tracks:
                if together.asks(track.name, Kind.EVALUATE):
                    self.aggregate_evaluate(track, number - 1, [separate, together])
                if together.asks(track.name, Kind.TRAIN):
                    self.aggregate_train(track, number, together)
        answers = {**separate.answers, **together.answers}
        return FederationRound(
            round=number,
            final=final,
            started=started,
            wall_s=time.monotonic() - begin,
            answers=tuple(sorted(answers.values(), key=lambda answer: (answer.site, answer.node))),
            tasks=self._close(),
        )

    # --- The parts of a round, which a Strategy's four methods are made of too

    def open(self) -> float:
        """Begin a round: look for nodes; the moment at which tasks stop waiting for more of them."""
        self._outcomes = {track.name: _Outcome() for track in self.tracks}
        begin = time.monotonic()
        self._roster.refresh(self.grid)
        while not self._roster.online:
            if time.monotonic() - begin > self._timeout:
                raise FederationError(
                    f"no node connected within {self._timeout:g} s: start the SuperNodes, or give more time"
                )
            _log.info("Waiting for a node to connect")
            time.sleep(_LOOK_EVERY_S)
            self._roster.refresh(self.grid)
        return time.monotonic() + self._join_timeout

    def turn(self, number: int) -> Turn:
        """A new exchange of round `number`."""
        return Turn(number, self._roster, self.tracks, packs=self._packs, hashes=self._hashes)

    def ask(self, track: Track, kind: Kind, number: int, turn: Turn, deadline: float) -> None:
        """Let the strategy of `track` say what it wants of which node; nothing below its quorum."""
        if kind is Kind.TRAIN and (hosts := self._gather(track, deadline)) < track.rules.quorum:
            self._outcomes[track.name].failures.append(_too_few(track, f"nodes that host it: {hosts}"))
            return
        messages = self._configure(track, kind, number, deadline)
        try:
            turn.ask(track.name, kind, messages)
        except FedMTError as error:
            self._fail(track, str(error), error)

    def aggregate_train(self, track: Track, number: int, turn: Turn) -> None:
        """Let the strategy of `track` make its next model out of the replies."""
        outcome = self._outcomes[track.name]
        outcome.failures += turn.failures(track.name)
        replies = self._in_order(turn.replies(track.name, Kind.TRAIN))
        turn.expect(replies)
        sites = turn.sites(track.name, Kind.TRAIN)
        turn.release(track.name, Kind.TRAIN)
        if len(sites) < track.rules.quorum:
            outcome.failures.append(_too_few(track, f"updates: {len(sites)}"))
            return
        try:
            _check_weights(track, replies)
            with drawing(self.seed, number, track.name, "aggregate_train"):
                arrays, metrics = track.strategy.aggregate_train(number, replies)
        except Exception as error:
            self._blame(track, "aggregate_train", error)
            return
        if arrays is None:
            _log.error("Round %d, task %r: no update could be used, it keeps its model", number, track.name)
            return
        settle(arrays)
        track.arrays = track.result.arrays = arrays
        track.updates += 1
        outcome.sites = sites
        if metrics is not None:
            track.result.train_metrics_clientapp[number] = metrics
            outcome.train_metrics = _floats(metrics)

    def aggregate_evaluate(self, track: Track, number: int, turns: list[Turn]) -> None:
        """Let the strategy of `track` make one evaluation out of those of the sites."""
        turns = [turn for turn in turns if turn.asks(track.name, Kind.EVALUATE)]
        outcome = self._outcomes[track.name]
        by_node: dict[int, Message] = {}
        for turn in turns:
            by_node.update(turn.replies(track.name, Kind.EVALUATE))
            if not turn.asks(track.name, Kind.TRAIN):
                outcome.failures += turn.failures(track.name)
        if not by_node:
            return
        replies = self._in_order(by_node)
        try:
            _check_weights(track, replies)
            with drawing(self.seed, number, track.name, "aggregate_evaluate"):
                metrics = track.strategy.aggregate_evaluate(number, replies)
        except Exception as error:
            self._blame(track, "aggregate_evaluate", error)
            return
        if metrics is not None:
            track.result.evaluate_metrics_clientapp[number] = metrics
            outcome.evaluate_metrics = _floats(metrics)

    # --- What they are made of

    def _in_order(self, replies: Mapping[int, Message]) -> list[Message]:
        return [replies[node] for node in sorted(replies, key=self._roster.rank)]

    def _ask_evaluation(
        self, track: Track, number: int, separate: Turn, together: Turn | None, deadline: float
    ) -> None:
        """Ask for the evaluation of the round before, of each node in the turn where it belongs."""
        hosts = self._roster.hosts(track.name)
        if number == 1 and not all(peer.packages for peer in hosts):
            # Flower's strategies evaluate no initial model, and here it would cost an exchange.
            return
        messages = self._configure(track, Kind.EVALUATE, number - 1, deadline)
        riding = [
            together is not None and self._roster.peer(message.metadata.dst_node_id).packages
            for message in messages
        ]
        try:
            for turn, rides in ((together, True), (separate, False)):
                if turn is not None:
                    own = [message for message, does in zip(messages, riding, strict=True) if does is rides]
                    turn.ask(track.name, Kind.EVALUATE, own)
        except FedMTError as error:
            self._fail(track, str(error), error)

    def _configure(self, track: Track, kind: Kind, number: int, deadline: float) -> list[Message]:
        """What the strategy of `track` sends in round `number`; nothing if it cannot say."""
        hosts = [peer.node for peer in self._roster.hosts(track.name)]
        if len(hosts) <= self._short.get((track.name, kind), -1):
            line = self._shortage(track, len(hosts))
            self._fail(track, line, TaskError(line))
            return []
        view = TaskGrid(
            self.grid,
            hosts,
            look=lambda: self._look_again(track.name),
            deadline=deadline,
            shortage=lambda found: self._shortage(track, found),
        )
        train = kind is Kind.TRAIN
        configure = track.strategy.configure_train if train else track.strategy.configure_evaluate
        config = track.train_config if train else track.evaluate_config
        try:
            with drawing(self.seed, number, track.name, configure.__name__):
                return list(configure(number, track.arrays, config, view))
        except TaskError as error:
            self._short[track.name, kind] = len(self._roster.hosts(track.name))
            self._fail(track, str(error), error)
        except Exception as error:
            self._blame(track, configure.__name__, error)
        return []

    def _gather(self, track: Track, deadline: float) -> int:
        """How many nodes host the task of `track`, once it has its quorum or was waited for."""
        key = track.name, Kind.TRAIN
        while (hosts := len(self._roster.hosts(track.name))) < track.rules.quorum:
            if hosts <= self._short.get(key, -1):
                break
            if time.monotonic() > deadline:
                self._short[key] = hosts
                break
            time.sleep(_LOOK_EVERY_S)
            self._roster.refresh(self.grid)
        return hosts

    def _look_again(self, task: str) -> list[int]:
        self._roster.refresh(self.grid)
        return [peer.node for peer in self._roster.hosts(task)]

    def _shortage(self, track: Track, found: int) -> str:
        wanted = getattr(track.strategy, "min_available_nodes", None)
        return (
            f"task {track.name!r}: hosted by {found} of {len(self._roster.online)} nodes, fewer than "
            f"{type(track.strategy).__name__} samples{f' (min_available_nodes={wanted})' if wanted else ''}; "
            "start more nodes with this task, or lower the strategy's minimum numbers of nodes"
        )

    def _exchange(self, turn: Turn) -> None:
        amiss = self._send(turn, turn.nodes())
        # On the wire that they turned out to speak: the round is not lost.
        again = self._roster.reconsider(self.grid, amiss)
        amiss = {node: reply for node, reply in amiss.items() if node not in again} | self._send(turn, again)
        for node, reply in amiss.items():
            turn.take(node, reply)

    def _send(self, turn: Turn, nodes: list[int]) -> dict[int, Message | None]:
        """Have `turn` take in each reply as it comes; the errors, and None for a node without any reply.

        To check a reply, to hash it and to put it away takes as long as to fetch it: a thread does it while
        the next is fetched.
        """
        messages = [turn.message(node) for node in nodes]
        patience = [min(turn.patience(node), self._timeout) for node in nodes]
        amiss: dict[int, Message | None] = {}
        taking: deque[Future[None]] = deque()
        with ThreadPoolExecutor(max_workers=1) as taker:
            for place, reply in self._post.exchange(messages, patience, [turn.name(node) for node in nodes]):
                if reply is None or reply.has_error():
                    amiss[nodes[place]] = reply
                    continue
                if len(taking) == _TAKEN_AHEAD:
                    taking.popleft().result()
                taking.append(taker.submit(turn.take, nodes[place], reply))
            for one in taking:
                one.result()
        return amiss

    def _blame(self, track: Track, method: str, error: Exception) -> None:
        text = " ".join(str(error).split())
        cause = f"{type(track.strategy).__name__}.{method} raised {type(error).__name__}: {text}"
        self._fail(track, f"task {track.name!r}: {cause}", error)

    def _fail(self, track: Track, line: str, error: Exception) -> None:
        """The task loses its round; a federation of that task alone ends."""
        if self._alone:
            # The class says how Flower exits, the text is all that it shows.
            error.args = (line,)
            raise error
        failures = self._outcomes[track.name].failures
        if line not in failures:
            failures.append(line)

    def _close(self) -> dict[str, TaskRound]:
        for outcome in self._outcomes.values():
            for line in outcome.failures:
                _log.warning("Left out: %s", line)
        return {
            task: TaskRound(
                train_metrics=outcome.train_metrics,
                evaluate_metrics=outcome.evaluate_metrics,
                sites=outcome.sites,
                failures=tuple(outcome.failures),
            )
            for task, outcome in self._outcomes.items()
        }


def _too_few(track: Track, what: str) -> str:
    return f"task {track.name!r}: {what}, fewer than its quorum of {track.rules.quorum}; it keeps its model"


def _check_weights(track: Track, replies: list[Message]) -> None:
    """Raise TaskError if a weighted mean over `replies` would divide by zero."""
    key = track.weighted_by
    records = [
        record
        for reply in replies
        if not reply.has_error()
        for record in reply.content.metric_records.values()
        if key in record
    ]
    if records and not any(record[key] for record in records):
        raise TaskError(f"every site gave {key} = 0, so that no mean can be weighted by it")


def _floats(metrics: MetricRecord) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if not isinstance(value, list)}
