"""What rates come to beside those alone, repeat by repeat: raw, P_f (Eq. 2) and the smallest share."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedmt_flower.bench.result import Json, Sample

Repeats = Mapping[int, dict[str, Json]]
"""The values of a cell by repeat."""


def repeats(samples: Sequence[Sample], cell: str) -> Repeats:
    """What was measured of `cell`, by repeat."""
    return {sample.repeat: sample.values for sample in samples if sample.cell == cell}


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Tasks that ran together, by repeat; each repeat is compared with the same one of the solo runs.

    Parameters
    ----------
    raw, fairness, smallest
        Σ Pᵢ in samples/s, P_f, and the smallest Pᵢ/P_bᵢ.
    factor
        Σ Pᵢ over the temporal rate, that of equal time: Σ P_bᵢ/n.
    """

    raw: Mapping[int, float]
    fairness: Mapping[int, float]
    smallest: Mapping[int, float]
    factor: Mapping[int, float]


def together(taken: Repeats, solos: Mapping[str, Repeats]) -> Together | None:
    """What the repeats of a co-run came to that every task of `solos` has too; None if there is none."""
    both = [r for r in taken if all(r in solo for solo in solos.values())]
    if not both:
        return None
    alone = {r: {task: float(solo[r]["rates"][task]) for task, solo in solos.items()} for r in both}
    shares = {r: [taken[r]["rates"][task] / own for task, own in alone[r].items()] for r in both}
    raw = {r: float(sum(taken[r]["rates"][task] for task in solos)) for r in both}
    return Together(
        raw=raw,
        fairness={r: sum(shares[r]) for r in both},
        smallest={r: min(shares[r]) for r in both},
        factor={r: raw[r] / statistics.fmean(alone[r].values()) for r in both},
    )


def above_solo(label: str, taken: Repeats, solos: Mapping[str, Repeats]) -> Iterator[str]:
    """Tasks whose mean rate together is above every one of their solo rates, a line each.

    Parameters
    ----------
    label
        What the lines begin with.
    """
    for task, solo in solos.items():
        alone = [values["rates"][task] for values in solo.values()]
        if not alone or not taken:
            continue
        rate = statistics.fmean(values["rates"][task] for values in taken.values())
        if rate > max(alone):
            yield f"{label}: {task} at {rate:.0f} samples/s, alone {min(alone):.0f} to {max(alone):.0f}"
