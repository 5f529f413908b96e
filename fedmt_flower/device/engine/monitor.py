"""What an engine tells those who watch it, in Prometheus' text format."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain

import psutil
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from fedmt_flower.device.ipc.frames import EngineStatus
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class _Tally:
    """One task's rounds so far: `done` and `failed` ones, samples, seconds of training, and the latest."""

    latest: TaskReport
    budget: float
    done: int = 0
    failed: int = 0
    samples: int = 0
    compute_s: float = 0.0


class Monitor(Collector):
    """Counts an engine's rounds and gives them, with what the engine is doing now, as metrics.

    It may be asked from any thread: it reads whole values only, never one that is being changed.

    Parameters
    ----------
    status
        Tells what the engine is doing.
    memory
        Tells the bytes in use on its device, and those that it has.
    """

    def __init__(self, status: Callable[[], EngineStatus], memory: Callable[[], tuple[int, int]]) -> None:
        self._status = status
        self._memory = memory
        self._tallies: dict[str, _Tally] = {}
        self._busy_s = 0.0
        self._waited_s = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def record(self, report: RoundReport) -> None:
        """Count a round that has ended."""
        self._busy_s += report.wall_s
        self._waited_s += report.waited_s
        budgets = {place.task: place.budget for place in report.plan.tasks}
        for task in report.tasks:
            before = self._tallies.get(task.task) or _Tally(task, budgets[task.task])
            done = task.status is Status.DONE
            self._tallies[task.task] = replace(
                before,
                latest=task if done else before.latest,
                budget=budgets[task.task],
                done=before.done + done,
                failed=before.failed + (not done),
                samples=before.samples + task.samples,
                compute_s=before.compute_s + task.compute_s,
            )

    def text(self) -> str:
        """All metrics, as Prometheus reads them."""
        return generate_latest(self._registry).decode()

    @contextmanager
    def serving(self, port: int | None) -> Iterator[None]:
        """Answer ``GET /metrics`` on the loopback's `port` while the context lasts; None answers nowhere.

        Raises
        ------
        EngineError
            If the port is taken.
        """
        if port is None:
            yield
            return
        try:
            server, thread = start_http_server(port, addr=_LOOPBACK, registry=self._registry)
        except OSError as error:
            raise EngineError(
                f"metrics_port: {_LOOPBACK}:{port} cannot be used: {error.strerror}; choose another"
            ) from error
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def collect(self) -> Iterable[Metric]:
        """The metrics of this moment, all of them labelled with the device."""
        status = self._status()
        parts = (self._of_engine(status), _of_workers(status), _of_tasks(dict(self._tallies)))
        for family in chain(*parts):
            family.samples = [
                s._replace(labels={"device": status.device, **s.labels}) for s in family.samples
            ]
            yield family

    def _of_engine(self, status: EngineStatus) -> Iterator[Metric]:
        about = GaugeMetricFamily("fedmt_engine", "Constantly 1.", labels=["backend", "version"])
        about.add_metric([status.backend, status.version], 1)
        yield about
        yield GaugeMetricFamily(
            "fedmt_engine_uptime_seconds", "Time since the engine's start.", status.uptime_s
        )
        rounds = CounterMetricFamily("fedmt_rounds", "Rounds served.", labels=["site"])
        for site, count in status.sites.items():
            rounds.add_metric([site], count)
        yield rounds
        yield CounterMetricFamily("fedmt_busy_seconds", "Time spent in rounds.", self._busy_s)
        yield CounterMetricFamily(
            "fedmt_waiting_seconds", "Time that rounds stood in the queue.", self._waited_s
        )
        yield GaugeMetricFamily("fedmt_queue_length", "Rounds that wait for the device.", len(status.queue))
        try:
            used, total = self._memory()
        except EngineError as error:
            log.warning("no metrics of the device's memory: %s", error)
            return
        yield GaugeMetricFamily("fedmt_device_memory_used_bytes", "Memory in use on the device.", used)
        yield GaugeMetricFamily("fedmt_device_memory_bytes", "Memory that the device has.", total)


def merge(texts: Iterable[str]) -> str:
    """The metrics of several engines as one text."""
    families: dict[str, Metric] = {}
    for text in texts:
        for family in text_string_to_metric_families(text):
            known = families.setdefault(family.name, family)
            if known is not family:
                known.samples += family.samples
    registry = CollectorRegistry()
    registry.register(_Constant(families.values()))
    return generate_latest(registry).decode()


class _Constant(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


_COUNTERS: dict[str, tuple[str, Callable[[_Tally], float]]] = {
    "fedmt_task_samples": ("Samples trained on, each epoch's counted.", lambda t: t.samples),
    "fedmt_task_compute_seconds": ("Time spent in training steps.", lambda t: t.compute_s),
}
_GAUGES: dict[str, tuple[str, Callable[[_Tally], float]]] = {
    "fedmt_task_rate_samples_per_second": ("Training rate of the latest round.", lambda t: t.latest.rate),
    "fedmt_task_budget_percent": ("Share of the device in the latest round.", lambda t: t.budget),
    "fedmt_task_level": (
        "What that share comes to: multiprocessors of a GPU, threads on CPUs.",
        lambda t: t.latest.level,
    ),
    "fedmt_task_device_memory_bytes": (
        "Most memory of the GPU that torch held in the latest round; 0 on CPUs.",
        lambda t: t.latest.memory_bytes,
    ),
}


def _of_tasks(tallies: dict[str, _Tally]) -> Iterator[Metric]:
    rounds = CounterMetricFamily(
        "fedmt_task_rounds", "Rounds of the task, by how they ended.", labels=["task", "status"]
    )
    for task, tally in tallies.items():
        rounds.add_metric([task, Status.DONE], tally.done)
        rounds.add_metric([task, Status.FAILED], tally.failed)
    yield rounds
    for kind, families in ((CounterMetricFamily, _COUNTERS), (GaugeMetricFamily, _GAUGES)):
        for name, (help_, value) in families.items():
            family = kind(name, help_, labels=["task"])
            for task, tally in tallies.items():
                family.add_metric([task], value(tally))
            yield family


def _of_workers(status: EngineStatus) -> Iterator[Metric]:
    count: Counter[tuple[str, str]] = Counter()
    memory: Counter[str] = Counter()
    for worker in status.workers:
        count[worker.task, "busy" if worker.busy else "idle"] += 1
        memory[worker.task] += _own_memory(worker.pid)
    workers = GaugeMetricFamily("fedmt_workers", "Processes of the task.", labels=["task", "state"])
    for labels, number in count.items():
        workers.add_metric(labels, number)
    yield workers
    held = GaugeMetricFamily(
        "fedmt_task_memory_bytes", "Memory of the host that only the task's workers hold.", labels=["task"]
    )
    for task, size in memory.items():
        held.add_metric([task], size)
    yield held


def _own_memory(pid: int) -> int:
    """What the end of the process `pid` would free; 0 if it has ended."""
    try:
        return int(psutil.Process(pid).memory_full_info().uss)
    except psutil.Error:
        return 0
