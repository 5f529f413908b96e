"""Which settings a profile takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise

import pytest

from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.sampling import LARGEST_SET, Block, Candidate, Place, blocks

LEVELS = tuple(float(level) for level in range(20, 101, 10))


def plan(n: int, count: int, *, batches: tuple[int, ...] = (32, 64, 128), seed: int = 0) -> list[Block]:
    candidates = [
        Candidate(task=f"t{i}", reference=batches[-1], batches=batches, levels=LEVELS) for i in range(n)
    ]
    return list(islice(blocks(candidates, 25.0, seed=seed), count))


def test_every_task_is_measured_alone_first_at_every_batch_size_and_on_a_quarter() -> None:
    for i, block in enumerate(plan(3, 3)):
        alone = [setting[0] for setting in block.settings if len(setting) == 1]
        assert alone == [Place(f"t{i}", batch, 100.0) for batch in (32, 64, 128)] + [
            Place(f"t{i}", 128, 25.0)
        ]


@pytest.mark.parametrize("seed", range(5))
def test_sets_have_two_to_five_tasks_and_change_by_one_that_comes_in(seed: int) -> None:
    later = plan(9, 49, seed=seed)[9:]
    sets = [{place.task for place in block.places} for block in later]
    assert {len(tasks) for tasks in sets} == {2, 3, 4, LARGEST_SET}
    for (before, block), (_, tasks) in zip(pairwise(later), pairwise(sets), strict=True):
        new = set(block.places) - set(before.places)
        assert len({place.task for place in new}) <= 1 or len(tasks) == 2
    met = Counter(task for tasks in sets for task in tasks)
    assert max(met.values()) <= min(met.values()) + 4


def test_settings_use_the_block_s_places_and_none_twice() -> None:
    for block in plan(4, 30):
        assert len(set(block.settings)) == len(block.settings)
        for setting in block.settings:
            assert set(setting) <= set(block.places)
            assert len({place.task for place in setting}) == len(setting)


def test_all_together_with_the_whole_device_and_in_the_middle_are_among_them() -> None:
    for block in plan(5, 25)[5:]:
        even = {
            setting[0].budget
            for setting in block.settings
            if len(setting) > 1
            and len({place.budget for place in setting}) == 1
            and {place.batch for place in setting} == {128}
        }
        assert even >= {60.0, 100.0}


def test_budgets_and_batch_sizes_are_drawn_jointly_over_all_there_are() -> None:
    places = {place for block in plan(6, 80) for place in block.places}
    assert {place.budget for place in places} >= set(LEVELS)
    assert len({(place.batch, place.budget) for place in places}) > 2 * len(LEVELS)


def test_the_same_arguments_give_the_same_plan_and_another_seed_another() -> None:
    assert plan(5, 20) == plan(5, 20)
    assert plan(5, 20) != plan(5, 20, seed=1)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_plan_is_the_same_in_every_process(hash_seed: str) -> None:
    script = (
        "from itertools import islice\n"
        "from fedmt_flower.planning.sampling import Candidate, blocks\n"
        "rest = {'reference': 64, 'batches': (32, 64), 'levels': (50.0, 100.0)}\n"
        "tasks = [Candidate(task=f't{i}', **rest) for i in range(7)]\n"
        "print(list(islice(blocks(tasks, 25.0), 30)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    candidates = [
        Candidate(task=f"t{i}", reference=64, batches=(32, 64), levels=(50.0, 100.0)) for i in range(7)
    ]
    assert said.stdout.strip() == str(list(islice(blocks(candidates, 25.0), 30)))


def test_one_task_with_one_setting_is_measured_again_and_again() -> None:
    candidate = Candidate(task="only", reference=8, batches=(8,), levels=(100.0,))
    for block in islice(blocks([candidate], 100.0), 5):
        assert block.settings == ((Place("only", 8, 100.0),),)


def test_nothing_to_sample_is_refused() -> None:
    with pytest.raises(ConfigError, match="0 tasks"):
        next(blocks([], 25.0))


def test_a_task_is_only_sampled_at_budgets_that_it_can_have() -> None:
    plain = Candidate(task="plain", reference=8, batches=(8,), levels=LEVELS)
    halves = Candidate(task="halves", reference=8, batches=(8,), levels=(25.0, 50.0, 100.0))
    taken: dict[str, set[float]] = {"plain": set(), "halves": set()}
    for block in islice(blocks([plain, halves], 25.0), 40):
        for place in block.places:
            taken[place.task].add(place.budget)
    assert taken == {"plain": {25.0, *LEVELS}, "halves": {25.0, 50.0, 100.0}}
