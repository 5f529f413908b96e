"""Which workers rest for others, and which start side by side."""

from __future__ import annotations

import asyncio

import pytest

from fedmt_flower.device.profile.room import Admission, to_rest


@pytest.mark.parametrize(
    ("wanted", "needed", "resting"),
    [
        ({"d"}, 10, ()),
        ({"d"}, 50, ("a",)),
        ({"d"}, 65, ("a", "b")),
        ({"a"}, 50, ("b", "c")),
        ({"a", "b", "c"}, 90, ()),
    ],
)
def test_the_longest_unused_workers_give_their_memory_back(
    wanted: set[str], needed: int, resting: tuple[str, ...]
) -> None:
    assert to_rest({"a": 30, "b": 10, "c": 10}, wanted, needed, usable=80) == resting


async def together(needs: list[int], room: int, processors: int, kept: int = 0) -> tuple[int, int, list[int]]:
    """The most workers and the most bytes that were at it at once, and the order in which they began."""
    admission, began = Admission(room, processors, kept), list[int]()
    now: list[int] = []
    most = bytes_ = 0

    async def start(number: int, need: int) -> None:
        nonlocal most, bytes_
        async with admission.turn(lambda: need):
            began.append(number)
            now.append(need)
            most, bytes_ = max(most, len(now)), max(bytes_, sum(now))
            await asyncio.sleep(0)
            now.remove(need)

    await asyncio.gather(*(start(number, need) for number, need in enumerate(needs)))
    return most, bytes_, began


@pytest.mark.parametrize(
    ("needs", "room", "processors", "most"),
    [
        ([5] * 8, 100, 16, 8),
        ([5] * 8, 100, 3, 3),
        ([5] * 8, 17, 16, 3),
        ([20, 20], 10, 16, 1),
        ([0] * 4, -5, 2, 2),
    ],
)
def test_workers_start_side_by_side_as_far_as_there_is_room(
    needs: list[int], room: int, processors: int, most: int
) -> None:
    at_once, held, began = asyncio.run(together(needs, room, processors))
    assert at_once == most
    assert held <= max(room, *needs)
    assert sorted(began) == list(range(len(needs)))


def test_a_turn_is_given_back_by_a_worker_that_fails() -> None:
    async def fails_first() -> bool:
        admission = Admission(10, 1)
        with pytest.raises(ValueError, match="broken"):
            async with admission.turn(lambda: 10):
                raise ValueError("broken")
        async with asyncio.timeout(1), admission.turn(lambda: 10):
            return True

    assert asyncio.run(fails_first())


def test_others_of_a_task_start_side_by_side_once_one_has_told_its_need() -> None:
    async def starts() -> list[int]:
        admission, expected, now, most = Admission(10, 16), 10, 0, list[int]()

        async def start() -> None:
            nonlocal expected, now
            async with admission.turn(lambda: expected):
                now += 1
                most.append(now)
                await asyncio.sleep(0)
                expected, now = 3, now - 1

        await asyncio.gather(*(start() for _ in range(4)))
        return most

    assert asyncio.run(starts()) == [1, 1, 2, 3]


def test_what_workers_hold_at_rest_is_no_room_for_others() -> None:
    most, _, began = asyncio.run(together([5] * 6, room=15, processors=16, kept=2))
    assert most == 3
    assert sorted(began) == list(range(6))

    async def last_alone() -> int:
        admission, now, most = Admission(10, 16, kept=3), 0, 0

        async def start() -> None:
            nonlocal now, most
            async with admission.turn(lambda: 5):
                now, most = now + 1, max(most, now + 1)
                await asyncio.sleep(0)
                now -= 1

        await start()
        await asyncio.gather(start(), start())
        return most

    assert asyncio.run(last_alone()) == 1
