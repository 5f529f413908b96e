"""Messages out, replies in.

`Grid.send_and_receive` looks for replies every 3 s: an exchange that a SuperNode serves in 4.1 s costs
6.2 s with it (measured, flwr 1.41). Here the pauses grow from 0.05 s to 0.5 s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

_log = logging.getLogger("flwr.fedmt")

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_AT_ONCE = 2
"""Replies fetched with one call, which has all of them in memory together."""


def push(grid: Grid, messages: Sequence[Message]) -> list[str]:
    """Send `messages`; their ids in order, empty for one that the SuperLink did not take."""
    if not messages:
        return []
    ids = list(grid.push_messages(messages))
    if len(ids) == len(messages):
        return [str(one or "") for one in ids]
    # A grid may leave out what it refused; every grid writes the id into the message that it takes.
    taken = set(ids)
    own = [message.metadata.message_id for message in messages]
    return [one if one in taken else "" for one in own]


def replies(grid: Grid, pending: set[str], needed: Mapping[str, float]) -> Iterator[Message]:
    """Yield replies as they come, until none is wanted or the wait for them is over.

    Parameters
    ----------
    pending
        Ids of the messages to look for; an id is taken out when its reply is in. They are looked for a few
        at a time: a caller that puts each reply away holds only those.
    needed
        Those of them to wait for, with the seconds to wait for each.
    """
    begin = time.monotonic()
    pause = _FIRST_PAUSE_S
    while pending:
        look = time.monotonic()
        came = False
        for ids in _batched(pending):
            for reply in grid.pull_messages(ids):
                # Not by sender: Flower itself answers for a node that is gone, as node 1.
                if reply.metadata.reply_to_message_id in pending:
                    pending.remove(reply.metadata.reply_to_message_id)
                    came = True
                    yield reply
        now = time.monotonic()
        left = begin - now + max((needed[one] for one in pending & needed.keys()), default=0)
        if left <= 0:
            return
        # A look at a thousand messages takes seconds of the SuperLink: it has as many to itself.
        time.sleep(min(max(pause, 0 if came else now - look), left))
        pause = min(1.5 * pause, _LONGEST_PAUSE_S)


def _batched(ids: Iterable[str]) -> list[set[str]]:
    """`ids`, a few at a time."""
    all_ids = list(ids)
    return [set(all_ids[start : start + _AT_ONCE]) for start in range(0, len(all_ids), _AT_ONCE)]


class Post:
    """Exchanges messages with the nodes of a grid, and drops what comes too late."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._overdue: dict[str, str] = {}

    def exchange(
        self, messages: Sequence[Message], patience: Sequence[float], names: Sequence[str]
    ) -> Iterator[tuple[int, Message | None]]:
        """Send `messages` and wait `patience` seconds for each; yield replies as they come.

        Each comes with the place of its message; at last come the places of those without a reply.

        Parameters
        ----------
        names
            What a reply to each message is, for the log if it comes too late.
        """
        ids = push(self._grid, messages)
        needed = {one: seconds for one, seconds in zip(ids, patience, strict=True) if one}
        places = {one: place for place, one in enumerate(ids) if one}
        # A late reply that nobody fetches stays in the SuperLink's memory for as long as the run.
        for reply in replies(self._grid, {*needed, *self._overdue}, needed):
            answered = reply.metadata.reply_to_message_id
            if answered in self._overdue:
                _log.warning("Late and dropped: %s", self._overdue.pop(answered))
            else:
                yield places.pop(answered), reply
        self._overdue |= {one: names[place] for one, place in places.items()}
        refused = [place for place, one in enumerate(ids) if not one]
        yield from ((place, None) for place in sorted([*places.values(), *refused]))
