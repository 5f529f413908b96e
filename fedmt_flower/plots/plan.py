"""The picture of a plan: what the virtual resource buys, and the round that was chosen."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fedmt_flower.domain.forecast import Forecast
from fedmt_flower.planning.outcomes import Outcome
from fedmt_flower.plots.curves import PALETTE
from fedmt_flower.plots.timeline import PHASE_COLOURS

_QUANTITIES: Final[Mapping[str, Callable[[Outcome], float]]] = {
    "makespan (s)": lambda point: point.makespan_s,
    "raw Σ Pᵢ (samples/s)": lambda point: point.raw,
    "fairness P_f": lambda point: point.fairness,
}
_CHOSEN: Final = PALETTE[5]
_MUTED: Final = "#8a9099"


def plan_png(
    title: str, swept: Sequence[Outcome], chosen: Outcome, forecast: Forecast, *, changes: bool = False
) -> bytes:
    """A PNG of a plan.

    Parameters
    ----------
    title
        What was planned.
    swept
        Plans over R_v, to the left: a panel for each quantity.
    chosen
        The plan that was chosen, a dot in each.
    forecast
        Its round, to the right: a lane per task in its start order.
    changes
        Whether its budgets change in the round, unlike those to the left.
    """
    figure = Figure(figsize=(11.0, 5.4), layout="constrained", dpi=160)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.0, 1.35))[0]
    panels = left.subplots(len(_QUANTITIES), 1, sharex=True)
    for axes, colour, (name, value) in zip(panels, PALETTE, _QUANTITIES.items(), strict=False):
        _draw_sweep(axes, colour, name, value, swept, chosen)
    label = "chosen; its budgets change in the round" if changes else "chosen"
    panels[0].legend([panels[0].lines[-1]], [label], frameon=False, fontsize=8.5, loc="best")
    panels[-1].set_xlabel("virtual resource R_v (%), budgets held")
    _draw_round(right.subplots(), forecast)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, weight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_sweep(
    axes: Axes,
    colour: str,
    name: str,
    value: Callable[[Outcome], float],
    swept: Sequence[Outcome],
    chosen: Outcome,
) -> None:
    points = sorted(swept, key=lambda point: point.virtual_resource)
    axes.plot(
        [point.virtual_resource for point in points],
        [value(point) for point in points],
        marker="o",
        markersize=4,
        color=colour,
    )
    axes.plot(
        [chosen.virtual_resource],
        [value(chosen)],
        marker="D",
        markersize=7,
        color=_CHOSEN,
        linestyle="none",
    )
    axes.set_title(name, loc="left", fontsize=10)
    axes.margins(x=0.04, y=0.2)
    axes.grid(color="#e6e8eb", linewidth=0.8)
    _plain(axes)


def _draw_round(axes: Axes, forecast: Forecast) -> None:
    begins = {span.task: span.start_s for span in reversed(forecast.timeline)}
    tasks = sorted(begins, key=lambda task: begins[task])
    for span in forecast.timeline:
        colour = PHASE_COLOURS[span.phase]
        axes.barh(
            tasks.index(span.task),
            span.end_s - span.start_s,
            left=span.start_s,
            height=0.6,
            color=colour,
            edgecolor=colour,
            linewidth=0.8,
        )
    for row, task in enumerate(tasks):
        end = max(span.end_s for span in forecast.timeline if span.task == task)
        rate = f"{forecast.rates[task]:,.0f} samples/s"
        axes.text(end + 0.012 * forecast.makespan_s, row, rate, va="center", fontsize=8.5, color="#3b4048")
    axes.axvline(forecast.lower_bound_s, color=_MUTED, linewidth=1.2, linestyle="--")
    axes.text(
        forecast.lower_bound_s,
        -0.62,
        f"no order is faster than {forecast.lower_bound_s:.3g} s ",
        ha="right",
        va="center",
        fontsize=8.5,
        color=_MUTED,
    )
    axes.set_yticks(range(len(tasks)), tasks)
    axes.set_ylim(len(tasks) - 0.4, -0.85)
    axes.set_xlim(0, 1.24 * forecast.makespan_s)
    axes.set_title(f"the round as predicted: {forecast.makespan_s:.3g} s", loc="left", fontsize=10)
    axes.set_xlabel("seconds; rates while all tasks compute")
    axes.grid(axis="x", color="#e6e8eb", linewidth=0.8)
    seen = {span.phase for span in forecast.timeline}
    axes.legend(
        handles=[Patch(color=colour, label=p) for p, colour in PHASE_COLOURS.items() if p in seen],
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(seen),
        frameon=False,
        fontsize=9,
    )
    axes.spines["left"].set_visible(False)
    _plain(axes)


def _plain(axes: Axes) -> None:
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
