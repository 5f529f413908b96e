"""Schemes are compared at an accuracy that all of them reached, and judged by what seeds do."""

from __future__ import annotations

import pytest
from records import made_up

from fedmt_flower.bench.result import Json, Sample
from fedmt_flower.bench.time_to_accuracy import _judge, _reached, _targets, report, settings

SETTINGS = settings(quick=True)


def sample(scheme: str, seed: int, final: float, round_s: float) -> Sample:
    course = [0.1, final - 0.1, final]
    accuracy: Json = dict.fromkeys(("R18", "M3", "S2"), course)
    return Sample(cell=scheme, repeat=seed, values={"accuracy": accuracy, "round_s": [round_s] * 2})


def test_a_scheme_is_timed_until_all_models_have_what_every_run_reached() -> None:
    found = {
        "temporal": [sample("temporal", 0, 0.8, 4.0).values],
        "fedmt": [sample("fedmt", 0, 0.9, 2.0).values],
    }
    targets = _targets(found)
    assert targets == dict.fromkeys(("R18", "M3", "S2"), 0.8)
    assert _reached(found["temporal"][0], targets) == 8.0
    assert _reached(found["fedmt"][0], targets) == 2.0


@pytest.mark.parametrize(("off", "met"), [(0.01, True), (0.05, False)])
def test_accuracies_agree_within_what_seeds_do(off: float, met: bool) -> None:
    samples = [sample("temporal", seed, 0.8 + 0.01 * seed, 4.0) for seed in range(3)]
    samples += [sample("fedmt", seed, 0.8 + 0.01 * seed - off, 2.0) for seed in range(3)]
    (bar,) = _judge(samples, ["temporal", "fedmt"])
    assert bar.value == pytest.approx(off - 0.02)
    assert bar.met == met
    assert "| fedmt |" in report(made_up("time-to-accuracy", SETTINGS, samples))
