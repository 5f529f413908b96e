import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmt_flower.domain.network import Link, Overlap, Volume
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.rates import RateTable, states
from fedmt_flower.planning.simulator import Jobs, simulate, timeline


def table_of(n: int, choices: int, seed: int) -> RateTable:
    """Rates that fall with company, as they do on a device."""
    generator = np.random.default_rng(seed)
    digits = states(n, choices)
    size = np.maximum(1, (digits > 0).sum(axis=1, keepdims=True))
    solo = generator.uniform(500, 2000, (choices, n))
    rates = (
        solo[np.maximum(digits, 1) - 1, np.arange(n)] / size**0.6 * generator.uniform(0.8, 1.0, digits.shape)
    )
    return RateTable(choices=choices, rates=np.where(digits > 0, rates, 0.0))


def jobs_of(n: int, seed: int, *, full_duplex: bool = True) -> Jobs:
    generator = np.random.default_rng(seed)
    return Jobs(
        names=tuple(f"t{i}" for i in range(n)),
        samples=generator.uniform(100, 6000, n),
        down_s=generator.uniform(0, 2, n),
        up_s=generator.uniform(0, 2, n),
        full_duplex=full_duplex,
    )


def slow_round(jobs: Jobs, table: RateTable, order, choice, overlap: Overlap) -> float:
    """The same round by a loop over small steps of state, one transfer and one event at a time."""
    n = len(jobs.names)
    now, left = 0.0, dict(enumerate(jobs.samples))
    to_download, computing, to_upload, done = list(order), set(), [], 0
    link_down = link_up = None
    waiting: set[int] = set()
    while done < n:
        shared = overlap in (Overlap.OFF, Overlap.SERIAL) or not jobs.full_duplex
        if link_down is None and to_download and not (shared and link_up):
            task = to_download.pop(0)
            link_down = (task, now + jobs.down_s[task])
        may_upload = not shared or (link_down is None and not to_download)
        if overlap is Overlap.OFF:
            may_upload = may_upload and not computing and not waiting and len(to_upload) + done == n
        if link_up is None and to_upload and may_upload:
            task = to_upload.pop(0)
            link_up = (task, now + jobs.up_s[task])
        if waiting and not to_download and link_down is None:
            computing |= waiting
            waiting = set()
        state = sum(int((choice[i] + 1) * table.weights[i]) for i in computing)
        ends = {i: now + left[i] / table.rates[state, i] for i in computing}
        moments = [*ends.values(), *(link[1] for link in (link_down, link_up) if link)]
        then = min(moments)
        for i in computing:
            left[i] -= table.rates[state, i] * (then - now)
        now = then
        if link_down and link_down[1] <= now:
            (waiting if overlap is Overlap.OFF else computing).add(link_down[0])
            link_down = None
        if link_up and link_up[1] <= now:
            done += 1
            link_up = None
        finished = [i for i, end in ends.items() if end <= now + 1e-12]
        computing -= set(finished)
        to_upload += sorted(finished, key=list(order).index)
    return now


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(0, 10**6),
    st.sampled_from([Overlap.OFF, Overlap.SERIAL, Overlap.FLEXIBLE]),
    st.booleans(),
)
def test_it_agrees_with_a_round_played_event_by_event(n, seed, overlap, full_duplex) -> None:
    jobs, table = jobs_of(n, seed, full_duplex=full_duplex), table_of(n, 2, seed)
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(n), (4, 1)), axis=1)
    choices = generator.integers(0, 2, (4, n))
    spans = simulate(jobs, table, orders, choices, overlap=overlap).makespan
    for order, choice, span in zip(orders, choices, spans, strict=True):
        assert span == pytest.approx(slow_round(jobs, table, order, choice, overlap), rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_overlap_never_costs_time(n, seed) -> None:
    jobs, table = jobs_of(n, seed), table_of(n, 1, seed)
    uniform = RateTable(choices=1, rates=np.where(table.rates > 0, 1000.0, 0.0) / max(1, n))
    order, choice = np.arange(n), np.zeros(n, dtype=np.intp)
    off, serial, pipelined = (
        simulate(jobs, uniform, order, choice, overlap=overlap).makespan[0]
        for overlap in (Overlap.OFF, Overlap.SERIAL, Overlap.FIFO)
    )
    assert pipelined <= serial + 1e-9 <= off + 2e-9


def test_constant_rates_are_the_papers_volume_over_rate() -> None:
    jobs = Jobs(names=("a", "b"), samples=np.array([100.0, 300.0]), down_s=np.zeros(2), up_s=np.zeros(2))
    table = RateTable(choices=1, rates=np.array([[0, 0], [100, 0], [0, 100], [50, 50.0]]))
    order = choice = np.array([0, 1])
    choice = np.zeros(2, dtype=np.intp)
    assert simulate(jobs, table, order, choice, constant_rates=True).makespan[0] == 6.0
    assert simulate(jobs, table, order, choice).makespan[0] == 4.0


def test_a_swapped_state_has_the_rates_of_its_row_in_its_round_alone() -> None:
    jobs, table = jobs_of(3, 1), table_of(3, 1, 1)
    wide = RateTable(choices=1, rates=np.concatenate([table.rates, 2 * table.rates[7:8]]))
    order, choice = np.arange(3), np.zeros((2, 3), dtype=np.intp)
    swapped = simulate(jobs, wide, order, choice, swap=(np.array([7, 8]), np.array([8, 8]))).makespan
    faster = RateTable(choices=1, rates=np.concatenate([table.rates[:7], 2 * table.rates[7:8]]))
    assert swapped[0] == simulate(jobs, faster, order, choice[0]).makespan[0]
    assert swapped[1] == simulate(jobs, table, order, choice[0]).makespan[0] > swapped[0]


def test_the_link_gives_the_transfers_their_lasts() -> None:
    volumes = (
        Volume(task="a", samples=10, download_bytes=50_000_000, upload_bytes=25_000_000),
        Volume(task="b", samples=20),
    )
    jobs = Jobs.over(volumes, Link(up_mbps=100, down_mbps=400, full_duplex=False, latency_s=0.01))
    assert jobs.down_s.tolist() == pytest.approx([1.01, 0.01])
    assert jobs.up_s.tolist() == pytest.approx([2.01, 0.01])
    assert not jobs.full_duplex
    assert Jobs.over(volumes, None).down_s.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("overlap", [Overlap.OFF, Overlap.SERIAL, Overlap.FLEXIBLE])
def test_the_timeline_keeps_the_rules_of_the_link(overlap: Overlap) -> None:
    jobs, table = jobs_of(4, 11), table_of(4, 1, 11)
    times = simulate(jobs, table, np.array([2, 0, 3, 1]), np.zeros(4, dtype=np.intp), overlap=overlap)
    spans = timeline(jobs, times)
    assert math.isclose(max(span.end_s for span in spans), times.makespan[0])
    for phase in (Phase.DOWNLOAD, Phase.UPLOAD):
        of_phase = [span for span in spans if span.phase is phase]
        assert all(b.start_s >= a.end_s - 1e-9 for a, b in itertools.pairwise(of_phase))
    for name in jobs.names:
        down, compute, up = (span for span in spans if span.task == name)
        assert down.end_s <= compute.start_s
        assert compute.end_s <= up.start_s + 1e-9
    if overlap is Overlap.OFF:
        last_download = max(span.end_s for span in spans if span.phase is Phase.DOWNLOAD)
        assert all(span.start_s >= last_download for span in spans if span.phase is Phase.COMPUTE)


def test_a_model_that_says_a_running_task_stands_still_is_found_out() -> None:
    table = RateTable(choices=1, rates=np.zeros((2, 1)))
    with pytest.raises(ConfigError, match="has a rate of 0"):
        simulate(jobs_of(1, 0), table, np.array([0]), np.array([0]))
