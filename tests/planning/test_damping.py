import numpy as np
import pytest

from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.batching import mismatch
from fedmt_flower.planning.damping import Loads

SIZES = np.array([16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512], dtype=float)
PAIRS = np.array([(a, b) for a in SIZES for b in SIZES])


def balanced(loads: Loads) -> tuple[float, float]:
    wanted = np.array([loads.of("a"), loads.of("b")])
    a, b = PAIRS[mismatch(wanted, PAIRS).argmin()]
    return float(a), float(b)


def swing(gain: float) -> float:
    """How far the ratio of the batch sizes swings when a's volume jumps by 5 and back each round."""
    loads, ratios = Loads(gain=gain), []
    for turn in range(20):
        volumes = {"a": 1000.0 * (5 if turn % 2 else 1), "b": 2000.0}
        loads = loads.seen(volumes)
        ratios.append(np.divide(*balanced(loads)))
        loads = loads.finished(volumes, {task: volumes[task] / 1000.0 for task in volumes})
    settled = ratios[-8:]
    return max(settled) / min(settled)


def test_a_volume_that_jumps_fivefold_each_round_does_not_swing_the_batches() -> None:
    assert swing(1.0) >= 2.0
    assert swing(0.3) <= 1.5


def test_a_lasting_change_is_followed() -> None:
    loads = Loads().seen({"a": 1000.0})
    for _ in range(15):
        loads = loads.seen({"a": 5000.0})
    assert loads.of("a") == pytest.approx(5000.0, rel=0.02)


def test_the_first_volume_counts_at_once() -> None:
    assert Loads(gain=0.1).seen({"a": 700.0}).of("a") == 700.0


def test_observed_finish_times_pull_the_tasks_together_within_three_rounds() -> None:
    """A task finishes after volume x slowness / its part of all batches; b is thrice as slow as thought."""
    volumes, slowness = {"a": 1000.0, "b": 1000.0, "c": 1000.0}, {"a": 1.0, "b": 3.0, "c": 1.0}
    loads, spreads = Loads(gain=0.5).seen(volumes), []
    for _ in range(4):
        total = sum(loads.of(task) for task in volumes)
        finish = {t: volumes[t] * slowness[t] / (loads.of(t) / total) / 3000 for t in volumes}
        spreads.append(max(finish.values()) - min(finish.values()))
        loads = loads.finished(volumes, finish).seen(volumes)
    assert spreads[3] <= 0.5 * spreads[0]
    assert spreads == sorted(spreads, reverse=True)


def test_a_difference_that_batch_sizes_cannot_mend_does_not_wind_them_up() -> None:
    loads = Loads().seen({"a": 1000.0, "b": 1000.0})
    for _ in range(50):
        loads = loads.finished({"a": 1000.0, "b": 1000.0}, {"a": 2.0, "b": 1.0})
    assert loads.of("a") / loads.of("b") < 3.0


def test_lags_stay_bounded_whatever_is_observed() -> None:
    loads = Loads(gain=1.0).seen({"a": 1.0, "b": 1.0})
    for _ in range(10):
        loads = loads.finished({"a": 1.0, "b": 1.0}, {"a": 1e6, "b": 1e-6})
    assert loads.lags == {"a": 4.0, "b": 0.25}


def test_one_task_alone_or_a_task_that_failed_teaches_nothing() -> None:
    loads = Loads().seen({"a": 1.0, "b": 1.0})
    assert loads.finished({"a": 1.0}, {"a": 9.0}) == loads
    assert loads.finished({"a": 1.0, "b": 1.0}, {"a": 9.0, "b": 0.0}) == loads


@pytest.mark.parametrize("gain", [0.0, -1.0, 1.5])
def test_a_gain_outside_its_range_is_refused(gain: float) -> None:
    with pytest.raises(ConfigError, match="damping gain"):
        Loads(gain=gain)
