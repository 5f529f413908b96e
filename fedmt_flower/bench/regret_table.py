"""The table and goals of the regret benchmark, made from its samples alone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.domain.allocation import Objective

_DEGREE: Final = 0.97
_TOP: Final = 0.03

Rates = Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One setting: schedules by their text.

    Parameters
    ----------
    name
        The setting's.
    model
        What planned.
    ours
        Our schedule for each objective.
    solo
        P_bᵢ as it was known when the schedules were tried, in the order of the tasks.
    tried
        Rates of every schedule in the first look.
    final
        Rates of ours and of the best, and P_bᵢ, repeat by repeat.
    """

    name: str
    model: str
    ours: Mapping[str, str]
    solo: Rates
    tried: Mapping[str, Rates]
    final: Sequence[tuple[Mapping[str, Rates], Rates]]

    def ranked(self, objective: str) -> list[str]:
        """The schedules of the first look, the best first."""
        return sorted(self.tried, key=lambda words: -_score(objective, self.tried[words], self.solo))

    def scores(self, objective: str, words: str) -> list[float]:
        """What a schedule that was run again came to, repeat by repeat."""
        return [_score(objective, rates[words], solo) for rates, solo in self.final]

    def best(self, objective: str) -> str:
        """The best on average of the tried schedules that were run again."""
        again = [words for words in self.final[0][0] if words in self.tried]
        return max(again, key=lambda words: statistics.fmean(self.scores(objective, words)))

    def degree(self, objective: str) -> Spread:
        """The completion degree: ours over the best, repeat by repeat."""
        ours, best = (self.scores(objective, w) for w in (self.ours[objective], self.best(objective)))
        return spread(mine / theirs for mine, theirs in zip(ours, best, strict=True))

    def rank(self, objective: str) -> int:
        """The place of ours among all schedules; those not run again count by the first look."""
        ours = statistics.fmean(self.scores(objective, self.ours[objective]))
        others = [
            statistics.fmean(self.scores(objective, words))
            if words in self.final[0][0]
            else _score(objective, rates, self.solo)
            for words, rates in self.tried.items()
            if words != self.ours[objective]
        ]
        return 1 + sum(score > ours for score in others)

    def point(self, words: str) -> tuple[float, float]:
        """Σ Pᵢ and P_f of a schedule: the means where it was run again, else of the first look."""
        if words in self.final[0][0]:
            raw, fair = (statistics.fmean(self.scores(o, words)) for o in (Objective.RAW, Objective.FAIRNESS))
            return raw, fair
        rates = self.tried[words]
        return _score(Objective.RAW, rates, self.solo), _score(Objective.FAIRNESS, rates, self.solo)

    def smallest_share(self, words: str) -> Spread:
        """min Pᵢ/P_bᵢ of a schedule that was run again."""
        return spread(
            min(rate / alone for rate, alone in zip(rates[words], solo, strict=True))
            for rates, solo in self.final
        )


def trials(samples: Sequence[Sample], names: Sequence[str], *, finished: bool = True) -> Iterator[Trial]:
    """The settings whose best were run again at least once; unless `finished`, those that were tried."""
    for name in names:
        own = {s.cell.removeprefix(f"{name} | "): s for s in samples if s.cell.startswith(f"{name} | ")}
        finals = [s.values for s in samples if s.cell == f"{name} | final"]
        if "chosen" not in own or (finished and not finals):
            continue
        chosen = own["chosen"].values
        yield Trial(
            name=name,
            model=chosen["model"],
            ours=chosen["ours"],
            solo=list(chosen["solo"].values()),
            tried={words: s.values["rates"] for words, s in own.items() if "@" in words},
            final=[(values["rates"], list(values["solo"].values())) for values in finals],
        )


def judge(found: Sequence[Trial]) -> list[Bar]:
    """The lowest completion degree and the worst rank of all settings, for each objective."""
    bars = []
    for objective, symbol in ((Objective.RAW, "P"), (Objective.FAIRNESS, "P_f")) if found else ():
        lowest = min(found, key=lambda trial: trial.degree(objective).ci95[0])
        bars.append(
            Bar.at_least(
                f"completion degree for {symbol}, lowest of {len(found)} settings ({lowest.name})",
                _DEGREE,
                lowest.degree(objective),
            )
        )
        places = {trial.name: trial.rank(objective) / _field(trial, objective) for trial in found}
        worst = max(places, key=lambda name: places[name])
        bars.append(
            Bar.counted(
                f"rank for {symbol} as a part of all schedules, worst setting ({worst})",
                _TOP,
                places[worst],
                places[worst] <= _TOP,
            )
        )
    return bars


def markdown(result: Result) -> str:
    """A row for each setting: both objectives, each with the schedule chosen for it."""
    lines = [
        "| setting | not seen | ours for P | best for P | degree P | rank | ours for P_f | best for P_f | "
        "degree P_f | rank | smallest share |",
        "|---|---|---|---|---:|---:|---|---|---:|---:|---:|",
    ]
    known: Mapping[str, Json] = result.settings["settings"]
    found = list(trials(result.samples, list(known)))
    for trial in found:
        setting = known[trial.name]
        cells = [f"{trial.name}: {' + '.join(setting['models'])}", _unseen(setting)]
        for objective in (Objective.RAW, Objective.FAIRNESS):
            cells += [
                trial.ours[objective].replace("+", " "),
                trial.best(objective).replace("+", " "),
                interval(trial.degree(objective), 3),
                f"{trial.rank(objective)} of {_field(trial, objective)}",
            ]
        cells.append(interval(trial.smallest_share(trial.ours[Objective.FAIRNESS]), 2))
        lines.append(f"| {' | '.join(cells)} |")
    models = "; ".join(dict.fromkeys(trial.model for trial in found))
    return "\n".join([*lines, "", f"A schedule is Bᵢ@Rᵢ of each task. Models: {models}."])


def _field(trial: Trial, objective: str) -> int:
    """How many schedules there are, ours among them."""
    return len({*trial.tried, trial.ours[objective]})


def _unseen(setting: Mapping[str, Json]) -> str:
    if not setting["unseen"]:
        return "–"
    return f"model {setting['unseen'][0]}" if len(setting["unseen"]) == 1 else "this mix"


def _score(objective: str, rates: Rates, solo: Rates) -> float:
    if objective == Objective.RAW:
        return sum(rates)
    return sum(rate / alone for rate, alone in zip(rates, solo, strict=True))
