"""Schedules by two objectives, and the front of those that no other beats in both (Fig. 7)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from matplotlib.figure import Figure

from fedmt_flower.plots.curves import PALETTE

Point = tuple[float, float]
_COLUMNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """The points (x, y) of one setting; more is better in both. `marked` ones are drawn by their names."""

    points: Sequence[Point]
    marked: Mapping[str, Point]


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other one beats in both coordinates, by rising x."""
    kept: list[Point] = []
    for point in sorted(points, reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return tuple(reversed(kept))


def fronts_png(clouds: Mapping[str, Cloud], *, x_label: str, y_label: str) -> bytes:
    """A PNG with a panel for each setting."""
    columns = min(_COLUMNS, len(clouds))
    rows = -(-len(clouds) // columns)
    figure = Figure(figsize=(3.6 * columns, 3.2 * rows), layout="constrained", dpi=160)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, item in zip_longest(panels, clouds.items()):
        if item is None:
            axes.set_visible(False)
            continue
        title, cloud = item
        axes.scatter(*zip(*cloud.points, strict=True), s=8, color="#b8bec8", label="schedules")
        axes.plot(*zip(*front(cloud.points), strict=True), color=PALETTE[0], linewidth=1.2, label="front")
        for colour, (name, point) in zip(PALETTE[1:], cloud.marked.items(), strict=False):
            axes.scatter(*point, s=60, marker="*", color=colour, label=name, zorder=3)
        axes.set_title(title, loc="left", fontsize=9)
        axes.set_xlabel(x_label, fontsize=8)
        axes.set_ylabel(y_label, fontsize=8)
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
