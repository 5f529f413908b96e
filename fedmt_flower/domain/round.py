"""What crosses the boundary of an engine: the order for a round and the report of it.

Arrays travel beside these values, never in them.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from fedmt_flower.domain.allocation import Allocation
from fedmt_flower.domain.coordination import Coordination
from fedmt_flower.domain.forecast import Forecast
from fedmt_flower.domain.network import Link
from fedmt_flower.domain.plan import RoundPlan
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.task import Scalar, Task, check_name, check_unique
from fedmt_flower.domain.timeline import Span
from fedmt_flower.errors import ConfigError


class Mode(StrEnum):
    """What a round does with the weights it receives."""

    TRAIN = "train"
    EVALUATE = "evaluate"
    TRAIN_AND_EVALUATE = "train and evaluate"
    """Evaluate the received weights, then train from them."""

    @property
    def trains(self) -> bool:
        return self is not Mode.EVALUATE

    @property
    def evaluates(self) -> bool:
        return self is not Mode.TRAIN


class Status(StrEnum):
    """How a task's share of a round ended."""

    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One task of a round: the task, and the server's configuration for it in this round.

    `parameters` override the task's own hyperparameters of the same name. `deadline_s` is the federation's
    own limit, in seconds since the order arrived; None if it has none.
    """

    task: Task
    mode: Mode = Mode.TRAIN_AND_EVALUATE
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(
                f"deadline_s of task {self.task.name!r}: got {self.deadline_s}, expected more than 0 seconds"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRules:
    """What a task asks of each round of its federation.

    Parameters
    ----------
    quorum
        Sites whose updates it takes to make a new model; with fewer the task keeps its model. 0 leaves that
        to its strategy.
    deadline_s
        Seconds that a site has from the arrival of a round. Then its engine gives the task up, and says so.
    grace_s
        Seconds beyond `deadline_s`, of the slowest of a site's tasks, that the server waits for its answer:
        the message's way there and back, and the start of the client. An answer after that is dropped.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    quorum: int = 0
    deadline_s: float | None = None
    grace_s: float = 30.0

    def __post_init__(self) -> None:
        problems = []
        if self.quorum < 0:
            problems.append(f"quorum: got {self.quorum}, expected 0 sites or more")
        if self.deadline_s is not None and not (math.isfinite(self.deadline_s) and self.deadline_s > 0):
            problems.append(f"deadline_s: got {self.deadline_s}, expected more than 0 seconds, or none")
        if not (math.isfinite(self.grace_s) and self.grace_s >= 0):
            problems.append(f"grace_s: got {self.grace_s}, expected 0 seconds or more")
        if problems:
            raise ConfigError(*problems)

    @property
    def patience_s(self) -> float:
        """How long an answer is waited for, in seconds; infinite without a deadline."""
        return math.inf if self.deadline_s is None else self.deadline_s + self.grace_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOrder:
    """What a client asks of an engine.

    A round is a function of the weights, this order and nothing else: everything random in task *t* is
    seeded by (seed, round, site, t).

    Parameters
    ----------
    run
        Identity of the federated run; workers and data outlive a round but not a change of tasks.
    round
        1-based round of the federation.
    site
        Name of the client's identity: its tasks and its share of the data.
    assignments
        The tasks of this round, in the order in which the server named them.
    allocation
        The policy that chooses the budgets.
    coordination
        How batch sizes, the start order and transfers are chosen.
    seed
        Seed of the run, 0 or more.
    deadline_s
        Seconds after which a task of the round is given up; None waits as long as it takes.
    lane
        Names of those of its tasks whose weights come with this order, where a site has several nodes: the
        others' come with orders of their own, of the same round. Empty: all of them come with it.
    """

    run: str
    round: int
    site: str
    assignments: tuple[Assignment, ...]
    allocation: Allocation
    coordination: Coordination = field(default_factory=Coordination)
    seed: int = 0
    deadline_s: float | None = None
    lane: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_name("site", self.site)
        check_unique(tuple(assignment.task for assignment in self.assignments))
        if self.round < 0 or self.seed < 0:
            raise ConfigError(f"round {self.round}, seed {self.seed}: expected 0 or more")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ConfigError(f"deadline_s: got {self.deadline_s}, expected more than 0 seconds")
        names = [assignment.task.name for assignment in self.assignments]
        if unknown := [task for task in self.lane if task not in names]:
            raise ConfigError(f"lane: got {', '.join(unknown)}, expected some of {', '.join(names)}")
        if self.lane and self.coordination.network.link is not None:
            raise ConfigError(
                f"network: site {self.site!r} has several nodes, whose messages cross a real link one beside "
                "the other; no link can be emulated for them, use network=none"
            )

    @property
    def brings(self) -> tuple[str, ...]:
        """Names of the tasks whose weights come with this order, in the order of the assignments."""
        names = (assignment.task.name for assignment in self.assignments)
        return tuple(name for name in names if not self.lane or name in self.lane)

    def of(self, tasks: Container[str]) -> RoundOrder:
        """This order with those of its assignments alone that are of `tasks`."""
        left = tuple(one for one in self.assignments if one.task.name in tasks)
        return replace(self, assignments=left, lane=tuple(name for name in self.lane if name in tasks))


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """A task's move to another seat in mid-round.

    Parameters
    ----------
    at_s
        When the last step before it ended, in seconds of the timeline.
    budget, level
        What the task had from then on: Rᵢ in per cent, and what that came to on the device.
    lost_s
        Seconds from there to the start of the first step after it.
    """

    at_s: float
    budget: float
    level: int
    lost_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """How one task's share of a round went.

    Parameters
    ----------
    task
        The task's name.
    status, error
        `error` is empty unless the task failed; then it is one line naming site, task and cause.
    samples
        Samples trained on: E epochs over Dᵢ count E·Dᵢ.
    train_examples, evaluate_examples
        Dᵢ of the training and of the test split, in samples.
    train_metrics, evaluate_metrics
        Finite floats by name. `evaluate_metrics` are those of the weights as they were received.
    level
        What the budget came to on the device: streaming multiprocessors on a GPU, threads on CPUs.
    pid
        Process that ran the task.
    compute_s
        Seconds of training alone, from the first step's start to the last step's end.
    memory_bytes
        Most memory of the GPU that torch held meanwhile, graphs' own included; 0 on CPUs.
    step, why_eager
        How steps reached the device; and why not as a graph, where the task's rules allow one.
    handovers
        Its moves to other seats; it began with the budget of the round's plan. `level` and `pid` are those
        with which it ended.
    """

    task: str
    status: Status
    error: str = ""
    samples: int = 0
    train_examples: int = 0
    evaluate_examples: int = 0
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    evaluate_metrics: Mapping[str, float] = field(default_factory=dict)
    level: int = 0
    pid: int = 0
    compute_s: float = 0.0
    memory_bytes: int = 0
    step: StepKind = StepKind.EAGER
    why_eager: str = ""
    handovers: tuple[Handover, ...] = ()

    @property
    def rate(self) -> float:
        """Observed throughput Pᵢ in samples per second; 0 if nothing was trained."""
        return self.samples / self.compute_s if self.compute_s > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """How a round went on one site: the plan, one report per task, the observed timeline.

    `waited_s` is how long the order stood in the engine's queue, `wall_s` how long it then ran. The timeline
    counts from `arrived`, when the order reached the engine, in seconds since the epoch on the site's clock.
    `forecast` is what was predicted of it, where something was, and `link` the link that was emulated.
    """

    site: str
    round: int
    plan: RoundPlan
    tasks: tuple[TaskReport, ...]
    timeline: tuple[Span, ...]
    backend: str
    waited_s: float
    wall_s: float
    arrived: float = 0.0
    forecast: Forecast | None = None
    link: Link | None = None

    def task(self, name: str) -> TaskReport:
        """The report of the task called `name`; KeyError if the round had none."""
        for report in self.tasks:
            if report.task == name:
                return report
        raise KeyError(name)

    def part(self, tasks: Container[str]) -> RoundReport:
        """This report, of `tasks` alone; the plan stays the whole round's."""
        return replace(
            self,
            tasks=tuple(report for report in self.tasks if report.task in tasks),
            timeline=tuple(span for span in self.timeline if span.task in tasks),
        )
