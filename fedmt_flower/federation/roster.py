"""Which nodes there are, what each hosts and which wire it speaks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from fedmt_flower.errors import ConfigError, FederationError
from fedmt_flower.federation import codec
from fedmt_flower.federation.exchange import push, replies
from fedmt_flower.federation.package import UNNAMED_TASK, Hello

_log = logging.getLogger("flwr.fedmt")

_GET_PROPERTIES = "get_properties"
_NO_LEGACY_KEY = ("'fitins.parameters'", "'evaluateins.parameters'")
_LEGACY_QUERIED = "Invalid message type: query"
_NO_QUERY = "No query function registered"
_ANSWER_S = 120.0
"""How long an answer to a query may take; a node that is busy for longer answers before a later round."""
_APP_RAISED = 2
"""Flower's error code of an app that raised: the node is well and will answer so again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """What is known of a node.

    Parameters
    ----------
    node, site
        Flower's id of the node and its site's name, ``node-<id>`` until it gave one.
    tasks
        Those of the federation's tasks that it hosts.
    packages
        Whether it understands packages, else it is given plain messages of its one task.
    unpacks
        Whether it takes a task's arrays packed into one.
    legacy
        Whether it runs a `client_fn`.
    """

    node: int
    site: str
    tasks: tuple[str, ...]
    packages: bool = False
    unpacks: bool = False
    legacy: bool = False


class Roster:
    """The nodes of a federation.

    Parameters
    ----------
    tasks
        The federation's tasks.
    discover
        Whether to ask new nodes for their tasks; if not, each is taken to host the one task of the
        federation until its replies tell otherwise.
    """

    def __init__(self, tasks: tuple[str, ...], *, discover: bool) -> None:
        self._tasks = tasks
        self._discover = discover
        self._peers: dict[int, Peer] = {}
        self._asked: dict[str, int] = {}
        self._online: tuple[int, ...] = ()

    @property
    def online(self) -> tuple[int, ...]:
        """The nodes that were connected at the last look."""
        return self._online

    def hosts(self, task: str) -> list[Peer]:
        """The connected nodes that host `task`, by site name."""
        peers = [self._peers[node] for node in self._online if node in self._peers]
        return sorted((peer for peer in peers if task in peer.tasks), key=lambda peer: self.rank(peer.node))

    def rank(self, node: int) -> tuple[str, int]:
        """What nodes are ordered by: the name of the site, then the node."""
        return self._peers[node].site, node

    def peer(self, node: int) -> Peer:
        """What is known of `node`."""
        return self._peers[node]

    def beside(self, node: int) -> list[Peer]:
        """The other nodes of the site of `node`: they give its name, and host other tasks."""
        peer = self._peers[node]
        if not peer.packages:
            return []
        return [other for other in self._of_site(peer) if not {*other.tasks} & {*peer.tasks}]

    def name(self, node: int, site: str) -> None:
        """Learn the site's name of `node` from one of its replies."""
        if self._peers[node].site != site:
            self._peers[node] = replace(self._peers[node], site=site)

    def refresh(self, grid: Grid) -> None:
        """Look which nodes are connected, and ask those that are new."""
        self._online = tuple(grid.get_node_ids())
        new = [node for node in self._online if node not in self._peers and node not in self._asked.values()]
        if self._discover:
            self._query(grid, [(node, MessageType.QUERY) for node in new])
        else:
            self._peers |= {node: self._stranger(node) for node in new}

    def reconsider(self, grid: Grid, received: Mapping[int, Message | None]) -> list[int]:
        """Learn from error replies that mean that a node speaks another wire; those nodes, in order."""
        questions = []
        for node, reply in received.items():
            if reply is None or not reply.has_error() or self._peers[node].packages:
                continue
            cause = reply.error.reason or ""
            if any(key in cause for key in _NO_LEGACY_KEY) and not self._peers[node].legacy:
                self._peers[node] = replace(self._peers[node], legacy=True)
                questions.append((node, _GET_PROPERTIES))
            elif UNNAMED_TASK in cause:
                questions.append((node, MessageType.QUERY))
        if questions:
            self._query(grid, questions)
        return [node for node, _ in questions]

    def _stranger(self, node: int, *, legacy: bool = False) -> Peer:
        tasks = () if self._discover else self._tasks
        return Peer(node=node, site=f"node-{node}", tasks=tasks, legacy=legacy)

    def _query(self, grid: Grid, questions: list[tuple[int, str]]) -> None:
        """Put `questions` (node, message type), and take in every answer that is there.

        Only these are waited for: a node that is silent may answer before a later round.
        """
        while True:
            messages = [self._question(node, kind) for node, kind in questions]
            new = {one: node for one, (node, _) in zip(push(grid, messages), questions, strict=True) if one}
            self._asked |= new
            questions = []
            for reply in replies(grid, set(self._asked), dict.fromkeys(new, _ANSWER_S)):
                node = self._asked.pop(reply.metadata.reply_to_message_id)
                if self._learn(node, reply):
                    questions.append((node, _GET_PROPERTIES))
            if not questions:
                return

    def _question(self, node: int, kind: str) -> Message:
        content = codec.legacy_query() if kind == _GET_PROPERTIES else codec.query()
        return Message(content=content, message_type=kind, dst_node_id=node)

    def _learn(self, node: int, reply: Message) -> bool:
        """Take in the answer to a query; whether the node is to be asked again in the legacy way."""
        if reply.has_error():
            cause = reply.error.reason or ""
            if _LEGACY_QUERIED in cause:
                self._peers[node] = self._stranger(node, legacy=True)
                return True
            if reply.error.code == _APP_RAISED:
                why = "its app answers no query" if _NO_QUERY in cause else cause
                self._leave_out(node, why)
            return False
        legacy = reply.metadata.message_type == _GET_PROPERTIES
        try:
            hello = codec.decode_hello(reply.content)
        except (FederationError, ConfigError) as error:
            self._leave_out(node, str(error))
            return False
        if hello is not None:
            self._peers[node] = self._known(node, hello, legacy=legacy)
        elif self._discover:
            self._leave_out(node, "it names no task")
        return False

    def _known(self, node: int, hello: Hello, *, legacy: bool) -> Peer:
        tasks = tuple(task for task in self._tasks if task in hello.tasks)
        others = [task for task in hello.tasks if task not in self._tasks]
        if others:
            _log.warning("site %r: tasks %s are none of the server's", hello.site, ", ".join(others))
        unpacks = hello.unpacks and not legacy
        peer = Peer(node=node, site=hello.site, tasks=tasks, packages=True, unpacks=unpacks, legacy=legacy)
        if twice := {task for other in self._of_site(peer) for task in other.tasks} & {*tasks}:
            _log.warning(
                "site %r: two nodes give this name and host %s; give each a name, or tasks, of its own",
                hello.site,
                ", ".join(task for task in tasks if task in twice),
            )
        return peer

    def _of_site(self, peer: Peer) -> list[Peer]:
        """The other connected nodes that give the name of the site of `peer`."""
        others = (self._peers[node] for node in self._online if node in self._peers and node != peer.node)
        return [other for other in others if other.packages and other.site == peer.site]

    def _leave_out(self, node: int, why: str) -> None:
        _log.warning(
            "node %d is left out: %s; a node of a federation of several tasks runs "
            "fedmt_flower.client_app or a MultiTaskClient",
            node,
            " ".join(why.split()),
        )
        self._peers[node] = replace(self._stranger(node), tasks=())
