"""The tables of the allocation benchmark, made from its samples alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedmt_flower.bench import shares
from fedmt_flower.bench.result import Json, Result, Sample
from fedmt_flower.bench.shares import Repeats, repeats, together
from fedmt_flower.bench.spread import Spread, spread

SETTINGS = {
    "heavy": ("D121", "V16", "R101"),
    "light": ("R18", "M3", "S2"),
    "hybrid": ("R50", "V16", "M3"),
}
"""The paper's three settings (§ VI-B)."""
VOLUMES = {"1:1:1": (1, 1, 1), "1:2:3": (1, 2, 3)}
"""Ratios of Dᵢ, in the order of a setting's tasks."""
TEMPORAL = "temporal"
EQUAL = ("isolated", "sharing", "static 60", "static 80", "100/(0.5 n)")
"""The schemes with equal budgets."""
ORDER = ("timeslice", *EQUAL, "fedmt", "fedmt, raw", "fedmt, fairness")
"""The rows between the two controls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A scheme in a setting: every column of one and the same plan; None is what a scheme has not."""

    scheme: str
    raw: Spread
    fairness: Spread
    smallest_share: Spread
    occupancy: float | None
    utilisation: float | None
    throughput: dict[str, Spread | None]


def rows(samples: Sequence[Sample], setting: str) -> tuple[Row, ...]:
    """The table of one setting, from what repeats there are; empty if a task was never measured alone.

    A repeat of a scheme is compared with the same repeat of the solo runs, which it was interleaved with.
    """
    solos = _solos(samples, setting)
    alone = sorted(set.intersection(*(set(taken) for taken in solos.values())))
    if not alone:
        return ()
    return (
        _temporal(samples, setting, solos, alone),
        *_together(samples, setting, solos),
        _largest_alone(solos, alone),
    )


def round_gain(samples: Sequence[Sample], setting: str, volume: str, scheme: str) -> Spread | None:
    """How many times faster than in turn a round under `scheme` is: the ratio of makespans, by repeat."""
    in_turn = repeats(samples, f"{setting} | round {volume} | {TEMPORAL}")
    taken = repeats(samples, f"{setting} | round {volume} | {scheme}")
    both = [repeat for repeat in taken if repeat in in_turn]
    return spread(in_turn[r]["makespan_s"] / taken[r]["makespan_s"] for r in both) if both else None


def rate_gain(samples: Sequence[Sample], setting: str, scheme: str, what: str) -> Spread | None:
    """`what` (``raw`` or ``fairness``) of `scheme` over that of the best equal budgets, by repeat."""
    solos = _solos(samples, setting)

    def of(name: str) -> Mapping[int, float]:
        found = together(repeats(samples, f"{setting} | rates | {name}"), solos)
        return {} if found is None else found.fairness if what == "fairness" else found.raw

    ours, equal = of(scheme), [found for name in EQUAL if (found := of(name))]
    if not ours or not equal:
        return None
    best = max(equal, key=lambda found: statistics.fmean(found.values()))
    both = [r for r in ours if r in best]
    return spread(ours[r] / best[r] for r in both) if both else None


def above_solo(samples: Sequence[Sample], setting: str) -> list[str]:
    """Co-run rates above the task's solo rate by more than the solo's own spread, a line each."""
    solos = _solos(samples, setting)
    return [
        line
        for scheme in _measured_schemes(samples, setting)
        for line in shares.above_solo(
            f"{setting}, {scheme}", repeats(samples, f"{setting} | rates | {scheme}"), solos
        )
    ]


def fewest_repeats(samples: Sequence[Sample], setting: str) -> int:
    """Repeats of the cell of `setting` that has the fewest; 0 if nothing was measured."""
    cells = [
        s.cell
        for s in samples
        if s.cell.startswith(f"{setting} |") and s.cell.split(" | ")[1] not in ("volumes", "plan")
    ]
    return min(map(cells.count, set(cells)), default=0)


def markdown(result: Result) -> str:
    """A table for each setting; intervals are 95 % confidence."""
    return "\n\n".join(
        "\n".join([_title(setting, result), "", *_header(), *map(_line, table)])
        for setting in SETTINGS
        if (table := rows(result.samples, setting))
    )


