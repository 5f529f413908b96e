"""Messages out, replies in: order, patience and pace."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from fedmt_flower.federation.exchange import Post, push, replies


def message(name: str) -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(message_id=name))


class Grid:
    """Replies to each message some seconds after it was pushed; refuses those named so."""

    def __init__(self, delay: float = 0.0, *, leaves_out: bool = False) -> None:
        self.delay, self.leaves_out = delay, leaves_out
        self.due: dict[str, float] = {}
        self.pulls = 0

    def push_messages(self, messages: Iterable[Any]) -> list[str | None]:
        ids: list[str | None] = []
        for one in messages:
            name = one.metadata.message_id
            if name.startswith("refused"):
                if not self.leaves_out:
                    ids.append(None)
                continue
            ids.append(name)
            if not name.startswith("lost"):
                self.due[name] = time.monotonic() + self.delay
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
        self.pulls += 1
        ready = [name for name in message_ids if self.due.get(name, float("inf")) <= time.monotonic()]
        return [
            SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=name, message_id=f"re-{name}"))
            for name in sorted(ready, reverse=True)
        ]


def exchange(grid: Any, messages: list[Any], timeout: float) -> list[Any]:
    names = [one.metadata.message_id for one in messages]
    return in_order(Post(grid).exchange(messages, [timeout] * len(messages), names))


def in_order(received: Iterable[tuple[int, Any]]) -> list[Any]:
    by_place = dict(received)
    return [by_place[place] for place in range(len(by_place))]


def answered(received: list[Any]) -> list[str | None]:
    return [one and one.metadata.message_id for one in received]


def test_replies_come_in_the_order_of_the_messages() -> None:
    grid: Any = Grid(delay=0.1)
    sent = [message(name) for name in ("a", "refused", "b", "lost")]
    assert answered(exchange(grid, sent, timeout=0.3)) == ["re-a", None, "re-b", None]


def test_a_grid_may_leave_out_what_it_refuses() -> None:
    grid: Any = Grid(leaves_out=True)
    assert push(grid, [message(name) for name in ("a", "refused", "b")]) == ["a", "", "b"]


def test_nothing_to_send_asks_for_nothing() -> None:
    grid: Any = Grid()
    assert exchange(grid, [], timeout=5) == []
    assert grid.pulls == 0


def test_the_last_reply_ends_the_wait() -> None:
    grid: Any = Grid(delay=0.6)
    begin = time.monotonic()
    exchange(grid, [message("a")], timeout=30)
    # The pause is never above 0.5 s, and is long enough for a handful of looks.
    assert time.monotonic() - begin < 1.3
    assert grid.pulls < 12


def test_only_what_is_needed_is_waited_for() -> None:
    grid: Any = Grid()
    push(grid, [message("a")])
    pending = {"a", "lost"}
    begin = time.monotonic()
    assert [one.metadata.message_id for one in replies(grid, pending, {"a": 30})] == ["re-a"]
    assert time.monotonic() - begin < 1
    assert pending == {"lost"}


def test_a_reply_to_something_else_is_dropped() -> None:
    class Confused(Grid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Any]:
            return super().pull_messages(self.due)

    grid: Any = Confused()
    push(grid, [message("late")])
    assert answered(exchange(grid, [message("a")], timeout=5)) == ["re-a"]


def test_each_message_has_a_patience_of_its_own() -> None:
    grid: Any = Grid()
    post = Post(grid)
    begin = time.monotonic()
    sent = [message("lost-1"), message("a")]
    assert answered(in_order(post.exchange(sent, [0.2, 30], ["lost-1", "a"]))) == [None, "re-a"]
    assert time.monotonic() - begin < 1


def test_what_comes_too_late_is_fetched_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    grid: Any = Grid(delay=0.3)
    post = Post(grid)
    assert answered(in_order(post.exchange([message("slow")], [0.1], ["site 'a', round 3: seg"]))) == [None]
    grid.delay = 0.6
    assert answered(in_order(post.exchange([message("b")], [5], ["b"]))) == ["re-b"]
    assert "Late and dropped: site 'a', round 3: seg" in caplog.text
    assert list(post.exchange([], [], [])) == []
