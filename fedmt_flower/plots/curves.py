"""Curves with their intervals, and quantities over time: the pictures of benchmarks."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

PALETTE = ("#34558b", "#e69f00", "#009e73", "#56b4e9", "#cc79a7", "#d55e00", "#7f7f7f")
"""Okabe and Ito's colours, told apart with any colour vision, dark ones first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Points (x, y), each with half the width of its 95 % interval; `half` may be empty or infinite."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    half: Sequence[float] = ()


def curves_png(
    panels: Mapping[str, Sequence[Curve]], *, x_label: str, marker: str = "o", from_zero: bool = True
) -> bytes:
    """A PNG of panels side by side, one for each quantity; the curves of one label share a colour."""
    figure = Figure(figsize=(4.8 * len(panels), 3.8), layout="constrained", dpi=160)
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, curves) in zip(every, panels.items(), strict=True):
        for colour, curve in zip(PALETTE, curves, strict=False):
            axes.plot(curve.x, curve.y, marker=marker, markersize=4, color=colour, label=curve.label)
            if any(math.isfinite(half) and half > 0 for half in curve.half):
                low = [
                    y - half if math.isfinite(half) else y
                    for y, half in zip(curve.y, curve.half, strict=True)
                ]
                high = [
                    y + half if math.isfinite(half) else y
                    for y, half in zip(curve.y, curve.half, strict=True)
                ]
                axes.fill_between(curve.x, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_xlabel(x_label)
        axes.grid(color="#e6e8eb", linewidth=0.8)
        axes.set_axisbelow(True)
        if from_zero:
            axes.set_ylim(bottom=0)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    every[0].legend(frameon=False, fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
