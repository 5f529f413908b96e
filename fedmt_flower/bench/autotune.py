"""What cuDNN's autotuning costs at a worker's start, and what it gives."""

from __future__ import annotations

import statistics

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, solo, synthetic_task
from fedmt_flower.bench.result import Json, Result

CLAIM = "cuDNN's autotuning is left off: it delays a worker's first step by more than it saves in a round"

MODELS = ("R18", "V16")
_MODES = {"off": False, "on": True}


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {"models": list(MODELS)[: 2 if quick else None], "batch": 8 if quick else BATCH, "quick": quick}


def run(bench: Bench) -> bool:
    """Start a new worker for each model and mode, alone on the device, and time its first steps."""
    recorder = bench.recorder
    cells = [f"{model} | {mode}" for model in bench.settings["models"] for mode in _MODES]
    for mode, autotune in _MODES.items():
        with bench.profiler(autotune=autotune) as profiler:
            own = [cell for cell in cells if cell.endswith(f"| {mode}")]
            for cell, repeat in recorder.interleave(own, 1):
                name = cell.split(" | ")[0]
                task = synthetic_task(name, int(bench.settings["batch"]), bench.options.quick)
                probe = solo(profiler, task)
                (said,) = profiler.workers.prepare([probe]).values()
                rates = [profiler.measure([probe]).rates[0] for _ in range(3)]
                values: dict[str, Json] = {
                    "first_steps_s": round(said.seconds, 3),
                    "memory_mb": said.memory_bytes >> 20,
                    "rates": [round(rate, 1) for rate in rates],
                    "numerics": said.numerics,
                }
                recorder.add(cell, repeat, values)
                profiler.workers.dismiss()
    return recorder.has_all(cells, 1)


def report(result: Result) -> str:
    """First steps and solo rate with and without, a row for each model, in Markdown."""
    lines = ["| model | first steps off (s) | on (s) | rate off (samples/s) | on | memory off (MB) | on |"]
    lines += [f"|---|{'---:|' * 6}"]
    for model in result.settings["models"]:
        taken = [sample.values for mode in _MODES for sample in result.of(f"{model} | {mode}")]
        if len(taken) < len(_MODES):
            continue
        first, rate, memory = (
            [f"{values['first_steps_s']:.1f}" for values in taken],
            [f"{statistics.median(values['rates']):.0f}" for values in taken],
            [f"{values['memory_mb']}" for values in taken],
        )
        lines.append(f"| {model} | {' | '.join([*first, *rate, *memory])} |")
    return "\n".join(lines)
