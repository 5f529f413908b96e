"""What every benchmark's driver is given, and how one is run."""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, cast

import psutil

from fedmt_flower.bench.recorder import Recorder
from fedmt_flower.bench.result import Bar, Json, Machine, Result, installed, save, this_machine
from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.backends.mps import MpsBackend
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.device.profile.measurement import Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.device.profile.telemetry import Usage, source_for
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.errors import ConfigError, EngineError, expected_one_of

log = logging.getLogger(__name__)

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
    "reallocation": 280.0,
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
    "server": 1200.0,
    "exchange": 400.0,
    "streaming": 900.0,
}
"""How long each takes samples if nothing else is said."""

HOST = frozenset({"predict", "search-budgets", "search-order", "server", "exchange", "streaming"})
"""The benchmarks that use no device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a benchmark is to be run.

    Parameters
    ----------
    backend
        ``mps`` or ``cpu``.
    index
        The GPU, as NVML counts.
    quick
        Small networks and short windows: tries the driver, measures nothing.
    out
        The folder of results; each kind of machine has its own in it.
    budget_s
        Seconds after which no further sample is begun.
    resume
        Whether to go on from the samples that an earlier run left.
    command
        The command line, for the record.
    model
        The throughput model that plans, as `fedmt fit` wrote it; None takes what the benchmark has.
    profiles
        Files of `fedmt profile`, for the benchmarks that fit models themselves.
    """

    backend: Backend
    out: Path
    budget_s: float
    command: str
    index: int = 0
    quick: bool = False
    resume: bool = False
    model: Path | None = None
    profiles: tuple[Path, ...] = ()

    @property
    def inputs(self) -> dict[str, Json]:
        """What identifies the files that were given; ConfigError if one cannot be read."""
        files = {"model": () if self.model is None else (self.model,), "profiles": self.profiles}
        return {key: [_digest(path) for path in paths] for key, paths in files.items() if paths}


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


class Part(Protocol):
    """What a benchmark measures with one set of workers."""

    def run(self, until: float) -> bool:
        """Take what is missing, until that moment of the monotonic clock; whether nothing is then."""
        ...


class Bench:
    """One run of one driver.

    `facts` and `bars` are the driver's to fill; `failed` has what ended each part that failed.
    """

    def __init__(self, name: str, options: Options, settings: dict[str, Json], machine: Machine) -> None:
        self.name = name
        self.options = options
        self.settings = settings
        self.machine = machine
        self.facts: dict[str, Json] = {}
        self.failed: dict[str, str] = {}
        self.bars: list[Bar] = []
        self.folder = options.out / machine.kind
        deadline = time.monotonic() + options.budget_s
        self.recorder = Recorder(self.folder / f"{name}.samples.jsonl", settings, options.resume, deadline)

    @contextmanager
    def profiler(
        self, *, autotune: bool = False, hertz: float = 30.0, window: Window | None = None
    ) -> Iterator[Profiler]:
        """Measuring workers on the benchmark's device, which take rates over `window` unless it is quick."""
        if self.options.quick:
            window = Window(settle_s=0.02, length_s=0.1, longest_s=1.0)
        self.facts["window"] = asdict(window or Window())
        with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
            backend = self.backend(Path(directory))
            with Profiler(
                backend,
                self.options.index,
                Path(directory) / "workers",
                window=window,
                autotune=autotune,
                hertz=hertz,
            ) as profiler:
                self.facts["backend"] = backend.name
                self.facts["telemetry lacks"] = profiler.telemetry.lacks
                yield profiler
                self.facts["started in the last call"] = {
                    "workers": profiler.workers.started,
                    "seconds": round(profiler.workers.starting_s, 1),
                }

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Let an EngineError end this part only; the first of each is kept for the record."""
        try:
            yield
        except EngineError as error:
            log.error("%s, %s: %s", self.name, name, error)
            self.failed.setdefault(name, str(error))

    def in_parts(
        self, profiler: Profiler, names: Sequence[str], part: Callable[[Bench, Profiler, str], Part]
    ) -> bool:
        """Take one part after the other, each with workers of its own, since all would not fit the memory.

        Each has its share of the time; whether nothing is missing then.
        """
        complete = True
        for name, until in self.recorder.shares(names):
            whole = False
            with self.part(name):
                whole = part(self, profiler, name).run(until)
            complete &= whole
            profiler.workers.begin_anew()
        return complete

    @contextmanager
    def engine(self) -> Iterator[EngineClient]:
        """An engine of the benchmark's own, in a home of its own; ended, with its workers, afterwards."""
        settings = DeviceSettings(
            backend=self.options.backend, index=self.options.index, idle_timeout_s=120.0
        )
        before = os.environ.get("FEDMT_HOME")
        with tempfile.TemporaryDirectory(prefix="fedmt-") as directory:
            os.environ["FEDMT_HOME"] = directory
            try:
                client = connect(settings)
                if not isinstance(client, EngineClient):
                    raise ConfigError(f"backend {settings.backend}: a benchmark needs an engine of its own")
                self.facts["backend"] = client.backend
                try:
                    yield client
                finally:
                    client.stop()
            finally:
                if before is None:
                    del os.environ["FEDMT_HOME"]
                else:
                    os.environ["FEDMT_HOME"] = before

    def backend(self, directory: Path) -> DeviceBackend:
        """The benchmark's device, not yet open."""
        if self.options.backend is Backend.CPU:
            return CpuBackend()
        return MpsBackend(self.options.index, directory)

    def picture(self, png: bytes) -> None:
        """Keep the benchmark's picture beside its record."""
        (self.folder / f"{self.name}.png").write_bytes(png)


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


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; expected a file of fedmt fit or fedmt profile"
        ) from error


def memory_in_use(options: Options) -> int:
    """Bytes in use on the benchmark's device."""
    source = source_for(options.backend, options.index)
    try:
        return source.read().memory_bytes
    finally:
        source.close()


def processes_marked(variable: str, value: str) -> list[int]:
    """The processes that were started with `variable` set to `value` and have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return found


def usage_values(usage: Usage) -> dict[str, Json]:
    """A device's usage as a record keeps it."""
    values = {
        key: round(value, 3) if isinstance(value, float) else value for key, value in asdict(usage).items()
    }
    return values | {"slowdowns": sorted(usage.slowdowns)}
