import pytest

from fedmt_flower.domain.profile import CoRunSample, DeviceFeatures, TaskFeatures
from fedmt_flower.errors import ConfigError

DEVICE = DeviceFeatures(name="gpu", units=132, peak=6e13, bandwidth=2.4e12)
TASK = TaskFeatures(task="seg", model="r18", flops=3e9, traffic=2e7, solo_rate=12000)


def test_a_mix_is_named_by_its_models_whatever_their_order() -> None:
    other = TaskFeatures(task="det", model="m3", flops=1e8, traffic=1e7, solo_rate=5000)
    samples = [
        CoRunSample(device=DEVICE, tasks=tasks, batches=(8, 8), budgets=(50, 50), rates=(1.0, 2.0))
        for tasks in ((TASK, other), (other, TASK))
    ]
    assert samples[0].mix == samples[1].mix == ("m3", "r18")


def test_a_sample_needs_one_of_each_per_task() -> None:
    with pytest.raises(ConfigError, match="2 batches"):
        CoRunSample(device=DEVICE, tasks=(TASK,), batches=(8, 8), budgets=(50,), rates=(1.0,))
    with pytest.raises(ConfigError, match="budget of seg: got 101 %"):
        CoRunSample(device=DEVICE, tasks=(TASK,), batches=(8,), budgets=(101,), rates=(1.0,))
    with pytest.raises(ConfigError, match="sample of seg, rate: got nan"):
        CoRunSample(device=DEVICE, tasks=(TASK,), batches=(8,), budgets=(100,), rates=(float("nan"),))


def test_features_that_were_not_measured_are_refused() -> None:
    with pytest.raises(ConfigError, match="features of seg, solo_rate: got 0"):
        TaskFeatures(task="seg", model="r18", flops=3e9, traffic=2e7, solo_rate=0)
    with pytest.raises(ConfigError, match="device gpu, peak: got -1"):
        DeviceFeatures(name="gpu", units=132, peak=-1, bandwidth=2.4e12)
