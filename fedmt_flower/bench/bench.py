"""What every benchmark's driver is given: how it is to be run, and the run."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from fedmt_flower.bench.recorder import Recorder, as_read, unfold
from fedmt_flower.bench.result import Bar, Json, Machine, load
from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.backends.cpu import CpuBackend
from fedmt_flower.device.backends.mps import MpsBackend
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.device.profile.measurement import Window
from fedmt_flower.device.profile.profiler import Profiler
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.errors import ConfigError, EngineError

log = logging.getLogger(__name__)


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
        Whether to go on from the samples that an earlier run left, in its record if nowhere else.
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
        samples, record = self.folder / f"{name}.samples.jsonl", self.folder / f"{name}.json"
        by_record = options.resume and not samples.exists() and record.exists()
        if by_record and not (earlier := load(record)).complete:
            if earlier.settings == as_read(settings):
                unfold(earlier, samples)
            else:
                log.warning("%s: begins anew, since %s has samples of other settings", name, record)
        self.recorder = Recorder(samples, settings, options.resume, deadline)

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


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; expected a file of fedmt fit or fedmt profile"
        ) from error
