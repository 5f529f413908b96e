"""Transfers that overlap with computation, on an emulated link (Table I)."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from fedmt_flower.bench.allocation_table import SETTINGS, interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.engine_rounds import Rounds, chosen_budgets, compute_span, makespan
from fedmt_flower.bench.mixes import BATCH, synthetic_tasks
from fedmt_flower.bench.recorder import shuffled
from fedmt_flower.bench.result import Bar, Json, Result, Sample
from fedmt_flower.bench.spread import Spread, spread
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.domain.allocation import Allocation
from fedmt_flower.domain.coordination import Coordination, NetworkRules, OverlapRules
from fedmt_flower.domain.network import Link, Overlap
from fedmt_flower.domain.round import RoundReport
from fedmt_flower.plots.curves import Curve, curves_png

CLAIM = "rounds get shorter when transfers overlap with computation, most where the order is searched"

RATIOS: Final = {"heavy": 1.0, "light": 0.47, "hybrid": 0.89}
"""Seconds of transfers over seconds of computation in the paper's phased rounds."""
_GOALS: Final = {"heavy": 1.25, "light": 1.133, "hybrid": 1.173}
"""Phased over flexible: what Table I has, and more where transfers take as long as computation."""
_SWEEP: Final = "sweep"
_SWEPT: Final = "hybrid"
_GAUGED_S: Final = 1.5
_WARM_UP: Final = 0.125
"""Part of the volumes that workers get warm with."""
_ABOVE_BOUND: Final = 1.10
_PREDICTED: Final = {"median": 0.05, "95th percentile": 0.10}


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    ratios = dict(list(RATIOS.items())[: 1 if quick else None])
    return {
        "ratios": ratios,
        "mbps": 40.0 if quick else 400.0,
        "batch": 8 if quick else BATCH,
        "delta": 0.2,
        "repeats": 2 if quick else 3,
        # Of transfers over computation, by another rate of the link; volumes stay.
        "swept": [] if quick else [0.1, 0.3, 1.0, 3.0],
        "swept_compute_s": 2.0,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run every setting's rounds under each kind of overlap; then one setting's over the ratio."""
    complete, ratios = True, bench.settings["ratios"]
    with tempfile.TemporaryDirectory(prefix="fedmt-") as directory, bench.engine() as engine:
        # Hand-overs have a benchmark of their own; each would need a worker more, warm in its new seat.
        allocation = chosen_budgets(bench, Path(directory), reallocate=False)
        settings = {name: _Setting(bench, engine, name, allocation) for name in ratios}
        parts = {name: setting.phased_s(ratios[name]) for name, setting in settings.items()}
        if bench.settings["swept"]:
            phased_s = [float(bench.settings["swept_compute_s"]) * (1 + r) for r in bench.settings["swept"]]
            parts[_SWEEP] = sum(phased_s) / 4  # two kinds once, beside five kinds thrice
        for name, until in bench.recorder.shares(list(parts), weights=list(parts.values())):
            whole = False
            with bench.part(name):
                if name == _SWEEP:
                    whole = settings[_SWEPT].sweep()
                else:
                    whole = settings[name].run(ratios[name], until)
            complete &= whole
    bench.bars += _judge(bench.recorder.samples, ratios)
    if swept := _sweep(bench.recorder.samples):
        bench.picture(_picture(swept))
    return complete


def report(result: Result) -> str:
    """A row for each setting, in Markdown; then the sweep."""
    kinds = list(Overlap)
    columns = [f"{kind} (s)" for kind in ("phased", *kinds[1:])]
    lines = [
        f"Emulated link: {result.settings['mbps']:g} Mbit/s each way, full duplex.",
        "",
        f"| setting | ΣD | transfers over computation | {' | '.join(columns)} | phased over flexible | "
        "flexible over the lower bound |",
        f"|---|---:|---:|{'---:|' * (len(columns) + 2)}",
    ]
    for name in result.settings["ratios"]:
        taken = [sample.values for sample in result.of(f"{name} | rounds")]
        if not taken:
            continue
        measured = [interval(spread(v["makespan_s"][kind] for v in taken), 2) for kind in kinds]
        ratio = statistics.fmean(values["transfer_s"] / values["compute_s"] for values in taken)
        lines.append(
            f"| {name}: {' + '.join(SETTINGS[name])} | {sum(taken[0]['samples'].values())} | {ratio:.2f} | "
            f"{' | '.join(measured)} | {interval(_over(taken, Overlap.OFF), 3)} | "
            f"{interval(_above_bound(taken), 3)} |"
        )
    errors = _errors(result.samples)
    if errors:
        median, tail = np.quantile(errors, [0.5, 0.95])
        lines += [
            "",
            f"Predicted makespans are off by {median:.1%} (median) and {tail:.1%} (95th percentile).",
        ]
    if swept := _sweep(result.samples):
        lines += ["", "| transfers over computation | phased over flexible |", "|---:|---:|"]
        lines += [f"| {ratio:g} | {gain:.3f} |" for ratio, gain in swept.items()]
    return "\n".join(lines)


class _Setting:
    """One setting's rounds."""

    def __init__(self, bench: Bench, engine: EngineClient, name: str, allocation: Allocation) -> None:
        tasks = synthetic_tasks(SETTINGS[name], bench.settings)
        self._bench, self._name, self._allocation = bench, name, allocation
        self._rounds = Rounds(engine, f"overlap-{name}", tasks)
        self._bits = 8.0 * sum(self._rounds.sizes.values())
        self._transfer_s = 2e-6 * self._bits / float(bench.settings["mbps"])

    def phased_s(self, ratio: float) -> float:
        """Seconds of a phased round whose transfers take `ratio` of its computation's."""
        return self._transfer_s * (1 + 1 / ratio)

    def run(self, ratio: float, until: float) -> bool:
        """Take the repeats that are missing, until that moment; whether all are there then."""
        recorder, repeats = self._bench.recorder, int(self._bench.settings["repeats"])
        cell = f"{self._name} | rounds"
        if recorder.has_all([cell], repeats):
            return True
        if recorder.left_s <= 0:
            return False
        mbps, kinds = float(self._bench.settings["mbps"]), list(Overlap)
        volumes = self._volumes(f"{self._name} | volumes", self._transfer_s / ratio)
        self._warm_up(volumes, mbps, kinds)
        # The kinds that overlap save a quarter or more of a phased round.
        expected_s = self.phased_s(ratio) * (1 + 0.75 * (len(kinds) - 1))
        for _, repeat in recorder.interleave([cell], repeats, until, expected_s=expected_s):
            values = self._compare(volumes, mbps, kinds, repeat)
            recorder.add(cell, repeat, values | {"transfer_s": self._transfer_s, "samples": volumes})
        return recorder.has_all([cell], repeats)

    def sweep(self) -> bool:
        """Phased and flexible once for every ratio of transfers to computation, by the link's rate."""
        recorder = self._bench.recorder
        seconds = float(self._bench.settings["swept_compute_s"])
        cells = [f"sweep | {ratio}" for ratio in self._bench.settings["swept"]]
        if recorder.has_all(cells, 1):
            return True
        if recorder.left_s <= 0:
            return False
        volumes, kinds = self._volumes("sweep | volumes", seconds), [Overlap.OFF, Overlap.FLEXIBLE]
        for cell, repeat in recorder.interleave(cells, 1):
            mbps = 2e-6 * self._bits / (float(cell.split(" | ")[1]) * seconds)
            self._warm_up(volumes, mbps, kinds)
            recorder.add(cell, repeat, self._compare(volumes, mbps, kinds, repeat))
        return recorder.has_all(cells, 1)

    def _warm_up(self, volumes: Mapping[str, int], mbps: float, kinds: Sequence[Overlap]) -> None:
        """Have workers start, and take first steps, in the seats that each kind gives them.

        A part of the volumes over a link as much faster is planned as the whole is.
        """
        for kind in kinds:
            self._run(kind, volumes, mbps / _WARM_UP, part=_WARM_UP)

    def _run(
        self, kind: Overlap, volumes: Mapping[str, int], mbps: float, *, part: float = 1.0
    ) -> RoundReport:
        rules = OverlapRules(policy=kind, delta=float(self._bench.settings["delta"]))
        link = Link(up_mbps=mbps, down_mbps=mbps)
        coordination = Coordination(overlap=rules, network=NetworkRules(link=link))
        return self._rounds.run(volumes, self._allocation, coordination, part=part)

    def _compare(
        self, volumes: Mapping[str, int], mbps: float, kinds: Sequence[Overlap], repeat: int
    ) -> dict[str, Json]:
        """A round of every kind in a new order: one sample, never a part of it on another machine."""
        values: dict[str, Json] = {"makespan_s": {}, "predicted_s": {}, "lower_bound_s": {}}
        for kind in shuffled(kinds, f"{self._name} {repeat}"):
            report = self._run(kind, volumes, mbps)
            values["makespan_s"][kind] = round(makespan(report), 4)
            if report.forecast is not None:
                values["predicted_s"][kind] = round(report.forecast.makespan_s, 4)
                values["lower_bound_s"][kind] = round(report.forecast.lower_bound_s, 4)
            if kind is Overlap.OFF:
                values["compute_s"] = round(compute_span(report), 4)
        return values

    def _volumes(self, cell: str, compute_s: float) -> dict[str, int]:
        """Equal Dᵢ in whole batches that compute for about `compute_s` together; the same on resuming."""
        batch = int(self._bench.settings["batch"])

        def choose() -> dict[str, Json]:
            names = list(self._rounds.sizes)
            volume = 8 * batch
            self._rounds.run(dict.fromkeys(names, volume), self._allocation)
            # From warm workers a few steps tell how long a short round is, and that the wanted one.
            for wanted in (min(_GAUGED_S, compute_s), compute_s):
                report = self._rounds.run(dict.fromkeys(names, volume), self._allocation)
                volume = batch * max(4, round(volume * wanted / compute_span(report) / batch))
            return dict.fromkeys(names, volume)

        return self._bench.recorder.take(cell, choose)


def _over(taken: Sequence[dict[str, Json]], kind: Overlap) -> Spread:
    """Makespan of `kind` over that of the flexible order, repeat by repeat."""
    return spread(v["makespan_s"][kind] / v["makespan_s"][Overlap.FLEXIBLE] for v in taken)


def _above_bound(taken: Sequence[dict[str, Json]]) -> Spread | None:
    """Makespan of the flexible order over its lower bound, where it was planned by a prediction."""
    kind = Overlap.FLEXIBLE
    known = [v for v in taken if v["lower_bound_s"].get(kind)]
    return spread(v["makespan_s"][kind] / v["lower_bound_s"][kind] for v in known) if known else None


def _errors(samples: Sequence[Sample]) -> list[float]:
    """How far predicted makespans are from those observed, as fractions of these."""
    return [
        abs(predicted / sample.values["makespan_s"][kind] - 1.0)
        for sample in samples
        if "predicted_s" in sample.values
        for kind, predicted in sample.values["predicted_s"].items()
    ]


def _sweep(samples: Sequence[Sample]) -> dict[float, float]:
    """Phased over flexible by the ratio of transfers to computation."""
    return {
        float(sample.cell.split(" | ")[1]): _over([sample.values], Overlap.OFF).mean
        for sample in sorted(samples, key=lambda sample: sample.cell)
        if sample.cell.startswith("sweep | ") and "makespan_s" in sample.values
    }


def _judge(samples: Sequence[Sample], names: Mapping[str, float]) -> Iterator[Bar]:
    slower = rounds = 0
    for name in names:
        taken = [sample.values for sample in samples if sample.cell == f"{name} | rounds"]
        if not taken:
            continue
        yield Bar.at_least(f"{name}: phased over flexible", _GOALS[name], _over(taken, Overlap.OFF))
        above = _above_bound(taken)
        if above is not None:
            yield Bar.at_most(f"{name}: flexible over the lower bound", _ABOVE_BOUND, above)
        for kind in list(Overlap)[:-1] if len(taken) > 1 else ():  # a single repeat knows no noise
            rounds += 1
            slower += _over(taken, kind).ci95[1] < 1.0
    if rounds:
        yield Bar.counted(
            f"of {rounds} comparisons, flexible is slower beyond the noise in", 0, slower, not slower
        )
    errors = _errors(samples)
    if errors:
        for (what, goal), value in zip(
            _PREDICTED.items(), np.quantile(errors, [0.5, 0.95]).tolist(), strict=True
        ):
            yield Bar.counted(f"error of the predicted makespan, {what}", goal, value, value <= goal)


def _picture(swept: Mapping[float, float]) -> bytes:
    curve = Curve(label=f"{_SWEPT}: {' + '.join(SETTINGS[_SWEPT])}", x=list(swept), y=list(swept.values()))
    return curves_png(
        {"phased over flexible": [curve]}, x_label="transfers over computation", from_zero=False
    )
