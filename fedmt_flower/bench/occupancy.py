"""SM occupancy over time under the schemes (Fig. 12)."""

from __future__ import annotations

import statistics
from typing import Any

from fedmt_flower.bench.allocation_table import interval
from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, SCHEMES, probes, solo, synthetic_tasks, volumes_of
from fedmt_flower.bench.result import Json, Result
from fedmt_flower.bench.spread import spread
from fedmt_flower.device.profile.measurement import Probe
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.plots.curves import Curve, curves_png

CLAIM = "sharing keeps more of the GPU's warps at work than running in turn"

MODELS = ("R101", "D121", "M3")
COMPARED = ("temporal", "isolated", "static 60", "sharing")


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS),
        "schemes": list(COMPARED),
        "batch": 8 if quick else BATCH,
        "repeats": 2 if quick else 5,
        "round_s": 0.2 if quick else 2.0,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Run a round of equal volumes under each scheme, sampling; draw one repeat of each."""
    recorder = bench.recorder
    tasks = synthetic_tasks(MODELS, bench.settings)
    count = int(bench.settings["repeats"])
    with bench.profiler(hertz=50.0) as profiler:
        placed = {scheme: probes(profiler, tasks, SCHEMES[scheme]) for scheme in COMPARED}
        if not recorder.has_all(COMPARED, count):
            profiler.workers.prepare([probe for together in placed.values() for probe in together])
            alone = [solo(profiler, task) for task in tasks]
            volume = recorder.take("volume", lambda: _volume(profiler, alone, bench.settings))["samples"]
            for scheme, repeat in recorder.interleave(COMPARED, count):
                volumes = [(probe, volume) for probe in placed[scheme]]
                taken = profiler.cover(volumes, in_turn=scheme == "temporal")
                end = taken.began + max(taken.ends)
                readings = profiler.telemetry.readings(taken.began, end)
                series: dict[str, Json] = {
                    "makespan_s": round(taken.seconds, 4),
                    "occupancy": taken.usage.occupancy,
                    "sm_utilisation": taken.usage.sm_utilisation,
                    "utilisation": taken.usage.utilisation,
                    "energy_j": taken.usage.energy_j,
                    "at_s": [round(r.at - taken.began, 4) for r in readings],
                    "occupancy_at": [r.occupancy for r in readings],
                    "utilisation_at": [r.utilisation for r in readings],
                }
                recorder.add(scheme, repeat, series, taken.spoiled)
    taken_first = {s.cell: s.values for s in recorder.samples if s.repeat == 0}
    firsts = {scheme: taken_first[scheme] for scheme in COMPARED if scheme in taken_first}
    bench.picture(_picture(firsts))
    return recorder.has_all(COMPARED, count)


def report(result: Result) -> str:
    """Means over whole rounds, a row for each scheme, in Markdown."""
    lines = [f"**{' + '.join(MODELS)}**, batch {result.settings['batch']}, equal volumes, whole rounds", ""]
    lines += ["| scheme | SM occupancy | SMs with work | utilisation | round (s) | energy (J) |"]
    lines += [f"|---|{'---:|' * 5}"]
    for scheme in COMPARED:
        taken = [sample.values for sample in result.of(scheme)]
        if not taken:
            continue
        columns = [
            _mean_of(taken, "occupancy", " %"),
            _mean_of(taken, "sm_utilisation", " %"),
            _mean_of(taken, "utilisation", " %"),
            interval(spread(values["makespan_s"] for values in taken), 2),
            _mean_of(taken, "energy_j", ""),
        ]
        lines.append(f"| {scheme} | {' | '.join(columns)} |")
    return "\n".join(lines)


def _volume(profiler: Profiler, alone: list[Probe], settings: dict[str, Json]) -> dict[str, Json]:
    """Dᵢ in whole batches, such that the round in turn takes about its time."""
    rates = [profiler.measure([probe]).rates[0] for probe in alone]
    volumes = volumes_of(float(settings["round_s"]), rates, [1] * len(rates), int(settings["batch"]))
    return {"samples": volumes[0]}


def _mean_of(taken: list[dict[str, Any]], key: str, unit: str) -> str:
    known = [values[key] for values in taken if values[key] is not None]
    return f"{statistics.fmean(known):.0f}{unit}" if known else "–"


def _picture(firsts: dict[str, dict[str, Any]]) -> bytes:
    def curves(key: str) -> list[Curve]:
        found = []
        for scheme, values in firsts.items():
            known = [(at, y) for at, y in zip(values["at_s"], values[key], strict=True) if y is not None]
            found.append(Curve(label=scheme, x=[at for at, _ in known], y=[y for _, y in known]))
        return found

    panels = {"SM occupancy (%)": curves("occupancy_at"), "utilisation (%)": curves("utilisation_at")}
    panels = {title: found for title, found in panels.items() if any(curve.x for curve in found)}
    return curves_png(panels, x_label="seconds since the round began", marker="")
