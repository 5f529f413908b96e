"""A data set is shared out completely, as asked, and the same way every time."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmt_flower.errors import ConfigError
from fedmt_flower.tasks.data.partition import Partition, Whole, partitioned


def whole(train: int = 600, test: int = 61) -> Whole:
    numbers = torch.arange(train + test)
    labels = numbers % 10
    return Whole((numbers[:train], labels[:train]), (numbers[train:], labels[train:]), labels[:train])


def shares(of: Whole, n: int, **how: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    both = [Partition(partition_id=i, num_partitions=n, **how).of(of) for i in range(n)]
    return [(train[0], test[0]) for train, test in both]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.sampled_from([{}, {"partition": "dirichlet", "alpha": 3.0}]),
    st.integers(0, 9),
)
def test_every_sample_belongs_to_one_site(n: int, how: dict[str, Any], seed: int) -> None:
    parts = shares(whole(), n, partition_seed=seed, **how)
    assert sorted(torch.cat([train for train, _ in parts]).tolist()) == list(range(600))
    assert sorted(torch.cat([test for _, test in parts]).tolist()) == list(range(600, 661))
    assert all(abs(len(test) - 61 / n) < 1 for _, test in parts)


def test_volumes_follow_their_ratio_whatever_the_partition() -> None:
    assert [len(train) for train, _ in shares(whole(), 3, site_volumes="1:2:3")] == [100, 200, 300]
    uneven = [len(t) for t, _ in shares(whole(), 3, site_volumes="1:2:3", partition="dirichlet", alpha=1e6)]
    assert uneven == pytest.approx([100, 200, 300], abs=10)


def test_a_task_may_use_a_part_of_its_share() -> None:
    full, half = (shares(whole(), 2, volume=volume)[1][0] for volume in (1.0, 0.5))
    assert (len(full), len(half)) == (300, 150)
    assert set(half.tolist()) < set(full.tolist())


def test_a_smaller_alpha_makes_sites_differ_more() -> None:
    def spread(alpha: float) -> float:
        parts = shares(whole(), 3, partition="dirichlet", alpha=alpha, partition_seed=1)
        counts = torch.stack([torch.bincount(train % 10, minlength=10) for train, _ in parts]).float()
        return float(counts.std(dim=0).mean())

    assert spread(0.1) > 2 * spread(10.0)
    assert max(torch.bincount(t % 10).float().std() for t, _ in shares(whole(), 3)) < 7  # IID: chance alone


def test_partitions_come_again_and_change_with_their_seed() -> None:
    first, again, other = (shares(whole(), 3, partition_seed=seed)[0][0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ({"partition_id": 3, "num_partitions": 3}, "partition_id 3 of num_partitions 3"),
        ({"partition": "sorted"}, "partition 'sorted': expected one of iid, dirichlet"),
        ({"alpha": 0.0}, "alpha 0.0: expected more than 0"),
        ({"volume": 0.0}, "volume 0.0: expected a part above 0"),
        ({"volume": float("nan")}, "volume nan"),
        ({"site_volumes": "1:2"}, "site_volumes '1:2': expected 1 numbers above 0"),
        ({"site_volumes": "many"}, "site_volumes 'many'"),
        ({"site_volumes": "0"}, "site_volumes '0'"),
    ],
)
def test_what_cannot_be_a_partition_is_refused(how: dict[str, Any], cause: str) -> None:
    with pytest.raises(ConfigError, match=cause):
        Partition(**how)


def test_an_empty_share_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"partition 0 of 4 .* has no training sample"):
        Partition(partition_id=0, num_partitions=4).of(whole(train=1))
    with pytest.raises(ConfigError, match="has no test sample"):
        Partition(partition_id=3, num_partitions=4).of(whole(test=3))


def test_a_data_function_shows_all_its_parameters() -> None:
    @partitioned
    def numbers(train: int = 600) -> Whole:
        """Numbers."""
        return whole(train)

    assert list(inspect.signature(numbers).parameters) == [
        "train",
        *inspect.signature(Partition).parameters,
    ]
    assert numbers.__doc__ == "Numbers."
    (inputs, _), _ = numbers(train=60, num_partitions=3, partition_id=2)
    assert len(inputs) == 20


def test_inputs_are_prepared_once_they_are_chosen() -> None:
    seen: list[int] = []

    def prepare(inputs: torch.Tensor) -> torch.Tensor:
        seen.append(len(inputs))
        return inputs.float() / 10

    base = whole()
    prepared = Whole(base.train, base.test, base.strata, prepare)
    (inputs, _), _ = Partition(num_partitions=3).of(prepared)
    assert seen == [200, 21]
    assert inputs.dtype == torch.float32
