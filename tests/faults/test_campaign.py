"""Whatever goes wrong with one task, its worker, the engine or a client: the other tasks lose nothing.

A dozen injections in a usual run; ``pytest tests/faults --faults 200 --faults-seed 1`` takes longer.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bars import BARS
from injections import INJECTIONS, Injection
from scene import SURVIVORS, VICTIM, Played, Scene, same

from fedmt_flower.bench.leftovers import processes_marked
from fedmt_flower.bench.result import Bar, Json, Result, Sample, installed, save, this_machine
from fedmt_flower.device.engine.connection import running
from fedmt_flower.domain.round import Status

RECOVERY_S = 5.0
PATIENCE_S = 30.0
"""What a test asserts of a recovery: the bar is the record's, since a host that runs tests may be busy."""
CLAIM = "what goes wrong with one task, its worker, the engine or a client costs the other tasks nothing"


def draw(count: int, seed: int) -> list[tuple[int, Injection]]:
    """Rounds and their injections: every kind once in an order by `seed`, then all again in another."""
    chance, drawn = random.Random(seed), list[Injection]()
    while len(drawn) < count:
        drawn += chance.sample(INJECTIONS, len(INJECTIONS))
    return [(2 * index + 1, injection) for index, injection in enumerate(drawn[:count])]


def options(config: pytest.Config) -> tuple[int, int, str]:
    return (
        config.getoption("--faults", 12),
        config.getoption("--faults-seed", 1),
        config.getoption("--faults-record", ""),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "injection" in metafunc.fixturenames:
        count, seed, _ = options(metafunc.config)
        drawn = draw(count, seed)
        names = [f"{number}-{injection.name.replace(' ', '-')}" for number, injection in drawn]
        metafunc.parametrize(("number", "injection"), drawn, ids=names)


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[list[Sample]]:
    """What came of each injection; printed, and written down if that is asked for."""
    samples: list[Sample] = []
    started = time.monotonic()
    yield samples
    count, seed, path = options(request.config)
    bars = judge(samples, count)
    request.config.stash[BARS] = bars
    if path:
        result = Result(
            name="campaign",
            claim=CLAIM,
            machine=this_machine(None),
            versions=installed(),
            command=f"pytest tests/faults --faults {count} --faults-seed {seed}",
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started, 1),
            settings={"faults": count, "seed": seed},
            complete=len(samples) == count + 1,
            samples=tuple(samples),
            facts={"load averages at the end": [round(load, 1) for load in os.getloadavg()]},
            bars=tuple(bars),
        )
        save(result, Path(path))


@pytest.fixture(scope="module")
def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, record: list[Sample]
) -> Iterator[Scene]:
    """A scene whose rounds have been played without a fault; nothing of it may be left."""
    home, directory = (tmp_path_factory.mktemp(name) for name in ("fedmt", "scene"))
    scene = Scene(home=home, directory=directory)
    scene.clock.write_text("0")
    count, _, _ = options(request.config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMT_HOME", str(home))
        patch.setenv("FAULTS_CLOCK", str(scene.clock))
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "clock"))
        try:
            scene.prepare(2 * count)
            yield scene
        finally:
            for engine in running():
                engine.stop()
    processes = processes_marked("FEDMT_HOME", str(home))
    sockets = [str(path) for path in home.rglob("socket")]
    record.append(Sample(cell="afterwards", repeat=0, values={"processes": processes, "sockets": sockets}))
    assert (processes, sockets) == ([], [])


def test_the_others_lose_nothing(
    scene: Scene, record: list[Sample], request: pytest.FixtureRequest, number: int, injection: Injection
) -> None:
    _, seed, _ = options(request.config)
    scene.number = number
    delay_s = random.Random(f"{seed} {number}").uniform(0, 0.05)
    if injection.before:
        injection.before(scene)
    try:
        harmed = scene.play(injection.fault, injection.blow, delay_s, injection.deadline_s)
        scene.number += 1
        following = scene.play()
        strangers, files = leftovers(scene)
    finally:
        scene.forget()
        if injection.after:
            injection.after(scene)
    recovery_s = harmed.since_s + following.since_s
    report = harmed.report.task(VICTIM)
    values: dict[str, Json] = {
        "lost": [*lost(scene, number, harmed), *lost(scene, number + 1, following)],
        "altered": [*altered(scene, number, harmed), *altered(scene, number + 1, following)],
        "error": report.error.replace(str(scene.home), "$FEDMT_HOME"),
        "left": [*strangers, *files],
    }
    if injection.dies:
        values["recovery_s"] = round(recovery_s, 3)
    record.append(Sample(cell=injection.name, repeat=number // 2, values=values))

    assert values["lost"] == []
    assert values["altered"] == []
    assert injection.cause in report.error
    assert (report.status is Status.FAILED) == bool(injection.cause), report.error
    assert f"site 'ward', task '{VICTIM}'" in report.error or not injection.cause
    assert "\n" not in report.error
    assert values["left"] == []
    assert not injection.dies or recovery_s < PATIENCE_S
    assert 0 <= harmed.report.waited_s < 60
    assert 0 <= harmed.report.wall_s < 60


def lost(scene: Scene, number: int, played: Played) -> list[str]:
    """What the tasks lost that no fault had struck."""
    struck = () if number % 2 == 0 else (VICTIM,)
    return [
        f"round {number}: {report.task}: {report.error}"
        for report in played.report.tasks
        if report.task not in struck and report.status is Status.FAILED
    ]


def altered(scene: Scene, number: int, played: Played) -> list[str]:
    """Tasks whose weights are not those of a federation without faults."""
    expected = scene.reference[number]
    compared = SURVIVORS if number % 2 else tuple(expected)
    return [
        f"round {number}: {task}"
        for task in compared
        if task in played.weights and not same(played.weights[task], expected[task])
    ]


def leftovers(scene: Scene) -> tuple[list[int], list[str]]:
    """Processes and memory files that a moment after two rounds are still there."""
    deadline = time.monotonic() + 3
    while True:
        found = scene.strangers(), scene.memory_files()
        if not any(found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def judge(samples: Sequence[Sample], count: int) -> list[Bar]:
    """The campaign's goals."""
    struck = [sample.values for sample in samples if sample.cell != "afterwards"]
    bars = [Bar.counted("faults injected", count, len(struck), len(struck) == count)]
    for key, name in (
        ("lost", "rounds that tasks lost which no fault struck"),
        ("altered", "updates that are not those of a federation without faults, bit for bit"),
        ("left", "processes and memory files left behind by a fault"),
    ):
        total = sum(len(values[key]) for values in struck)
        bars.append(Bar.counted(name, 0, total, total == 0))
    for who in ("worker", "engine"):
        seconds = [
            sample.values["recovery_s"]
            for sample in samples
            if "recovery_s" in sample.values and (sample.cell.startswith("engine") == (who == "engine"))
        ]
        if seconds:
            median, slowest = statistics.median(seconds), max(seconds)
            name = f"seconds from the death of the {who} until the next round is over"
            bars.append(
                Bar.counted(f"{name}, median of {len(seconds)}", RECOVERY_S, median, median <= RECOVERY_S)
            )
            bars.append(Bar.counted(f"{name}, slowest", RECOVERY_S, slowest, slowest <= RECOVERY_S))
    ends = [sample.values for sample in samples if sample.cell == "afterwards"]
    left = sum(len(values["processes"]) + len(values["sockets"]) for values in ends)
    bars.append(Bar.counted("processes and sockets left behind", 0, left, left == 0))
    return bars
