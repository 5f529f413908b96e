"""One exchange: what each task's strategy asks of each node, a message per node, the replies by task."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum

from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedmt_flower.domain.history import SiteAnswer
from fedmt_flower.domain.round import Mode, RoundReport, Status, TaskRules
from fedmt_flower.errors import ConfigError, FederationError, TaskError
from fedmt_flower.federation import codec, packing
from fedmt_flower.federation.arrays import ArraySpec, digest, find_fault, to_weights
from fedmt_flower.federation.lanes import join
from fedmt_flower.federation.package import Answer, Part
from fedmt_flower.federation.roster import Peer, Roster
from fedmt_flower.federation.spool import Spool
from fedmt_flower.federation.tracks import Track

_REFUSED = 2
"""Flower's error code of an app that raised: what a strategy sees of an update that is left out."""

_RAISED = re.compile(r"<class '(?:[\w.]*\.)?(?P<name>\w+)'>:<'(?P<text>.*)'>", re.DOTALL)

_SIMULATED = "ClientAppException occurred. Message: "
"""What a simulation puts before the text of an exception, behind Ray's account of where it was raised."""

_SELF_EXPLAINING = {"ConfigError", "EngineError", "FederationError", "ProtocolError", "TaskError"}
"""The package's own errors, whose text needs no class name beside it."""


