"""What a benchmark believes of its tasks when it is given profiles."""

from __future__ import annotations

from dataclasses import replace

from fedmt_flower.bench.mixes import by_step, synthetic_task
from fedmt_flower.bench.planned import recalled
from fedmt_flower.bench.specimen import DEVICE
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.profile import CoRunSample, StepKind, TaskFeatures

PLAIN = TaskFeatures(task="R18", model="resnet18", flops=3e9, traffic=2e7, solo_rate=15000.0)
FAST = replace(PLAIN, step=StepKind.GRAPH, solo_rate=37000.0)


def alone(task: TaskFeatures) -> CoRunSample:
    return CoRunSample(
        device=DEVICE, tasks=(task,), batches=(128,), budgets=(100.0,), rates=(task.solo_rate,)
    )


def test_a_task_is_recalled_by_its_model_and_its_kind_of_step() -> None:
    both = [alone(PLAIN), alone(FAST)]
    kinds = by_step([synthetic_task("R18")], Backend.MPS)
    (plain,), (fast,) = kinds.values()
    assert recalled(plain, both) == PLAIN
    assert recalled(fast, both) == replace(FAST, task="R18.fast")
    assert recalled(plain, [alone(FAST)]) is None


def test_another_model_or_reference_batch_is_not_believed() -> None:
    samples = [alone(PLAIN)]
    assert recalled(synthetic_task("R50"), samples) is None
    assert recalled(synthetic_task("R18", batch=64), samples) is None
