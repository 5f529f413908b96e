"""A profile's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmt_flower.device.profile.samples import (
    Device,
    Missing,
    Profile,
    Rates,
    Sampled,
    SamplesFile,
    Task,
    read_samples,
)
from fedmt_flower.domain.profile import DeviceFeatures
from fedmt_flower.errors import ConfigError


def profile(reference: int = 8) -> Profile:
    return Profile(
        tasks=tuple(
            Sampled(task=name, model=f"net {name}", parameters="", reference=reference, batches=(4, 8))
            for name in "ab"
        ),
        levels=(50.0, 100.0),
        quarter=50.0,
        seed=0,
        backend="cpu",
    )


def rates(**of: tuple[int, float, float]) -> Rates:
    """Batch, budget and rate by task."""
    batches, budgets, values = zip(*of.values(), strict=True)
    n = len(of)
    return Rates(
        tasks=tuple(of),
        batches=batches,
        budgets=budgets,
        rates=values,
        levels=(1,) * n,
        steps=(9,) * n,
        at_s=3.5,
    )


def fill(file: SamplesFile) -> None:
    file.add(
        Device(features=DeviceFeatures(name="box", units=2, peak=1e10, bandwidth=1e9)),
        Task(task="a", flops=1e6, traffic=1e5),
        Task(task="b", flops=2e6, traffic=3e5),
        rates(a=(8, 100.0, 90.0)),
        rates(a=(8, 100.0, 110.0)),
        rates(a=(8, 100.0, 400.0)),
        rates(a=(8, 50.0, 88.0)),
        rates(b=(8, 100.0, 50.0)),
        rates(a=(4, 50.0, 60.0), b=(8, 100.0, 30.0)),
        Missing(tasks=("a",), batches=(4,), budgets=(50.0,), why="it stalled"),
    )


def test_features_come_from_the_solo_measurements(tmp_path: Path) -> None:
    fill(SamplesFile(tmp_path / "p.jsonl", profile(), resume=False))
    samples = read_samples(tmp_path / "p.jsonl")
    assert len(samples) == 6
    a, b = samples[-1].tasks
    assert (a.model, a.solo_rate, a.reference_batch) == ("net a", 110.0, 8)
    # Half the device gives 0.8 of the rate, so by a power law a quarter gives 0.64.
    assert a.quarter_share == pytest.approx(0.64)
    assert b.flops == 2e6
    assert samples[-1].batches == (4, 8)
    assert samples[-1].rates == (60.0, 30.0)


def test_a_file_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    fill(SamplesFile(path, profile(), resume=True))
    path.write_bytes(path.read_bytes()[:-20])
    file = SamplesFile(path, profile(), resume=True)
    assert file.settings == 6
    assert file.described == {"a", "b"}
    assert file.seconds == 3.5
    file.add(rates(b=(8, 50.0, 40.0)))
    assert len(read_samples(path)) == 7


def test_a_file_of_another_profile_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    SamplesFile(tmp_path / "p.jsonl", profile(), resume=True)
    with pytest.raises(ConfigError, match="other tasks"):
        SamplesFile(tmp_path / "p.jsonl", profile(reference=4), resume=True)
    SamplesFile(tmp_path / "p.jsonl", profile(reference=4), resume=False)


@pytest.mark.parametrize("content", ["", "{}\n", "not json\n", '{"kind": "task"}\n'])
def test_another_file_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"p\.jsonl"):
        read_samples(path)


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fedmt profile"):
        read_samples(tmp_path / "none.jsonl")
