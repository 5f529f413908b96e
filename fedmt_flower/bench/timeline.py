"""The kernels of all tasks on one clock (Fig. 11)."""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from fedmt_flower.bench.bench import Bench
from fedmt_flower.bench.mixes import BATCH, probes, synthetic_tasks
from fedmt_flower.bench.result import Json, Result
from fedmt_flower.device.ipc.steps import Kernel
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.errors import EngineError
from fedmt_flower.plots.kernels import kernels_png

CLAIM = "under moderate sharing the tasks' kernels run side by side; isolated they leave gaps"

MODELS = ("D121", "V16", "M3")
SCHEMES = {
    "isolated": Allocation(policy=Policy.ISOLATED),
    "moderate (190 %)": Allocation(policy=Policy.STATIC, budgets=(190 / 3,)),
    "excessive (240 %)": Allocation(policy=Policy.STATIC, budgets=(80.0,)),
    "full sharing (300 %)": Allocation(policy=Policy.SHARING),
}

Lanes = Mapping[str, Sequence[Kernel]]
"""Each task's kernels, in seconds since the trace began."""


def settings(quick: bool) -> dict[str, Json]:
    """What the driver runs with."""
    return {
        "models": list(MODELS),
        "schemes": list(SCHEMES),
        "batch": 8 if quick else BATCH,
        "trace_s": 0.03 if quick else 0.15,
        "drawn_s": 0.03 if quick else 0.06,
        "quick": quick,
    }


def run(bench: Bench) -> bool:
    """Trace each scheme once; keep the trace, a picture of its beginning, and what overlapped in it."""
    bench.recorder.clear()
    seconds = float(bench.settings["trace_s"])
    tasks = synthetic_tasks(MODELS, bench.settings)
    traced: dict[str, Lanes] = {}
    with bench.profiler() as profiler:
        placed = {scheme: probes(profiler, tasks, allocation) for scheme, allocation in SCHEMES.items()}
        profiler.workers.prepare([probe for together in placed.values() for probe in together])
        for scheme, together in placed.items():
            start, lanes = profiler.trace(together, seconds)
            traced[scheme] = {
                probe.task.name: _within(kernels, start, seconds)
                for probe, kernels in zip(together, lanes, strict=True)
            }
            silent = [name for name, kernels in traced[scheme].items() if not kernels]
            if silent:
                raise EngineError(f"the profiler saw no kernel of {', '.join(silent)} under {scheme}")
            levels: dict[str, Json] = {probe.task.name: probe.seat.level for probe in together}
            bench.recorder.add(scheme, 0, {"levels": levels, **overlap(traced[scheme], seconds)})
    (bench.folder / "timeline.trace.json.gz").write_bytes(gzip.compress(chrome_trace(traced), mtime=0))
    bench.picture(kernels_png(traced, float(bench.settings["drawn_s"])))
    return True


def report(result: Result) -> str:
    """How much of the time kernels overlapped, a row for each scheme, in Markdown."""
    lines = [
        f"**{' + '.join(MODELS)}**, batch {result.settings['batch']}, {result.settings['trace_s']} s each",
        "",
    ]
    lines += [
        "| scheme | SMs | no kernel | of one task | of two | of three | kernels |",
        f"|---|{'---:|' * 6}",
    ]
    for sample in result.samples:
        values = sample.values
        levels = ", ".join(str(level) for level in values["levels"].values())
        shares = " | ".join(f"{100 * share:.0f} %" for share in values["running"])
        lines.append(f"| {sample.cell} | {levels} | {shares} | {sum(values['kernels'].values())} |")
    return "\n".join(lines)


def overlap(lanes: Lanes, seconds: float) -> dict[str, Json]:
    """How the time of a trace was used.

    Returns
    -------
    dict
        ``running``: the shares of `seconds` during which kernels of 0, 1, 2, … tasks ran; ``kernels``: how
        many each task ran; ``busy``: the share of `seconds` during which it ran any.
    """
    busy = {task: list(_merged(kernels, seconds)) for task, kernels in lanes.items()}
    edges = sorted(
        itertools.chain.from_iterable(
            [(start, 1), (end, -1)] for spans in busy.values() for start, end in spans
        )
    )
    running, before, at_once = [0.0] * (len(lanes) + 1), 0.0, 0
    for moment, change in [*edges, (seconds, 0)]:
        running[at_once] += moment - before
        before, at_once = moment, at_once + change
    return {
        "running": [round(share / seconds, 4) for share in running],
        "kernels": {task: len(kernels) for task, kernels in lanes.items()},
        "busy": {
            task: round(sum(end - start for start, end in spans) / seconds, 4) for task, spans in busy.items()
        },
    }


def chrome_trace(traced: Mapping[str, Lanes]) -> bytes:
    """The traces as JSON for Perfetto and chrome://tracing: a process per scheme, a thread per task."""
    events: list[dict[str, Json]] = []
    for pid, (scheme, lanes) in enumerate(traced.items(), start=1):
        events.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": scheme}})
        for tid, (task, kernels) in enumerate(lanes.items(), start=1):
            events.append({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": task}})
            events += [
                {
                    "ph": "X",
                    "name": kernel.name,
                    "pid": pid,
                    "tid": tid,
                    "ts": round(kernel.start * 1e6, 3),
                    "dur": round(kernel.seconds * 1e6, 3),
                }
                for kernel in kernels
            ]
    return msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})


def _within(kernels: Iterable[Kernel], start: float, seconds: float) -> tuple[Kernel, ...]:
    """The kernels that began in the `seconds` after `start`, counted from there, in their order."""
    shifted = (
        Kernel(name=kernel.name, start=kernel.start - start, seconds=kernel.seconds) for kernel in kernels
    )
    return tuple(sorted((k for k in shifted if 0 <= k.start < seconds), key=lambda kernel: kernel.start))


def _merged(kernels: Iterable[Kernel], seconds: float) -> Iterable[tuple[float, float]]:
    """When any of `kernels` ran; they must be in order."""
    since = until = -1.0
    for kernel in kernels:
        end = min(kernel.start + kernel.seconds, seconds)
        if kernel.start <= until:
            until = max(until, end)
            continue
        if until > since:
            yield since, until
        since, until = kernel.start, end
    if until > since:
        yield since, until
