"""Which benchmarks there are, and how the driver of one is run."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol, cast

from fedmt_flower.bench.bench import Bench, Options
from fedmt_flower.bench.result import Bar, Json, Result, installed, save, this_machine
from fedmt_flower.domain.device import Backend
from fedmt_flower.errors import ConfigError, EngineError, expected_one_of

DRIVERS = {
    "allocation": "the allocation schemes on the paper's three settings (Fig. 9)",
    "round": "whole rounds under chosen budgets, against every baseline and the exhaustive best",
    "regret": "chosen schedules against the best of many tried (Fig. 7, Table III, Fig. 13)",
    "regret-elsewhere": "the same with a model that was fitted on another kind of device",
    "step": "plain and fast training steps, in turn and shared",
    "scaling": "throughput as tasks are added (Table IV)",
    "devices": "the same combinations on several kinds of GPU (Table V)",
    "energy": "joules of whole rounds",
    "overlap": "transfers that overlap with computation (Table I)",
    "overhead": "what a round costs besides its training, and a cold start of the engine",
    "batching": "batch sizes in proportion to the loads, over several devices (Fig. 10)",
    "reallocation": "budgets that change when a task ends its share",
    "time-to-accuracy": "how accurate models become, and how soon",
    "predict": "how well co-running rates are predicted (Eq. 4)",
    "faults": "what fails on the GPU fails by name, and the next round works",
    "equality": "weights and rounds on the GPU, bit for bit",
    "federation": "two SuperNodes as two sites of one engine, on the GPU",
    "instead": "one run of all tasks beside a Flower run for each, as users do today",
    "rv_sweep": "throughput over the virtual resource R_v (Fig. 6)",
    "timeline": "the kernels of all tasks on one clock (Fig. 11)",
    "occupancy": "SM occupancy over time (Fig. 12)",
    "autotune": "what cuDNN's autotuning costs at a worker's start, and what it gives",
    "search-budgets": "how long it takes to choose budgets and batch sizes (Eq. 5)",
    "search-order": "how long it takes to choose the start order (Table II)",
    "server": "what a round costs the server as the federation grows",
    "exchange": "Flower's own time in a deployed round",
    "streaming": "a site's round over a real network, by one message and by a SuperNode for each task",
}
"""The benchmarks, the most important first."""

BUDGETS_S = {
    "allocation": 480.0,
    "round": 480.0,
    "regret": 480.0,
    "regret-elsewhere": 480.0,
    "step": 480.0,
    "scaling": 480.0,
    "devices": 240.0,
    "energy": 240.0,
    "overlap": 640.0,
    "overhead": 200.0,
    "batching": 200.0,
    "reallocation": 600.0,
    "time-to-accuracy": 600.0,
    "predict": 480.0,
    "faults": 60.0,
    "equality": 90.0,
    "federation": 400.0,
    "instead": 560.0,
    "rv_sweep": 185.0,
    "timeline": 30.0,
    "occupancy": 75.0,
    "autotune": 80.0,
    "search-budgets": 120.0,
    "search-order": 120.0,
    "server": 1500.0,
    "exchange": 400.0,
    "streaming": 900.0,
}
"""How long each takes samples if nothing else is said."""

HOST = frozenset({"predict", "search-budgets", "search-order", "server", "exchange", "streaming"})
"""The benchmarks that use no device."""


class Driver(Protocol):
    """A module of this package that measures one claim."""

    CLAIM: str

    def settings(self, quick: bool) -> dict[str, Json]:
        """What it runs with; samples of different settings are not mixed."""
        ...

    def run(self, bench: Bench) -> bool:
        """Take the samples that are missing, derive facts, bars and pictures; whether nothing is missing."""
        ...

    def report(self, result: Result) -> str:
        """The tables of a record, in Markdown."""
        ...


class Comparing(Driver, Protocol):
    """A driver whose records of two kinds of device are compared."""

    def compare(self, results: Sequence[Result]) -> tuple[str, list[Bar]]:
        """The two side by side, in Markdown, and the goals of that."""
        ...


def load_driver(name: str) -> Driver:
    """The driver of a benchmark; ConfigError if there is none of that name."""
    if name not in DRIVERS:
        raise ConfigError(f"benchmark {name!r}: {expected_one_of(name, DRIVERS)}")
    return cast(Driver, importlib.import_module(f"fedmt_flower.bench.{name.replace('-', '_')}"))


def measure(name: str, options: Options, tell: Callable[[str], None]) -> Result:
    """Run a benchmark and write its record.

    Parameters
    ----------
    tell
        Told, in a line each, what is going on.

    Raises
    ------
    ConfigError
        If there is no such benchmark, or it cannot resume.
    EngineError
        If the device cannot be used, or what failed left no sample.
    """
    driver = load_driver(name)
    machine = this_machine(None if options.backend is Backend.CPU else options.index)
    settings = driver.settings(options.quick) | options.inputs
    bench = Bench(name, options, settings, machine)
    tell(f"{name}: {driver.CLAIM}; on {machine.gpu or 'CPUs'}, at most {options.budget_s:.0f} s")
    complete = driver.run(bench)
    if bench.failed:
        if not bench.recorder.samples:
            part, error = next(iter(bench.failed.items()))
            raise EngineError(f"{name}: nothing could be measured; {part}: {error}")
        bench.facts["failed"] = bench.failed
    result = Result(
        name=name,
        claim=driver.CLAIM,
        machine=machine,
        versions=installed(),
        command=options.command,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(bench.recorder.seconds, 1),
        settings=settings,
        complete=complete,
        samples=tuple(bench.recorder.samples),
        facts=bench.facts,
        bars=tuple(bench.bars),
    )
    save(result, bench.folder / f"{name}.json")
    if complete:
        bench.recorder.discard()
    return result
