"""The picture of a round: what every task on every site did when."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedmt_flower.domain.round import Status
from fedmt_flower.domain.timeline import Phase, Span
from fedmt_flower.federation.record import Entry

PHASE_COLOURS = {
    Phase.PREPARE: "#c9cdd2",
    Phase.DOWNLOAD: "#56b4e9",
    Phase.EVALUATE: "#009e73",
    Phase.COMPUTE: "#34558b",
    Phase.UPLOAD: "#e69f00",
}
"""Okabe and Ito's palette, told apart with any colour vision, around one dark colour for the training."""

_LANE_IN = 0.36
_PLANNED_LANE_IN = 0.5
_WIDTH_IN = 9.6
_PALE = 0.45
_MUTED = "#8a9099"


def timeline_png(lines: Sequence[Entry]) -> bytes:
    """A PNG of one round.

    Parameters
    ----------
    lines
        The entries of that round: a panel per site, a lane per task in its start order. Time runs from the
        moment when the site's turn on its device came. What was planned of a task is drawn above what was
        observed, pale and thin.
    """
    sites = list(dict.fromkeys(entry.site for entry in lines))
    lanes = {site: _in_order([entry for entry in lines if entry.site == site]) for site in sites}
    planned = any(entry.planned for entry in lines)
    height = _PLANNED_LANE_IN if planned else _LANE_IN
    heights = [height * (len(lanes[site]) + 0.9) for site in sites]
    figure = Figure(figsize=(_WIDTH_IN, sum(heights) + 1.5), layout="constrained", dpi=160)
    panels = figure.subplots(len(sites), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    ends = [span.end_s - entry.waited_s for entry in lines for span in entry.spans]
    end = max(ends + [span.end_s for entry in lines for span in entry.planned], default=1.0)
    for site, axes in zip(sites, panels, strict=True):
        _draw_site(axes, site, lanes[site], end)
    panels[-1].set_xlabel("seconds since the site's turn on its device")
    first = lines[0]
    figure.suptitle(f"Round {first.round}: {_how(first)}", x=0.01, ha="left", fontsize=12, weight="bold")
    seen = {span.phase for entry in lines for span in (*entry.spans, *entry.planned)}
    handles: list[Artist] = [
        Patch(color=colour, label=phase) for phase, colour in PHASE_COLOURS.items() if phase in seen
    ]
    if planned:
        handles.append(Patch(color=PHASE_COLOURS[Phase.COMPUTE], alpha=_PALE, label="as planned"))
        handles.append(Line2D([], [], color=_MUTED, linestyle="--", label="planned end"))
    figure.legend(
        handles=handles,
        loc="outside lower right",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_site(axes: Axes, site: str, lanes: Sequence[Entry], end: float) -> None:
    planned = any(entry.planned for entry in lanes)
    for row, entry in enumerate(lanes):
        if planned:
            _draw_spans(axes, row - 0.27, 0.2, entry.planned, 0.0, _PALE)
            _draw_spans(axes, row + 0.1, 0.44, entry.spans, entry.waited_s)
        else:
            _draw_spans(axes, row, 0.62, entry.spans, entry.waited_s)
        stop = max((span.end_s - entry.waited_s for span in entry.spans), default=0.0)
        place = row + 0.1 if planned else row
        axes.text(stop + 0.008 * end, place, _caption(entry), va="center", fontsize=8.5, color="#3b4048")
    if lanes[0].predicted_s is not None:
        axes.axvline(lanes[0].predicted_s, color=_MUTED, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(lanes)), [entry.task for entry in lanes])
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, end * (1.38 if lanes[0].batch_size else 1.27))
    axes.set_title(f"{site}  ({_lengths(lanes[0])})", loc="left", fontsize=10)
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _draw_spans(
    axes: Axes, place: float, height: float, spans: Sequence[Span], begin: float, alpha: float = 1.0
) -> None:
    for span in spans:
        colour = PHASE_COLOURS[span.phase]
        # The edge keeps a transfer of a millisecond visible beside a training of seconds.
        axes.barh(
            place,
            span.end_s - span.start_s,
            left=span.start_s - begin,
            height=height,
            color=colour,
            edgecolor=colour,
            linewidth=0.8,
            alpha=alpha,
        )


def _lengths(entry: Entry) -> str:
    """The length of a site's round, and what was promised of it."""
    if entry.predicted_s is None or entry.lower_bound_s is None:
        return f"{entry.wall_s:.1f} s"
    return (
        f"{entry.wall_s:.1f} s; planned {entry.predicted_s:.1f} s, no order below {entry.lower_bound_s:.1f} s"
    )


def _caption(entry: Entry) -> str:
    if entry.status is Status.FAILED:
        return "failed"
    rate = entry.samples / entry.compute_s if entry.compute_s > 0 else 0.0
    words = [f"{entry.budget:.0f} %"]
    if entry.batch_size:
        words.append(f"batch {entry.batch_size}")
    if rate:
        words.append(f"{rate:,.0f} samples/s")
    return "  ·  ".join(words)


def _how(entry: Entry) -> str:
    tasks = f"tasks {entry.sharing}" if entry.sharing else "not planned"
    how = f"{tasks} on {entry.backend}" if entry.backend else tasks
    return f"{how}\nEmulated link: {entry.link}" if entry.link else how


def _in_order(lanes: Sequence[Entry]) -> list[Entry]:
    return sorted(lanes, key=lambda entry: entry.place)
