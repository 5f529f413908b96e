"""The picture of kernels on one clock: a panel per scheme, a lane per task."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from fedmt_flower.device.ipc.steps import Kernel
from fedmt_flower.plots.curves import PALETTE


def kernels_png(traced: Mapping[str, Mapping[str, Sequence[Kernel]]], seconds: float) -> bytes:
    """A PNG of the first `seconds` of traces whose kernels count from their beginning."""
    figure = Figure(figsize=(10.5, 0.5 + 1.35 * len(traced)), layout="constrained", dpi=160)
    panels = figure.subplots(len(traced), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (scheme, lanes) in zip(panels, traced.items(), strict=True):
        for row, (colour, kernels) in enumerate(zip(PALETTE, lanes.values(), strict=False)):
            spans = [(1e3 * k.start, 1e3 * k.seconds) for k in kernels if k.start < seconds]
            axes.broken_barh(spans, (row - 0.36, 0.72), facecolors=colour, linewidth=0)
        axes.set_yticks(range(len(lanes)), list(lanes))
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.set_xlim(0, 1e3 * seconds)
        axes.set_title(scheme, loc="left", fontsize=10)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
    panels[-1].set_xlabel("milliseconds")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
