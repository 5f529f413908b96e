"""One client's identity, and how it has its engine do what a message asks."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import Context

from fedmt_flower.device.contract import RoundResult, Weights
from fedmt_flower.device.engine.client import EngineGone
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Coordination
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder, RoundReport, Status, TaskReport
from fedmt_flower.domain.task import Scalar, Task, check_name, check_unique
from fedmt_flower.errors import ConfigError, TaskError
from fedmt_flower.federation.package import Hello, Share

_log = logging.getLogger(__name__)

SiteName = str | Callable[[Context], str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One client's identity in one federated run.

    Parameters
    ----------
    name
        The site's name; replies are aggregated in the order of the names.
    run
        Identity of the run.
    tasks
        The tasks that the site hosts.
    allocation
        The policy that chooses their budgets.
    coordination
        How batch sizes, the start order and transfers are chosen.
    device
        The device that they share.
    seed
        Seed of the run, 0 or more.
    parameters
        Hyperparameters of all tasks, which the server's override.
    beside
        Tasks that other nodes of the site may host.
    """

    name: str
    run: str
    tasks: tuple[Task, ...]
    allocation: Allocation = field(default_factory=lambda: Allocation(policy=Policy.SHARING))
    coordination: Coordination = field(default_factory=Coordination)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    seed: int = 0
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    beside: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        check_name("site", self.name)
        check_unique(self.tasks)

    @property
    def hello(self) -> Hello:
        """What the site says of itself."""
        return Hello(site=self.name, tasks=tuple(task.name for task in self.tasks))

    def play(self, number: int, shares: Mapping[str, Share]) -> tuple[RoundReport, dict[str, Weights]]:
        """Have the engine play round `number`: `shares` by task, in the order of the server.

        A share that cannot be played is reported as failed and costs the others nothing. What other nodes of
        the site are given is planned with it, and told by them.

        Raises
        ------
        ConfigError
            If the site shall emulate a link beside its real one.
        TaskError
            If none of them can be played.
        EngineError
            If the engine cannot serve the round, was stopped, or was killed twice in it.
        """
        self._check_network()
        assignments: list[Assignment] = []
        refused: list[TaskReport] = []
        for name, share in shares.items():
            try:
                assignments.append(self._assignment(name, share))
            except TaskError as error:
                if share.weights is not None:
                    refused.append(TaskReport(task=name, status=Status.FAILED, error=str(error)))
        given = {name: share.weights for name, share in shares.items() if share.weights is not None}
        weights = {one.task.name: given[one.task.name] for one in assignments if one.task.name in given}
        if not weights:
            problems = [report.error for report in refused]
            raise TaskError("; ".join(problems) or f"site {self.name!r}: the message asks for no task")
        order = RoundOrder(
            run=self.run,
            round=number,
            site=self.name,
            assignments=tuple(assignments),
            allocation=self.allocation,
            coordination=self.coordination,
            seed=self.seed,
            deadline_s=self.device.deadline_s,
            lane=tuple(weights) if len(weights) < len(assignments) else (),
        )
        try:
            result = self._run(order, weights)
        except EngineGone as error:
            # Weights and order make the round: what a killed engine has lost, another gives bit for bit.
            _log.warning("%s; the round begins again", error)
            result = self._run(order, weights)
        report = replace(result.report, tasks=(*result.report.tasks, *refused))
        return report, {name: result.weights[name] for name in shares if name in result.weights}

    def play_one(self, number: int, share: Share) -> tuple[RoundReport, Weights | None]:
        """Play the site's only task; its new weights, None if it only evaluated.

        Raises
        ------
        TaskError
            If the task failed.
        """
        (task,) = self.tasks
        report, weights = self.play(number, {task.name: share})
        own = report.task(task.name)
        if own.status is Status.FAILED:
            raise TaskError(own.error)
        return report, weights[task.name] if share.mode.trains else None

    def _run(self, order: RoundOrder, weights: Mapping[str, Weights]) -> RoundResult:
        with closing(connect(self.device)) as engine:
            return engine.run_round(order, weights)

    def _check_network(self) -> None:
        """Raise ConfigError if a link is emulated where messages cross a real one, and nobody insists."""
        network = self.coordination.network
        if network.link is not None and not network.force and not simulated():
            raise ConfigError(
                "network: an emulated link on a SuperNode would add to the real one; use network=none, or "
                "network.force=true to have both"
            )

    def _assignment(self, name: str, share: Share) -> Assignment:
        tasks = self.beside if share.weights is None else self.tasks
        task = next((task for task in tasks if task.name == name), None)
        if task is None:
            hosted = ", ".join(task.name for task in self.tasks)
            raise TaskError(f"site {self.name!r}, task {name!r}: not hosted here; the site has {hosted}")
        parameters = dict(self.parameters)
        for key, value in share.config.items():
            if not isinstance(value, bool | int | float | str):
                raise TaskError(
                    f"site {self.name!r}, task {name!r}: configuration {key!r} is of type "
                    f"{type(value).__name__}, expected a bool, int, float or str"
                )
            parameters[key] = value
        return Assignment(
            task=task, mode=Mode(share.mode), parameters=parameters, deadline_s=share.deadline_s
        )


def site_of(
    context: Context,
    tasks: tuple[Task, ...],
    *,
    allocation: Allocation,
    device: DeviceSettings,
    coordination: Coordination | None = None,
    name: SiteName = None,
    seed: int = 0,
) -> Site:
    """The site that a node is, by its Flower context.

    Its node configuration may give ``site``, its name, and ``tasks``, those of `tasks` that it hosts,
    with commas between them. Run configuration and node configuration are hyperparameters of all tasks.

    Raises
    ------
    ConfigError
        If the node configuration names a task that there is not, or a name cannot be one.
    """
    beside: tuple[Task, ...] = ()
    hosted = context.node_config.get("tasks")
    if hosted is not None:
        wanted = [one.strip() for one in str(hosted).split(",")]
        known = {task.name: task for task in tasks}
        unknown = [one for one in wanted if one not in known]
        if unknown:
            raise ConfigError(
                f"node configuration: tasks={hosted!r} names {', '.join(map(repr, unknown))}, expected some "
                f"of {', '.join(known)}"
            )
        tasks = tuple(known[one] for one in wanted)
        beside = tuple(task for one, task in known.items() if one not in wanted)
    directories = app_directories()

    def here(tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        return tuple(replace(task, python_path=(*task.python_path, *directories)) for task in tasks)

    return Site(
        name=_name(context, name),
        run=str(context.run_id),
        tasks=here(tasks),
        beside=here(beside),
        allocation=allocation,
        coordination=coordination or Coordination(),
        device=device,
        seed=seed,
        parameters={**context.run_config, **context.node_config},
    )


def simulated() -> bool:
    """Whether this process belongs to one of Flower's simulations: an actor of Ray, or its driver."""
    ray = sys.modules.get("ray")
    # It may be about to be imported by another thread.
    return bool(getattr(ray, "is_initialized", bool)())


def app_directories() -> tuple[str, ...]:
    """The directories that this process imports from and an engine, of the same Python, would not."""
    own = {Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    found = [Path(entry or ".").resolve() for entry in sys.path]
    return tuple(
        dict.fromkeys(str(path) for path in found if path.is_dir() and not own.intersection(path.parents))
    )


def _name(context: Context, name: SiteName) -> str:
    if callable(name):
        return name(context)
    if name:
        return name
    if "site" in context.node_config:
        return str(context.node_config["site"])
    if "partition-id" in context.node_config:
        return f"site-{context.node_config['partition-id']}"
    return f"node-{context.node_id}"
