"""Chosen schedules are compared with the tried ones within each repeat."""

from __future__ import annotations

import pytest

from fedmt_flower.bench.regret import SETTINGS, Setting, parse, text
from fedmt_flower.bench.regret_table import Trial, judge, trials
from fedmt_flower.bench.result import Json, Sample
from fedmt_flower.bench.specimen import draw_samples
from fedmt_flower.domain.allocation import Objective
from fedmt_flower.plots.fronts import front

OURS, BEST, POOR = "128@60+32@100", "128@80+32@80", "128@20+32@20"


def trial(drift: float = 1.0) -> Trial:
    """Ours reaches 98 % of the best for P; all rates of the second repeat are `drift` times as high."""

    def sample(cell: str, repeat: int = 0, **values: Json) -> Sample:
        return Sample(cell=f"III.1 | {cell}", repeat=repeat, values=values)

    solo = {"R50": 100.0, "V16": 200.0}
    ours = {Objective.RAW: OURS, Objective.FAIRNESS: OURS}
    samples = [
        sample("chosen", model="a model", ours=ours, solo=solo),
        sample(BEST, rates=[80.0, 120.0]),
        sample(POOR, rates=[20.0, 40.0]),
    ]
    for repeat, speed in enumerate((1.0, drift)):
        rates = {OURS: [78.4 * speed, 117.6 * speed], BEST: [80.0 * speed, 120.0 * speed]}
        alone = {name: rate * speed for name, rate in solo.items()}
        samples.append(sample("final", repeat, rates=rates, solo=alone))
    (found,) = trials(samples, ["III.1"])
    return found


@pytest.mark.parametrize("drift", [1.0, 2.0])
def test_the_degree_is_that_of_each_repeat(drift: float) -> None:
    found = trial(drift)
    for objective in Objective.RAW, Objective.FAIRNESS:
        assert found.best(objective) == BEST
        assert found.degree(objective).mean == pytest.approx(0.98)
        assert found.degree(objective).half_width == pytest.approx(0.0, abs=1e-9)
        assert found.rank(objective) == 2
    assert found.smallest_share(OURS).mean == pytest.approx(117.6 / 200)
    degree, rank, *_ = judge([found])
    assert degree.met
    assert rank.value == pytest.approx(2 / 3)
    assert not rank.met


def test_the_first_look_ranks_by_either_objective() -> None:
    assert trial().ranked(Objective.RAW) == [BEST, POOR]


def test_a_schedule_is_read_as_it_was_written() -> None:
    schedule = ((128, 60.61), (32, 100.0))
    assert parse(text(schedule)) == schedule


def test_a_model_is_fitted_without_what_a_setting_must_not_have_seen() -> None:
    samples = draw_samples(mixes=60, each=1)
    mixes = [set(sample.mix) for sample in samples]
    pair = next(mix for mix in mixes if len(mix) == 2)
    mix = Setting(models=tuple(pair), batches=((128,),) * 2, unseen=tuple(pair))
    assert [set(s.mix) for s in samples if mix.keeps(s)] == [other for other in mixes if other != pair]
    model = Setting(models=tuple(pair), batches=((128,),) * 2, unseen=("m3",))
    assert [set(s.mix) for s in samples if model.keeps(s)] == [other for other in mixes if "m3" not in other]


def test_enough_settings_were_not_seen() -> None:
    assert sum(len(setting.unseen) > 1 for setting in SETTINGS.values()) >= 4
    assert sum(len(setting.unseen) == 1 for setting in SETTINGS.values()) == 2


def test_the_front_has_what_nothing_beats_in_both() -> None:
    assert front([(1.0, 3.0), (2.0, 2.0), (1.5, 1.0), (3.0, 1.0)]) == ((1.0, 3.0), (2.0, 2.0), (3.0, 1.0))
