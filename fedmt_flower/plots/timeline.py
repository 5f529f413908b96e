"""The picture of a round: what every task on every site did when."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedmt_flower.domain.round import Status
from fedmt_flower.domain.timeline import Phase
from fedmt_flower.federation.record import Entry

_COLOURS = {
    Phase.PREPARE: "#c9cdd2",
    Phase.DOWNLOAD: "#56b4e9",
    Phase.EVALUATE: "#009e73",
    Phase.COMPUTE: "#34558b",
    Phase.UPLOAD: "#e69f00",
}
"""Okabe and Ito's palette, told apart with any colour vision, around one dark colour for the training."""

_LANE_IN = 0.36
_WIDTH_IN = 9.6


def timeline_png(lines: Sequence[Entry]) -> bytes:
    """A PNG of one round.

    Parameters
    ----------
    lines
        The entries of that round: a panel per site, a lane per task in its start order. Time runs from the
        moment when the site's turn on its device came.
    """
    sites = list(dict.fromkeys(entry.site for entry in lines))
    lanes = {site: _in_order([entry for entry in lines if entry.site == site]) for site in sites}
    heights = [_LANE_IN * (len(lanes[site]) + 0.9) for site in sites]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 1.3), layout="constrained", dpi=160)
    panels = figure.subplots(len(sites), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    end = max((span.end_s - entry.waited_s for entry in lines for span in entry.spans), default=1.0)
    for site, axes in zip(sites, panels, strict=True):
        _draw_site(axes, site, lanes[site], end)
    panels[-1].set_xlabel("seconds since the site's turn on its device")
    first = lines[0]
    figure.suptitle(f"Round {first.round}: {_how(first)}", x=0.01, ha="left", fontsize=12, weight="bold")
    seen = {span.phase for entry in lines for span in entry.spans}
    figure.legend(
        handles=[Patch(color=colour, label=phase) for phase, colour in _COLOURS.items() if phase in seen],
        loc="outside upper right",
        ncols=len(_COLOURS),
        frameon=False,
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_site(axes: Axes, site: str, lanes: Sequence[Entry], end: float) -> None:
    for row, entry in enumerate(lanes):
        for span in entry.spans:
            colour = _COLOURS[span.phase]
            # The edge keeps a transfer of a millisecond visible beside a training of seconds.
            axes.barh(
                row,
                span.end_s - span.start_s,
                left=span.start_s - entry.waited_s,
                height=0.62,
                color=colour,
                edgecolor=colour,
                linewidth=0.8,
            )
        stop = max((span.end_s - entry.waited_s for span in entry.spans), default=0.0)
        axes.text(stop + 0.008 * end, row, _caption(entry), va="center", fontsize=8.5, color="#3b4048")
    axes.set_yticks(range(len(lanes)), [entry.task for entry in lanes])
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, end * 1.27)
    axes.set_title(f"{site}  ({lanes[0].wall_s:.1f} s)", loc="left", fontsize=10)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _caption(entry: Entry) -> str:
    if entry.status is Status.FAILED:
        return "failed"
    rate = entry.samples / entry.compute_s if entry.compute_s > 0 else 0.0
    return f"{entry.budget:.0f} %  ·  {rate:,.0f} samples/s" if rate else f"{entry.budget:.0f} %"


def _how(entry: Entry) -> str:
    tasks = f"tasks {entry.sharing}" if entry.sharing else "not planned"
    return f"{tasks} on {entry.backend}" if entry.backend else tasks


def _in_order(lanes: Sequence[Entry]) -> list[Entry]:
    return sorted(lanes, key=lambda entry: entry.place)
