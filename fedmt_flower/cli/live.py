"""A run's progress, while it goes on."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fedmt_flower.cli.tables import number, plural
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.federation.record import headline
from fedmt_flower.federation.settings import Settings


class Live:
    """Shows a run on stderr: a line for each round that is over and, on a terminal, a bar that moves."""

    def __init__(self, settings: Settings) -> None:
        self._rounds = settings.federation.rounds
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        names = ", ".join(task.name for task in settings.tasks)
        tasks, sites = plural(len(settings.tasks), "task"), plural(settings.federation.sites, "site")
        rounds = plural(self._rounds, "round")
        self._console.print(f"{tasks} ({names}) on {sites}, {rounds}, {settings.allocation.policy}")
        self._bar = self._progress.add_task("starting", total=self._rounds + 1)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def on_round(self, done: FederationRound) -> None:
        """Show a round that is over; the metrics in it are those of the models that it began with."""
        self._progress.update(self._bar, completed=done.round, description=self._next(done))
        self._console.print(
            f"{self._name(done):<12} {done.wall_s:5.1f} s  {_news(done)}", markup=False, soft_wrap=True
        )

    def _name(self, done: FederationRound) -> str:
        return "evaluation" if done.final else f"round {done.round}/{self._rounds}"

    def _next(self, done: FederationRound) -> str:
        return "evaluating" if done.round >= self._rounds else f"round {done.round + 1}/{self._rounds}"


def _news(done: FederationRound) -> str:
    """A metric of each task: of the training, or of the last evaluation."""
    parts = []
    for name, task in done.tasks.items():
        metrics = task.evaluate_metrics if done.final else task.train_metrics
        metric = headline(metrics)
        parts.append(f"{name} {metric} {number(metrics[metric])}" if metric else f"{name} –")
        if task.failures:
            parts[-1] += f" ({len(task.failures)} left out)"
    return "  ".join(parts)
