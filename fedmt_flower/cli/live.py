"""A run's progress, while it goes on."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from fedmt_flower.cli.tables import number, plural
from fedmt_flower.device.ipc.frames import EngineStatus, WorkerStatus
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.federation.record import headline
from fedmt_flower.federation.settings import Settings


class _RunTime(TimeElapsedColumn):
    """The time of the run's own bar only."""

    def render(self, task: Task) -> Text:
        return super().render(task) if task.id == 0 else Text("")


class Live:
    """Shows a run on stderr: a line for each round that is over and, on a terminal, bars that move.

    One bar is the run's, the others show what each task's worker is doing.
    """

    def __init__(self, settings: Settings) -> None:
        self._rounds = settings.federation.rounds
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[doing]}"),
            _RunTime(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        names = [task.name for task in settings.tasks]
        tasks, sites = plural(len(names), "task"), plural(settings.federation.sites, "site")
        rounds = plural(self._rounds, "round")
        link = settings.coordination.network.link
        how = f"{settings.allocation.policy}{f'; emulated link: {link}' if link else ''}"
        self._console.print(f"{tasks} ({', '.join(names)}) on {sites}, {rounds}, {how}", soft_wrap=True)
        self._run = self._progress.add_task("run", total=self._rounds + 1, doing="starting")
        self._bars = {name: self._progress.add_task(f"  {name}", total=None, doing="") for name in names}

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_round(self, done: FederationRound) -> None:
        """Show a round that is over."""
        doing = "evaluation" if done.round >= self._rounds else f"round {done.round + 1}/{self._rounds}"
        self._progress.update(self._run, completed=done.round, doing=doing)
        name = "evaluation" if done.final else f"round {done.round}/{self._rounds}"
        self._console.print(f"{name:<12} {done.wall_s:5.1f} s  {_news(done)}", markup=False, soft_wrap=True)

    def on_status(self, status: EngineStatus) -> None:
        """Show what the workers are doing."""
        if not self._progress.tasks[self._run].completed:
            self._progress.update(self._run, doing=f"round 1/{self._rounds}")
        for worker in status.workers:
            if (bar := self._bars.get(worker.task)) is not None:
                self._progress.update(
                    bar, completed=worker.samples, total=worker.total or None, doing=_doing(worker)
                )


def _doing(worker: WorkerStatus) -> str:
    if not worker.busy:
        return ""
    count = f", {worker.samples:,} of {worker.total:,} samples" if worker.total else ""
    return f"{worker.site}{count}"


def _news(done: FederationRound) -> str:
    """A metric of each task: of the training, or of the last evaluation."""
    parts = []
    for name, task in done.tasks.items():
        metrics = task.evaluate_metrics if done.final else task.train_metrics
        metric = headline(metrics)
        parts.append(f"{name} {metric} {number(metrics[metric])}" if metric else f"{name} –")
        if task.failures:
            parts[-1] += f" ({plural(len(task.failures), 'failure')})"
    return "  ".join(parts)