class Kind(StrEnum):
    """What a strategy asks of a node."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class Turn:
    """One exchange with the nodes, in the making and then in the reading.

    Parameters
    ----------
    round_number
        The round that packages carry.
    roster
        The nodes.
    tracks
        The tasks.
    packs
        Whether arrays are packed for the nodes that can unpack them: only if nobody but this turn and the
        clients handles the messages.
    hashes
        Whether answers tell the hash of each update.
    """

    def __init__(
        self, round_number: int, roster: Roster, tracks: Iterable[Track], *, packs: bool, hashes: bool
    ) -> None:
        self._round = round_number
        self._roster = roster
        self._packs = packs
        self._hashes = hashes
        self._packed: dict[str, tuple[ArrayRecord, ArrayRecord | Array | None]] = {}
        self._spool = Spool()
        self._specs: dict[str, Mapping[str, ArraySpec]] = {}
        self._weighted_by: dict[str, str] = {}
        self._rules: dict[str, TaskRules] = {}
        for track in tracks:
            self._specs[track.name] = track.spec()
            self._weighted_by[track.name] = track.weighted_by
            self._rules[track.name] = track.rules
        self._sent: dict[int, Message] = {}
        self._asked: dict[int, dict[str, dict[Kind, Message]]] = {}
        self._replies: dict[tuple[str, Kind], dict[int, Message]] = {}
        self._updates: dict[int, dict[str, str]] = defaultdict(dict)
        self._notes: dict[str, dict[int, list[str]]] = {task: defaultdict(list) for task in self._specs}
        self._answers: dict[int, SiteAnswer] = {}

    # --- In the making

    def ask(self, task: str, kind: Kind, messages: Iterable[Message]) -> None:
        """Take in what the strategy of `task` wants sent.

        Raises
        ------
        TaskError
            If the messages cannot be merged with those of other tasks; nothing of them is then sent.
        """
        asked: dict[int, Message] = {}
        for message in messages:
            node = message.metadata.dst_node_id
            if node in asked:
                raise TaskError(f"task {task!r}: its strategy sends node {node} two messages at once")
            if self._roster.peer(node).packages:
                earlier = self._asked.get(node, {}).get(task, {})
                _merge(task, {**earlier, kind: message})
            asked[node] = message
        for node, message in asked.items():
            self._asked.setdefault(node, {}).setdefault(task, {})[kind] = message

    def asks(self, task: str, kind: Kind) -> bool:
        """Whether any node is asked this of `task`."""
        return any(kind in tasks.get(task, {}) for tasks in self._asked.values())

    def nodes(self) -> list[int]:
        """The nodes that are asked for anything, by site name."""
        return sorted(self._asked, key=self._roster.rank)

    def patience(self, node: int) -> float:
        """Seconds to wait for the answer of `node`: for the slowest of its tasks."""
        return max(self._rules[task].patience_s for task in self._asked[node])

    def name(self, node: int) -> str:
        """What the answer of `node` is, for the log."""
        return f"site {self._roster.peer(node).site!r}, round {self._round}: {', '.join(self._asked[node])}"

    def messages(self) -> list[Message]:
        """A message for each of `nodes`."""
        self._sent = {node: self.message(node) for node in self.nodes()}
        return list(self._sent.values())

    def message(self, node: int) -> Message:
        """All that is asked of `node`, on the wire that it speaks."""
        peer, asked = self._roster.peer(node), self._asked[node]
        if peer.packages:
            # A task that the node turned out not to host is left to `take`.
            own = {task: self._part(task, asked[task], peer) for task in asked if task in peer.tasks}
            parts = own | self._parts_beside(node)
            # In one order for all nodes of a site.
            content = codec.encode_package(
                self._round, {task: parts[task] for task in self._specs if task in parts}
            )
            trains = any(part.mode.trains for part in own.values())
            kind = str(Kind.TRAIN if trains else Kind.EVALUATE)
        else:
            message = self._plain(node)
            if not peer.legacy:
                return message
            content, kind = message.content, message.metadata.message_type.partition(".")[0]
        if peer.legacy:
            content = codec.to_legacy(content, kind)
        return Message(content=content, message_type=kind, dst_node_id=node)

    def _parts_beside(self, node: int) -> dict[str, Part]:
        """What the other nodes of the site of `node` are asked: its engine plans the round as one."""
        return {
            task: replace(_merge(task, asked), deadline_s=self._rules[task].deadline_s, arrays=None)
            for other in self._roster.beside(node)
            for task, asked in self._asked.get(other.node, {}).items()
            if task in other.tasks
        }

    def _part(self, task: str, asked: Mapping[Kind, Message], peer: Peer) -> Part:
        part = replace(_merge(task, asked), deadline_s=self._rules[task].deadline_s)
        return replace(part, arrays=self._pack(task, part.arrays)) if self._packs and peer.unpacks else part

    def _pack(self, task: str, arrays: ArrayRecord | Array | None) -> ArrayRecord | Array | None:
        """`arrays` packed, once for all nodes; as they are if they cannot be."""
        before, packed = self._packed.get(task, (None, arrays))
        if before is not arrays and isinstance(arrays, ArrayRecord):
            try:
                weights = to_weights(arrays)
                packed = packing.pack(weights) if packing.can_pack(weights) else arrays
            except ValueError:  # in another form than NumPy's, which is the client's to read
                packed = arrays
            self._packed[task] = arrays, packed
        return packed

    def _plain(self, node: int) -> Message:
        """The one message of a strategy to a node that knows nothing of packages."""
        (kinds,) = self._asked[node].values()
        (message,) = kinds.values()
        return message

    # --- In the reading

    def take(self, node: int, reply: Message | None) -> None:
        """Take in the reply of `node`, or that there was none in time."""
        peer = self._roster.peer(node)
        report: RoundReport | None = None
        error = ""
        if reply is None:
            error = "no answer in time"
            for task in self._asked[node]:
                self._note(peer, task, error)
        elif reply.has_error():
            error = _cause(reply.error)
            self._refuse_all(peer, error, reply.error.code)
        else:
            try:
                report = self._read(peer, reply)
            except FederationError as problem:
                error = str(problem)
                self._refuse_all(peer, error)
        if report is not None and not peer.packages:
            self._roster.name(node, report.site)
        site = self._roster.peer(node).site
        updates = self._updates.pop(node, {})
        self._answers[node] = SiteAnswer(site=site, node=node, report=report, error=error, updates=updates)

    @property
    def answers(self) -> dict[int, SiteAnswer]:
        """What each site answered, by its node; by the first of them where it has several."""
        sites: dict[tuple[int, ...], dict[int, SiteAnswer]] = {}
        for node, answer in self._answers.items():
            nodes = tuple(sorted([node, *(other.node for other in self._roster.beside(node))]))
            sites.setdefault(nodes, {})[node] = answer
        return {
            min(lanes): join((lanes[node], tuple(self._asked[node])) for node in sorted(lanes))
            for lanes in sites.values()
        }

    def take_all(self, replies: Iterable[Message]) -> None:
        """Take in the replies to `messages`, which somebody else has sent."""
        # Not by sender: Flower itself answers for a node that is gone, as node 1.
        nodes = {message.metadata.message_id: node for node, message in self._sent.items()}
        received: dict[int, Message] = {}
        for reply in replies:
            node = nodes.get(reply.metadata.reply_to_message_id, reply.metadata.src_node_id)
            received[node] = reply
        for node in self._sent:
            self.take(node, received.get(node))

    def replies(self, task: str, kind: Kind) -> Mapping[int, Message]:
        """By node, what the strategy of `task` is to aggregate; error replies included."""
        return self._replies.get((task, kind), {})

    def expect(self, replies: Iterable[Message]) -> None:
        """Say that the updates in `replies` will be read in this order."""
        good = (reply.content for reply in replies if not reply.has_error())
        self._spool.expect(record for content in good for record in content.array_records.values())

    def release(self, task: str, kind: Kind) -> None:
        """Let go of `replies`, and of the room that they take."""
        self._replies.pop((task, kind), None)

    def failures(self, task: str) -> list[str]:
        """What went wrong with `task`, a line each, by site name."""
        notes = self._notes[task]
        lines = (line for node in sorted(notes, key=self._roster.rank) for line in notes[node])
        return list(dict.fromkeys(lines))

    def sites(self, task: str, kind: Kind) -> tuple[str, ...]:
        """Names of the sites whose reply is no error, in the order of `replies`."""
        found = self._replies.get((task, kind), {})
        good = [node for node in sorted(found, key=self._roster.rank) if not found[node].has_error()]
        return tuple(self._roster.peer(node).site for node in good)

    def _read(self, peer: Peer, reply: Message) -> RoundReport | None:
        content = reply.content
        if peer.packages:
            if peer.legacy:
                content = codec.from_legacy(content, reply.metadata.message_type, [])
            answer = codec.decode_answer(content)
            if answer.report.round != self._round:
                raise FederationError(f"the reply is of round {answer.report.round}, not of {self._round}")
            for task, kinds in self._asked[peer.node].items():
                self._read_task(peer, task, kinds, answer)
            return answer.report
        ((task, kinds),) = self._asked[peer.node].items()
        ((kind, message),) = kinds.items()
        if peer.legacy:
            names = list(self._specs[task])
            content = codec.from_legacy(content, message.metadata.message_type, names)
            reply = Message(content=content, reply_to=message)
        records = list(content.array_records.values())
        metrics = next(iter(content.metric_records.values()), MetricRecord())
        # Any other number of records is the strategy's to refuse, in Flower's own words.
        fault = find_fault(records[0], self._specs[task]) if kind is Kind.TRAIN and len(records) == 1 else ""
        self._settle(peer, task, kind, reply, fault or self._weight_fault(task, metrics))
        return codec.decode_report(content)

    def _read_task(self, peer: Peer, task: str, kinds: Mapping[Kind, Message], answer: Answer) -> None:
        try:
            report = answer.report.task(task)
        except KeyError:
            self._refuse(peer, task, "the reply has no report of it")
            return
        failed = report.error or "failed without a cause" if report.status is Status.FAILED else ""
        if Kind.EVALUATE in kinds:
            record = codec.evaluation_record(answer.report, task)
            content = RecordDict({codec.METRICS: record})
            fault = self._weight_fault(task, record)
            if record or failed:
                reply = Message(content=content, reply_to=kinds[Kind.EVALUATE])
                self._settle(peer, task, Kind.EVALUATE, reply, fault if record else failed)
        if Kind.TRAIN in kinds:
            arrays = answer.arrays.get(task, ArrayRecord())
            metrics = answer.metrics.get(task, MetricRecord())
            fault = failed or find_fault(arrays, self._specs[task]) or self._weight_fault(task, metrics)
            key = next(iter(kinds[Kind.TRAIN].content.array_records))
            content = RecordDict({key: arrays, codec.METRICS: metrics})
            reply = Message(content=content, reply_to=kinds[Kind.TRAIN])
            self._settle(peer, task, Kind.TRAIN, reply, fault)

    def _weight_fault(self, task: str, metrics: Mapping[str, object]) -> str:
        key = self._weighted_by[task]
        weight = metrics.get(key, 0)
        if isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0:
            return ""
        return f"metric {key!r}: expected a finite number of at least 0, got {weight}"

    # --- What is left out

    def _settle(self, peer: Peer, task: str, kind: Kind, reply: Message, fault: str) -> None:
        if fault:
            self._refuse(peer, task, fault, kinds=(kind,))
            return
        records = reply.content.array_records
        if kind is Kind.TRAIN and len(records) == 1:
            (update,) = records.values()
            if self._hashes:
                self._updates[peer.node][task] = digest(update)
            self._spool.put(update)
        self._replies.setdefault((task, kind), {})[peer.node] = reply

    def _refuse_all(self, peer: Peer, cause: str, code: int = _REFUSED) -> None:
        for task in self._asked[peer.node]:
            self._refuse(peer, task, cause, code=code)

    def _refuse(
        self,
        peer: Peer,
        task: str,
        cause: str,
        *,
        kinds: tuple[Kind, ...] = tuple(Kind),
        code: int = _REFUSED,
    ) -> None:
        """Leave `task` out for this node: its strategy sees an error reply, as if its app had raised."""
        line = self._note(peer, task, cause)
        for kind, message in self._asked[peer.node][task].items():
            if kind in kinds:
                refusal = Message(Error(code=code, reason=line), reply_to=message)
                self._replies.setdefault((task, kind), {})[peer.node] = refusal

    def _note(self, peer: Peer, task: str, cause: str) -> str:
        named = repr(task) in cause and repr(peer.site) in cause
        line = cause if named else f"site {peer.site!r}, task {task!r}: {cause}"
        if line not in self._notes[task][peer.node]:
            self._notes[task][peer.node].append(line)
        return line


def _merge(task: str, kinds: Mapping[Kind, Message]) -> Part:
    """One part of a package out of what a strategy asks of a node.

    Its evaluation rides in the message that trains, which has room for one configuration.
    """
    records = {kind: _records(task, message) for kind, message in kinds.items()}
    arrays, config = records.get(Kind.TRAIN) or records[Kind.EVALUATE]
    if len(records) == 1:
        return Part(mode=Mode.TRAIN if Kind.TRAIN in records else Mode.EVALUATE, arrays=arrays, config=config)
    others, settings = records[Kind.EVALUATE]
    if others is not arrays and dict(others) != dict(arrays):
        raise TaskError(f"task {task!r}: its strategy evaluates other arrays than those that it trains")
    merged = ConfigRecord({**settings, **config})
    for key in settings:
        if merged[key] != settings[key] and key != codec.SERVER_ROUND:
            raise ConfigError(
                f"task {task!r}: {key!r} is {config[key]!r} in train_config and {settings[key]!r} in "
                "evaluate_config, but both ride in one message; give them one value or two names"
            )
    return Part(mode=Mode.TRAIN_AND_EVALUATE, arrays=arrays, config=merged)


def _records(task: str, message: Message) -> tuple[ArrayRecord, ConfigRecord]:
    arrays = list(message.content.array_records.values())
    configs = list(message.content.config_records.values())
    if len(arrays) != 1 or len(configs) > 1 or len(message.content) != len(arrays) + len(configs):
        raise TaskError(
            f"task {task!r}: its strategy sends the records {list(message.content)}; a federation of several "
            "tasks carries one ArrayRecord and one ConfigRecord of each"
        )
    return arrays[0], configs[0] if configs else ConfigRecord()


def _cause(error: Error) -> str:
    """The text of an error reply in one line, without the wrapping that Flower gives an exception."""
    text = error.reason or f"error code {error.code} without a reason"
    raised = _RAISED.fullmatch(text)
    if _SIMULATED in text:
        text = text.rpartition(_SIMULATED)[2].removesuffix("'>")
    elif raised:
        known = raised["name"] in _SELF_EXPLAINING
        text = raised["text"] if known else f"{raised['name']}: {raised['text']}"
    return " ".join(text.split())
