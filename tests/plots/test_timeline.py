"""The picture of a round holds what the round held."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
from matplotlib.image import imread

from fedmt_flower.domain.network import Link
from fedmt_flower.domain.round import Status
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation.record import Entry
from fedmt_flower.plots.timeline import timeline_png

COMPUTE = np.array([0x34, 0x55, 0x8B]) / 255


def lane(site: str, task: str, seconds: float, status: Status = Status.DONE) -> Entry:
    spans = (
        Span(task=task, phase=Phase.DOWNLOAD, start_s=0.0, end_s=0.001),
        Span(task=task, phase=Phase.COMPUTE, start_s=0.001, end_s=seconds),
    )
    return Entry(round=1, final=False, started=0.0, site=site, task=task, status=status, spans=spans)


def painted(*lanes: Entry) -> int:
    """Pixels in the colour of computation, without the legend's: the picture of an empty round has those."""
    picture = imread(io.BytesIO(timeline_png(lanes)))[..., :3]
    return int(np.all(np.abs(picture - COMPUTE) < 0.02, axis=-1).sum())


def test_a_bar_is_as_long_as_its_computation() -> None:
    longest = lane("site-0", "a", 8.0)
    long = painted(longest, lane("site-0", "b", 4.0)) - painted(longest, lane("site-0", "b", 0.0011))
    short = painted(longest, lane("site-0", "b", 2.0)) - painted(longest, lane("site-0", "b", 0.0011))
    assert 1.9 < long / short < 2.1


def test_a_panel_for_each_site_makes_the_picture_higher() -> None:
    one = imread(io.BytesIO(timeline_png([lane("site-0", "a", 1.0)])))
    three = imread(io.BytesIO(timeline_png([lane(f"site-{i}", "a", 1.0) for i in range(3)])))
    assert three.shape[0] > 1.5 * one.shape[0]
    assert three.shape[1] == one.shape[1]


def test_a_task_that_failed_at_once_is_drawn() -> None:
    failed = Entry(round=1, final=False, started=0.0, site="s", task="a", status=Status.FAILED)
    assert timeline_png([failed]).startswith(b"\x89PNG")


def test_plan_and_observation_are_drawn_side_by_side() -> None:
    """Half of the time as long as planned: as much of the pale colour as of the full one, by its height."""
    observed = lane("site-0", "a", 4.0)
    planned = replace(
        observed,
        planned=(Span(task="a", phase=Phase.COMPUTE, start_s=0.0, end_s=8.0),),
        predicted_s=8.0,
        lower_bound_s=7.0,
    )
    picture = imread(io.BytesIO(timeline_png([planned])))[..., :3]
    pale = 0.45 * COMPUTE + 0.55
    columns = [
        np.flatnonzero(
            np.all(np.abs(picture[: len(picture) * 3 // 4] - colour) < 0.04, axis=-1).sum(axis=0) > 3
        )
        for colour in (pale, COMPUTE)
    ]
    long, short = (np.ptp(found) for found in columns)
    assert 1.8 < long / short < 2.2
    assert picture.shape[0] > imread(io.BytesIO(timeline_png([observed]))).shape[0]


def test_an_emulated_link_stands_in_the_title() -> None:
    """A second line of it pushes the first panel down."""
    link = Link(up_mbps=400, down_mbps=400)
    plain, linked = (lane("site-0", "a", 1.0), replace(lane("site-0", "a", 1.0), link=link))
    tops = [
        np.flatnonzero(np.all(np.abs(picture - COMPUTE) < 0.02, axis=-1).any(axis=1))[0]
        for picture in (imread(io.BytesIO(timeline_png([one])))[..., :3] for one in (plain, linked))
    ]
    assert tops[1] > tops[0] + 15
