"""Grids that show less than the whole, or something else: above all the nodes that host one task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedmt_flower.errors import TaskError

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

_LOOKS_WITHOUT_WAITING = 2
"""Flower's strategies look once to count the nodes and once to sample them; a third look means waiting."""


class GridView(Grid):
    """A Grid that hands everything on to another; what differs is a subclass's to say."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return self._grid.get_node_ids()

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See `Grid`."""
        return self._grid.get_nodes()

    def set_run(self, run: Run) -> None:
        """See `Grid`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See `Grid`."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See `Grid`."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        return self._grid.pull_messages(message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`."""
        return self._grid.send_and_receive(messages, timeout=timeout)


class TaskGrid(GridView):
    """A Grid whose nodes are the hosts of one task.

    `sample_nodes`, which all of Flower's strategies use, waits for ever where there are too few nodes:
    this view ends that wait.

    Parameters
    ----------
    grid
        The whole Grid, to which everything else is handed on.
    hosts
        The ids of the hosts, known beforehand.
    look
        Looks for nodes anew and returns the ids of the hosts.
    deadline
        When to give up waiting for more hosts, in seconds of the monotonic clock.
    shortage
        What to say then; it is given the number of hosts.
    """

    def __init__(
        self,
        grid: Grid,
        hosts: Sequence[int],
        *,
        look: Callable[[], Sequence[int]],
        deadline: float,
        shortage: Callable[[int], str],
    ) -> None:
        super().__init__(grid)
        self._hosts = hosts
        self._look = look
        self._deadline = deadline
        self._shortage = shortage
        self._looks = 0

    def get_node_ids(self) -> Iterable[int]:
        """Ids of the nodes that host the task, by site name.

        Raises
        ------
        TaskError
            If the strategy keeps waiting for more nodes past the deadline.
        """
        self._looks += 1
        if self._looks > _LOOKS_WITHOUT_WAITING:
            self._hosts = self._look()
            if time.monotonic() > self._deadline:
                raise TaskError(self._shortage(len(self._hosts)))
        return list(self._hosts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """What Flower knows of the nodes that host the task."""
        hosts = set(self.get_node_ids())
        return [node for node in self._grid.get_nodes() if node.node_id in hosts]
