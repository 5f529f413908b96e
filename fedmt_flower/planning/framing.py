"""From what a device is asked for, and what is known of its tasks, to the problem that its planner solves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fedmt_flower.domain.allocation import Allocation, Objective, Policy
from fedmt_flower.domain.coordination import Batching, BatchRules, Coordination
from fedmt_flower.domain.network import Overlap, Volume
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.domain.profile import DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.allocation import plan_round
from fedmt_flower.planning.batching import batch_choices, valid_batches
from fedmt_flower.planning.budgets import CAUTION, BudgetProblem
from fedmt_flower.planning.planner import PlanRequest
from fedmt_flower.planning.workload import StepTime, Workload, fit_workload


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What is known of a device.

    Parameters
    ----------
    features
        What the throughput model sees of it.
    levels
        Budgets in per cent that it tells apart, ascending.
    memory_limit
        Bytes that all tasks of a round may hold together; 0 where memory is no limit.
    """

    features: DeviceFeatures
    levels: tuple[float, ...]
    memory_limit: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What is known of a task on a site.

    Parameters
    ----------
    features
        What the throughput model sees of it. Its reference batch is the task's own.
    volume
        What it has to do in the round.
    examples
        Dᵢ in samples.
    adapts
        Whether a plan may set its batch size.
    stepped
        Whether it may be handed over between two steps.
    counted
        Whether its operations and traffic were counted; else its features hold 1 of each.
    memory
        Bytes that it holds, by batch size; empty where memory is no limit.
    levels
        Budgets in per cent in which its steps are right, ascending; empty: all that the device tells apart.
    """

    features: TaskFeatures
    volume: Volume
    examples: int
    adapts: bool = True
    stepped: bool = True
    counted: bool = True
    memory: Mapping[int, int] = field(default_factory=dict)
    levels: tuple[float, ...] = ()


def needs_prediction(allocation: Allocation, coordination: Coordination) -> bool:
    """Whether a round so asked for cannot be planned without predicted rates."""
    batching, overlap = coordination.batching, coordination.overlap
    return (
        allocation.policy is Policy.FEDMT
        or batching.policy is Batching.PROPORTIONAL
        or bool(batching.choices)
        or overlap.policy in (Overlap.WORKLOAD, Overlap.FLEXIBLE)
        or coordination.network.link is not None
    )


def offered_batches(rules: BatchRules, task: str, own: int, examples: int, adapts: bool) -> tuple[int, ...]:
    """The batch sizes among which `rules` let a plan choose for `task`.

    Raises
    ------
    ConfigError
        If there are some for tasks that take one, but none of them is at most `examples`.
    """
    if not adapts or (rules.policy is Batching.FIXED and not rules.choices):
        return (own,)
    return valid_batches(task, batch_choices(rules, own), examples)


def frame(
    allocation: Allocation,
    coordination: Coordination,
    device: DeviceFacts,
    tasks: Sequence[TaskFacts],
    *,
    loads: Mapping[str, float],
    virtual_resource: float = float("inf"),
) -> PlanRequest:
    """The problem of a round of `tasks`, which come in the order in which the server named them.

    Parameters
    ----------
    allocation, coordination
        What is asked for.
    device, tasks
        What is known.
    loads
        Loads for Eq. 6, by task.
    virtual_resource
        The most R_v that contention left (`planning.correction.Moderation`), in per cent.

    Raises
    ------
    ConfigError
        If the limit on R_v is below what the device can give, or no batch size is valid.
    """
    by_name = {facts.features.task: facts for facts in tasks}
    chosen = allocation.policy is Policy.FEDMT
    fixed = None if chosen else plan_round(allocation, tuple(by_name))
    given = {} if fixed is None else {place.task: place.budget for place in fixed.tasks}
    names = coordination.overlap.arrange(by_name)
    tasks = [by_name[name] for name in names]
    levels = tuple(_levels(device, facts, given.get(facts.features.task)) for facts in tasks)
    rules = coordination.batching
    batches = tuple(_fitting(rules, facts) for facts in tasks)
    limited = device.memory_limit > 0 and any(len(row) > 1 for row in batches)
    known = limited and all(set(row) <= set(f.memory) for f, row in zip(tasks, batches, strict=True))
    problem = BudgetProblem(
        device=device.features,
        tasks=tuple(task.features for task in tasks),
        batches=batches,
        levels=levels,
        objective=allocation.objective,
        samples=tuple(task.volume.samples for task in tasks),
        virtual_resource=(0.0, _most(allocation, levels, virtual_resource)),
        memory=tuple(tuple(f.memory[b] for b in row) for f, row in zip(tasks, batches, strict=True))
        if known
        else (),
        memory_limit=device.memory_limit if known else 0,
        caution=CAUTION,
    )
    return PlanRequest(
        problem=problem,
        volumes=tuple(task.volume for task in tasks),
        link=coordination.network.link,
        batching=rules.policy,
        overlap=coordination.overlap.policy,
        loads=dict(loads) if rules.policy is Batching.PROPORTIONAL else {},
        epsilon=rules.epsilon,
        delta=coordination.overlap.delta,
        workload=workload_of(tasks) if coordination.overlap.policy is Overlap.WORKLOAD else None,
        sharing=Sharing.CAPPED if fixed is None else fixed.sharing,
        reallocates=chosen
        and allocation.reallocate
        and allocation.objective is Objective.MAKESPAN
        and all(task.stepped for task in tasks),
    )


def workload_of(tasks: Iterable[TaskFacts]) -> Workload | None:
    """Eq. 3 fitted to the steps that were measured; None if those are too few, or tell no task from another.

    They do not where the time of a step is overhead alone, as of small models that wait for the host.
    """
    steps = [
        StepTime(
            flops=facts.features.flops,
            traffic=facts.features.traffic,
            batch=batch,
            seconds=batch / rate,
        )
        for facts in tasks
        if facts.counted
        for batch, rate in facts.features.batch_rates
    ]
    if len(steps) < 3:
        return None
    fitted = fit_workload(steps)
    return fitted if fitted.alpha > 0 or fitted.beta > 0 else None


def _fitting(rules: BatchRules, facts: TaskFacts) -> tuple[int, ...]:
    """The batch sizes that a plan may choose; what could not be trained with does not fit either."""
    own = facts.features.reference_batch
    offered = offered_batches(rules, facts.features.task, own, facts.examples, facts.adapts)
    return tuple(batch for batch in offered if batch in facts.memory) or offered


def _levels(device: DeviceFacts, facts: TaskFacts, given: float | None) -> tuple[float, ...]:
    """The budgets that a plan may choose: of a given one that or the next below it that the task can have."""
    if given is None:
        return facts.levels or device.levels
    return (max((level for level in facts.levels if level <= given), default=given),)


def _most(allocation: Allocation, levels: Sequence[Sequence[float]], moderated: float) -> float:
    """The most R_v in per cent; contention alone does not push it below the least there is."""
    if allocation.policy is not Policy.FEDMT:
        return float("inf")
    least = sum(min(row) for row in levels)
    asked = allocation.virtual_resource
    if asked is not None and asked < least - 1e-9:
        raise ConfigError(
            f"allocation virtual_resource: got {asked:g} %, but {len(levels)} tasks have {least:g} % at "
            "least on this device; allow that, or train fewer tasks at once"
        )
    return min(max(least, moderated), float("inf") if asked is None else asked)
