"""The emulated link against the simulator: the same rounds, one on a clock that waits for nobody."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pytest

from fedmt_flower.device.engine.link import Transfers
from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.planning.rates import RateTable, states
from fedmt_flower.planning.simulator import Jobs, simulate, timeline

T = TypeVar("T")


class _Leaps(selectors.DefaultSelector):
    """Nothing to read comes in these tests: time leaps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everybody waits for something that cannot come"
        self.now += max(0.0, timeout)
        return super().select(0)


def leap(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop whose clock leaps from timer to timer."""
    selector = _Leaps()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()


async def play(
    link: Link,
    overlap: Overlap,
    volumes: list[Volume],
    seconds: Mapping[str, float],
    turns: int,
    given_up_s: Mapping[str, float] = MappingProxyType({}),
) -> list[Span]:
    """A round in which each task computes for its `seconds`, `turns` tasks at once, unless it is given up."""
    clock = asyncio.get_running_loop().time
    transfers = Transfers(link, overlap, {v.task: v.download_bytes for v in volumes}, clock())
    computing = asyncio.Semaphore(turns)
    spans = []

    async def run(volume: Volume) -> None:
        end = given_up_s.get(volume.task)
        with transfers.taking_part(volume.task), suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await run_whole(volume)

    async def run_whole(volume: Volume) -> None:
        async with computing:
            await transfers.received(volume.task)
            start = clock()
            await asyncio.sleep(seconds[volume.task])
            spans.append(Span(task=volume.task, phase=Phase.COMPUTE, start_s=start, end_s=clock()))
        await transfers.upload(volume.task, volume.upload_bytes)

    async with transfers, asyncio.TaskGroup() as group:
        for volume in volumes:
            group.create_task(run(volume))
    return [*spans, *transfers.spans]


SECOND = 1_250_000
"""Bytes that take a second at 10 Mbit/s."""
SLOW = Link(up_mbps=10, down_mbps=10)


def three(down_s: int = 1, up_s: int = 1) -> list[Volume]:
    """Tasks a, b and c, whose transfers take so many seconds each."""
    return [
        Volume(task=task, samples=1, download_bytes=down_s * SECOND, upload_bytes=up_s * SECOND)
        for task in "abc"
    ]


def times(spans: list[Span], phase: Phase) -> dict[str, tuple[float, float]]:
    return {span.task: (span.start_s, span.end_s) for span in spans if span.phase is phase}


@pytest.mark.parametrize("overlap", list(Overlap))
@pytest.mark.parametrize("full_duplex", [True, False])
def test_a_round_on_the_link_is_the_round_that_the_simulator_foresees(
    overlap: Overlap, full_duplex: bool
) -> None:
    for seed in range(40):
        draw = np.random.default_rng(seed)
        n = int(draw.integers(1, 6))
        volumes = [
            Volume(task=f"t{i}", samples=100, download_bytes=int(down), upload_bytes=int(up))
            for i, (down, up) in enumerate(draw.integers(1, 80_000_000, (n, 2)))
        ]
        rates = draw.uniform(5, 200, n)
        link = Link(up_mbps=100, down_mbps=400, full_duplex=full_duplex, latency_s=0.02)
        jobs = Jobs.over(volumes, link)
        table = RateTable(choices=1, rates=states(n, 1) * rates)
        order, choice = np.arange(n), np.zeros(n, dtype=np.intp)
        planned = timeline(jobs, simulate(jobs, table, order, choice, overlap=overlap))
        seconds = {v.task: v.samples / rate for v, rate in zip(volumes, rates, strict=True)}
        seen = {(s.task, s.phase): s for s in leap(play(link, overlap, volumes, seconds, n))}
        assert len(seen) == len(planned) == 3 * n
        for span in planned:
            got = seen[span.task, span.phase]
            assert (got.start_s, got.end_s) == pytest.approx((span.start_s, span.end_s), abs=1e-6)


def test_tasks_in_turn_compute_one_at_a_time_while_others_are_on_the_link() -> None:
    spans = leap(play(SLOW, Overlap.FIFO, three(), dict.fromkeys("abc", 2.0), turns=1))
    assert times(spans, Phase.DOWNLOAD) == {"a": (0, 1), "b": (1, 2), "c": (2, 3)}
    assert times(spans, Phase.COMPUTE) == {"a": (1, 3), "b": (3, 5), "c": (5, 7)}
    assert times(spans, Phase.UPLOAD) == {"a": (3, 4), "b": (5, 6), "c": (7, 8)}


def test_tasks_in_turn_wait_for_all_transfers_where_rounds_are_phased() -> None:
    spans = leap(play(SLOW, Overlap.OFF, three(), dict.fromkeys("abc", 2.0), turns=1))
    assert times(spans, Phase.COMPUTE) == {"a": (3, 5), "b": (5, 7), "c": (7, 9)}
    assert times(spans, Phase.UPLOAD) == {"a": (9, 10), "b": (10, 11), "c": (11, 12)}


@pytest.mark.parametrize("overlap", [Overlap.OFF, Overlap.SERIAL, Overlap.FIFO])
def test_nobody_waits_for_a_task_that_was_given_up(overlap: Overlap) -> None:
    """Task a on its way down, b while it computes, and c is neither held up nor cut short."""
    seconds = {"a": 1.0, "b": 1000.0, "c": 5.0}
    spans = leap(play(SLOW, overlap, three(), seconds, 3, given_up_s={"a": 0.5, "b": 4.0}))
    assert times(spans, Phase.DOWNLOAD) == {"b": (0.5, 1.5), "c": (1.5, 2.5)}
    assert times(spans, Phase.COMPUTE) == {"c": (2.5, 7.5)}
    assert times(spans, Phase.UPLOAD) == {"c": (7.5, 8.5)}


def test_an_upload_that_is_given_up_lets_the_next_begin() -> None:
    seconds = {"a": 1.0, "b": 2.0, "c": 3.0}
    spans = leap(play(SLOW, Overlap.FIFO, three(0, 4), seconds, 3, given_up_s={"a": 2.5, "b": 2.5}))
    assert times(spans, Phase.UPLOAD) == {"c": (3.0, 7.0)}


def test_without_a_link_nothing_waits_and_nothing_is_drawn() -> None:
    spans = leap(play_unlinked())
    assert times(spans, Phase.UPLOAD) == times(spans, Phase.DOWNLOAD) == {}


async def play_unlinked() -> list[Span]:
    transfers = Transfers(None, Overlap.OFF, {"a": 1, "b": 1}, 0.0)
    async with transfers:
        with transfers.taking_part("a"):
            await transfers.received("a")
            await transfers.upload("a", 10**12)
    return transfers.spans