def interval(measured: Spread | None, digits: int) -> str:
    """A quantity with half the width of its 95 % interval, in Markdown; a dash if there is none."""
    if measured is None:
        return "–"
    text = f"{measured.mean:.{digits}f}"
    exact = measured.n < 2 or measured.deviation == 0
    return text if exact else f"{text} ± {measured.half_width:.{digits}f}"


def _solos(samples: Sequence[Sample], setting: str) -> dict[str, Repeats]:
    return {model: repeats(samples, f"{setting} | solo | {model}") for model in SETTINGS[setting]}


def _together(samples: Sequence[Sample], setting: str, solos: Mapping[str, Repeats]) -> Iterable[Row]:
    for scheme in _measured_schemes(samples, setting):
        taken = repeats(samples, f"{setting} | rates | {scheme}")
        shared = together(taken, solos)
        if shared is None:
            continue
        yield Row(
            scheme=scheme,
            raw=spread(shared.raw.values()),
            fairness=spread(shared.fairness.values()),
            smallest_share=spread(shared.smallest.values()),
            occupancy=_mean(taken.values(), "occupancy"),
            utilisation=_mean(taken.values(), "utilisation"),
            throughput=_throughputs(samples, setting, scheme),
        )


def _temporal(
    samples: Sequence[Sample], setting: str, solos: Mapping[str, Repeats], alone: Sequence[int]
) -> Row:
    """Equal time for each: rates, shares and usage are the means of the solo runs."""
    n = len(solos)
    every = [solos[model][repeat] for model in solos for repeat in alone]
    return Row(
        scheme=TEMPORAL,
        raw=spread(sum(solos[m][r]["rates"][m] for m in solos) / n for r in alone),
        fairness=spread(1.0 for _ in alone),
        smallest_share=spread(1 / n for _ in alone),
        occupancy=_mean(every, "occupancy"),
        utilisation=_mean(every, "utilisation"),
        throughput=_throughputs(samples, setting, TEMPORAL),
    )


def _largest_alone(solos: Mapping[str, Repeats], alone: Sequence[int]) -> Row:
    fastest = max(solos, key=lambda m: statistics.fmean(solos[m][r]["rates"][m] for r in alone))
    taken = [solos[fastest][repeat] for repeat in alone]
    return Row(
        scheme=f"largest alone ({fastest})",
        raw=spread(values["rates"][fastest] for values in taken),
        fairness=spread(1.0 for _ in taken),
        smallest_share=spread(0.0 for _ in taken),
        occupancy=_mean(taken, "occupancy"),
        utilisation=_mean(taken, "utilisation"),
        throughput=dict.fromkeys(VOLUMES),
    )


def _measured_schemes(samples: Sequence[Sample], setting: str) -> tuple[str, ...]:
    start = f"{setting} | rates | "
    found = [sample.cell.removeprefix(start) for sample in samples if sample.cell.startswith(start)]
    return tuple(scheme for scheme in ORDER if scheme in found)


def _throughputs(samples: Sequence[Sample], setting: str, scheme: str) -> dict[str, Spread | None]:
    """Σ Dᵢ / makespan for each ratio of volumes."""
    found: dict[str, Spread | None] = {}
    for volume in VOLUMES:
        taken = repeats(samples, f"{setting} | round {volume} | {scheme}")
        per_round = [sum(values["samples"].values()) / values["makespan_s"] for values in taken.values()]
        found[volume] = spread(per_round) if per_round else None
    return found


def _mean(taken: Iterable[dict[str, Json]], key: str) -> float | None:
    known = [values[key] for values in taken if values.get(key) is not None]
    return statistics.fmean(known) if known else None


def _title(setting: str, result: Result) -> str:
    return f"**{setting}: {' + '.join(SETTINGS[setting])}**, batch {result.settings['batch']}"


def _header() -> list[str]:
    columns = ["scheme", "raw (samples/s)", "P_f", "smallest share", "SM occupancy", "utilisation"]
    columns += [f"round {volume} (samples/s)" for volume in VOLUMES]
    return [f"| {' | '.join(columns)} |", f"|---|{'---:|' * (len(columns) - 1)}"]


def _line(row: Row) -> str:
    cells = [
        row.scheme,
        interval(row.raw, 0),
        interval(row.fairness, 2),
        interval(row.smallest_share, 2),
        _per_cent(row.occupancy),
        _per_cent(row.utilisation),
        *(interval(measured, 0) for measured in row.throughput.values()),
    ]
    return f"| {' | '.join(cells)} |"


def _per_cent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} %"
