"""The tables and goals of the step benchmark, made from its samples alone."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

from fedmt_flower.bench.allocation_table import EQUAL, SETTINGS, interval
from fedmt_flower.bench.mixes import FAST, PLAIN
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.domain.allocation import Objective

CHOSEN: Final = {
    "fedmt": Objective.MAKESPAN,
    "fedmt, raw": Objective.RAW,
    "fedmt, fairness": Objective.FAIRNESS,
}
"""Budgets chosen by a model, by objective."""
_RAW: Final = {"heavy": 5.0, "light": 7.0, "hybrid": 5.5}
"""Raw of the whole over the eager temporal rate."""
_ROUND: Final = {"heavy": 3.0, "light": 6.0, "hybrid": 4.5}
"""The eager round in turn over the whole's."""
_OVER_FAST: Final = 1.6

Repeats = Sequence[dict[str, Json]]


def raw(setting: str, kind: str, scheme: str) -> Callable[[Mapping[str, Json]], float]:
    """Σ Pᵢ of a scheme; in turn that of equal time, Σ P_bᵢ/n."""

    def of(values: Mapping[str, Json]) -> float:
        if scheme == "in turn":
            return statistics.fmean(_solo(values, setting, kind))
        return float(sum(values[f"rates | {kind} | {scheme}"]))

    return of


def fairness(setting: str, kind: str, scheme: str) -> Callable[[Mapping[str, Json]], float]:
    """P_f of a scheme, with P_b of the same kind of step; 1 in turn."""

    def of(values: Mapping[str, Json]) -> float:
        return sum(_shares(values, setting, kind, scheme))

    return of


def smallest(setting: str, kind: str, scheme: str) -> Callable[[Mapping[str, Json]], float]:
    """The smallest share of a scheme."""

    def of(values: Mapping[str, Json]) -> float:
        return min(_shares(values, setting, kind, scheme))

    return of


def limit_share(
    setting: str, kind: str, scheme: str, limit: Mapping[str, Json]
) -> Callable[[Mapping[str, Json]], float]:
    """FLOP/s of the models, forward and backward, over the device's peak in the step's own precision."""
    flops, peak = limit[kind]["flops"], float(limit[kind]["peak"])

    def of(values: Mapping[str, Json]) -> float:
        if scheme == "in turn":
            rates = [rate / len(flops) for rate in _solo(values, setting, kind)]
        else:
            rates = values[f"rates | {kind} | {scheme}"]
        return float(sum(cost * rate for cost, rate in zip(flops, rates, strict=True))) / peak

    return of


def judge(samples: Sequence[Sample], names: Sequence[str]) -> Iterator[Bar]:
    """The goals of each setting that was measured."""
    for name in names:
        taken = _taken(samples, name)
        if not taken:
            continue
        best = _fair(taken, name)
        whole, plain, fast = (raw(name, *w) for w in ((FAST, best), (PLAIN, "in turn"), (FAST, "in turn")))
        yield Bar.at_least(
            f"{name}: raw of fast steps and {best} over the eager temporal rate, P_f as of the best equal",
            _RAW[name],
            spread(whole(v) / plain(v) for v in taken),
        )
        yield Bar.at_least(
            f"{name}: the same over the temporal rate with fast steps",
            _OVER_FAST,
            spread(whole(v) / fast(v) for v in taken),
        )
        yield Bar.at_least(
            f"{name}: the eager round in turn over the round of fast steps and chosen budgets",
            _ROUND[name],
            _round_gain(taken),
        )


def markdown(result: Result) -> str:
    """The rates and the rounds of each setting."""
    tables = []
    for name in result.settings["settings"]:
        taken = _taken(result.samples, name)
        if not taken:
            continue
        limit = next((s.values for s in result.samples if s.cell == f"{name} | limit"), None)
        lines = [
            f"**{name}: {' + '.join(SETTINGS[name])}**, batch {result.settings['batch']}, "
            f"{taken[0]['volume']} samples of each task a round{_peaks(limit)}",
            "",
            "| step | scheme | raw (samples/s) | over plain in turn | P_f | smallest share | of the peak | "
            "round (s) | over plain in turn |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for kind in (PLAIN, FAST):
            lines += [_line(taken, name, kind, scheme, limit) for scheme in ("in turn", *_schemes(taken))]
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


def _peaks(limit: Mapping[str, Json] | None) -> str:
    if limit is None:
        return ""
    plain, fast = (f"{limit[kind]['peak'] / 1e12:.3g}" for kind in (PLAIN, FAST))
    return (
        f"; a matrix product reaches {plain} TFLOP/s in the plain step's precision, {fast} in the fast one's"
    )


def _line(taken: Repeats, name: str, kind: str, scheme: str, limit: Mapping[str, Json] | None) -> str:
    mine, base = raw(name, kind, scheme), raw(name, PLAIN, "in turn")
    turn = "round | plain | in turn"
    key = f"round | {kind} | {scheme}"
    seconds = spread(v[key] for v in taken) if key in taken[0] else None
    gain: Spread | None = spread(v[turn] / v[key] for v in taken) if key in taken[0] else None
    used = None
    if limit is not None:
        used = spread(100.0 * share for share in map(limit_share(name, kind, scheme, limit), taken))
    cells = [
        kind,
        scheme,
        interval(spread(mine(v) for v in taken), 0),
        interval(spread(mine(v) / base(v) for v in taken), 2),
        interval(spread(map(fairness(name, kind, scheme), taken)), 2),
        interval(spread(map(smallest(name, kind, scheme), taken)), 2),
        "–" if used is None else f"{used.mean:.1f} %",
        interval(seconds, 2),
        interval(gain, 2),
    ]
    return f"| {' | '.join(cells)} |"


def _taken(samples: Sequence[Sample], name: str) -> Repeats:
    return [sample.values for sample in samples if sample.cell == name]


def _schemes(taken: Repeats) -> list[str]:
    """The schemes in which tasks share, equal budgets first."""
    found = [key.split(" | ")[2] for key in taken[0] if key.startswith(f"rates | {PLAIN} | ")]
    return sorted(found, key=[*EQUAL, *CHOSEN].index)


def _fair(taken: Repeats, name: str) -> str:
    """The scheme with the highest raw among those whose P_f is no lower than the best equal budgets'."""
    schemes = _schemes(taken)
    fair = {s: statistics.fmean(map(fairness(name, FAST, s), taken)) for s in schemes}
    least = max(fair[scheme] for scheme in schemes if scheme in EQUAL)
    allowed = [scheme for scheme in schemes if fair[scheme] >= least]
    return max(allowed, key=lambda scheme: statistics.fmean(map(raw(name, FAST, scheme), taken)))


def _round_gain(taken: Repeats) -> Spread:
    return spread(v["round | plain | in turn"] / v["round | fast | fedmt"] for v in taken)


def _solo(values: Mapping[str, Json], setting: str, kind: str) -> list[float]:
    suffix = ".fast" if kind == FAST else ""
    return [values[f"solo | {kind} | {model}{suffix}"][0] for model in SETTINGS[setting]]


def _shares(values: Mapping[str, Json], setting: str, kind: str, scheme: str) -> list[float]:
    solo = _solo(values, setting, kind)
    if scheme == "in turn":
        return [1.0 / len(solo)] * len(solo)
    return [rate / own for rate, own in zip(values[f"rates | {kind} | {scheme}"], solo, strict=True)]
