"""Writes a run down while it goes on."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.federation.pacing import pace_of
from fedmt_flower.federation.record import (
    Outcome,
    Summary,
    TaskSummary,
    entries,
    summarise_tasks,
)
from fedmt_flower.federation.run_folder import RunFolder
from fedmt_flower.federation.settings import Settings
from fedmt_flower.federation.sites import simulated

_VERSIONS = ("fedmt_flower", "flwr", "torch")


class Recorder:
    """Keeps the folder of a run up to date, round by round.

    What is in the folder is whole at any time: a run that is killed leaves all its finished rounds. One that
    goes on from a checkpoint writes them again.
    """

    def __init__(self, settings: Settings) -> None:
        self.folder = RunFolder.create(
            settings.folder, settings.text, again=bool(settings.federation.checkpoint)
        )
        self._settings = settings
        self._rounds: list[FederationRound] = []
        self._files: dict[str, tuple[str, str]] = {}
        self._started = time.time()
        self._clock = time.monotonic()
        self._simulated = False
        self.folder.save_summary(self.summary(Outcome.RUNNING))

    def on_round(self, done: FederationRound) -> None:
        """Write a finished round."""
        self._simulated = self._simulated or simulated()
        self._rounds.append(done)
        self.folder.append(entries(done), first=len(self._rounds) == 1)
        self.folder.save_summary(self.summary(Outcome.RUNNING))

    def finish(self, weights: Mapping[str, Weights]) -> Summary:
        """Write the final weights of every task and the last summary."""
        for task, state in weights.items():
            self._files[task] = self.folder.save_weights(task, state)
        return self._close(Outcome.FINISHED, "")

    def give_up(self, outcome: Outcome, cause: str) -> Summary:
        """Write that the run ended early, and why."""
        return self._close(outcome, cause)

    def summary(self, outcome: Outcome, error: str = "") -> Summary:
        """The run so far."""
        trained = [done for done in self._rounds if not done.final]
        paces = [pace_of(done) for done in trained]
        seconds = tuple(pace.observed_s for pace in paces)
        answers = [answer for done in self._rounds for answer in done.answers]
        reports = [answer.report for answer in answers if answer.report]
        samples = sum(entry.samples for done in trained for entry in entries(done))
        backend = reports[-1].backend if reports else ""
        sites = tuple(sorted({answer.site for answer in answers if answer.report}))
        coordination = self._settings.coordination
        return Summary(
            run=str(self.folder.path),
            outcome=outcome,
            error=error,
            started=self._started,
            wall_s=time.monotonic() - self._clock,
            rounds=len(trained),
            sites=sites,
            policy=self._settings.allocation.policy,
            backend=backend,
            batching=coordination.batching.policy,
            overlap=coordination.overlap.policy,
            link=coordination.network.link,
            round_s=seconds,
            predicted_s=tuple(pace.predicted_s for pace in paces),
            lower_bound_s=tuple(pace.lower_bound_s for pace in paces),
            in_turn=self._simulated and len(sites) > 1 and backend != Backend.INLINE,
            throughput=samples / sum(seconds) if any(seconds) else 0.0,
            tasks={name: self._with_files(name, task) for name, task in self._tasks().items()},
            versions={name: version(name) for name in _VERSIONS},
        )

    def _tasks(self) -> dict[str, TaskSummary]:
        silent = {task.name: TaskSummary() for task in self._settings.tasks}
        return silent | summarise_tasks(self._rounds)

    def _with_files(self, name: str, task: TaskSummary) -> TaskSummary:
        weights, load = self._files.get(name, ("", ""))
        return replace(task, weights=weights, load=load)

    def _close(self, outcome: Outcome, error: str) -> Summary:
        summary = self.summary(outcome, error)
        self.folder.save_summary(summary)
        self.folder.save_trace()
        self.folder.release()
        return summary
