"""What a node makes of its context and of a message."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.coordination import Coordination, NetworkRules
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.network import Link
from fedmt_flower.domain.round import Mode, RoundOrder, Status
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import ConfigError, EngineError, TaskError
from fedmt_flower.federation.arrays import to_weights
from fedmt_flower.federation.package import Share
from fedmt_flower.federation.sites import Site, SiteName, app_directories, site_of

INLINE = DeviceSettings(backend=Backend.INLINE)
TEMPORAL = Allocation(policy=Policy.TEMPORAL)


def made(hosted: dict[str, Task], /, name: SiteName = None, run: Any = None, **node: Any) -> Site:
    context = Context(7, 12, node, RecordDict(), run or {})
    return site_of(context, tuple(hosted.values()), allocation=TEMPORAL, device=INLINE, name=name)


def test_a_site_is_named_by_the_nearest_that_names_it(tasks: dict[str, Task]) -> None:
    both = {"site": "ward", "partition-id": 3}
    assert made(tasks, "given", **both).name == "given"
    assert made(tasks, lambda context: f"n{context.node_id}", **both).name == "n12"
    assert made(tasks, **both).name == "ward"
    assert made(tasks, **{"partition-id": 3}).name == "site-3"
    assert made(tasks).name == "node-12"
    with pytest.raises(ConfigError, match="site name 'a/b'"):
        made(tasks, site="a/b")


def test_a_node_may_host_some_of_the_tasks(tasks: dict[str, Task]) -> None:
    assert [task.name for task in made(tasks, tasks="det, seg").tasks] == ["det", "seg"]
    with pytest.raises(ConfigError, match="tasks='det,dog' names 'dog', expected some of seg, det, enc"):
        made(tasks, tasks="det,dog")
    with pytest.raises(ConfigError, match="two tasks are named 'det'"):
        made(tasks, tasks="det,det")


def test_workers_import_from_where_the_app_does(
    tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    assert app_directories()[0] == str(tmp_path)
    assert not any(path.startswith(sys.prefix) for path in app_directories())
    own = tasks["det"].python_path
    assert made(tasks).tasks[0].python_path == (*own, *app_directories())


def shares(models: Any, **configs: Any) -> dict[str, Share]:
    return {
        name: Share(mode=Mode.TRAIN, weights=to_weights(models()[name]), config=config)
        for name, config in configs.items()
    }


def test_the_server_overrides_the_node_which_overrides_the_run(tasks: dict[str, Task], models: Any) -> None:
    site = made(tasks, run={"lr": 0.1, "epochs": 4}, **{"partition-id": 0, "epochs": 2})
    report, _ = site.play(1, shares(models, det={"lr": 0.0}, enc={}))
    assert report.task("det").samples == 2 * 24
    _, weights = site.play(1, shares(models, det={"lr": 0.0}))
    for key, array in weights["det"].items():
        np.testing.assert_array_equal(array, to_weights(models()["det"])[key])


def test_an_emulated_link_is_refused_where_there_is_a_real_one(tasks: dict[str, Task], models: Any) -> None:
    link = Link(up_mbps=100, down_mbps=100)
    site = replace(made(tasks), coordination=Coordination(network=NetworkRules(link=link)))
    with pytest.raises(ConfigError, match=r"network: an emulated link .* network.force=true") as caught:
        site.play(1, shares(models, det={}))
    assert "\n" not in str(caught.value)
    forced = replace(site, coordination=Coordination(network=NetworkRules(link=link, force=True)))
    with pytest.raises(ConfigError, match="inline engine emulates no link"):
        forced.play(1, shares(models, det={}))


def test_a_share_that_cannot_be_played_costs_the_others_nothing(tasks: dict[str, Task], models: Any) -> None:
    site = made(tasks, tasks="seg,det", **{"partition-id": 0})
    asked = shares(models, enc={}, seg={"schedule": [1, 2]}, det={})
    report, weights = site.play(1, asked)
    assert list(weights) == ["det"]
    assert report.task("enc").error == "site 'site-0', task 'enc': not hosted here; the site has seg, det"
    assert "configuration 'schedule' is of type list" in report.task("seg").error
    assert report.task("seg").status is Status.FAILED


def test_when_none_can_be_played_the_site_says_why(tasks: dict[str, Task], models: Any) -> None:
    site = made(tasks, tasks="seg", **{"partition-id": 0})
    with pytest.raises(TaskError, match="task 'det': not hosted here"):
        site.play(1, shares(models, det={}))
    with pytest.raises(TaskError, match="asks for no task"):
        site.play(1, {})


def test_a_round_is_told_apart_by_its_number(tasks: dict[str, Task], models: Any) -> None:
    site = made({"enc": tasks["enc"]}, **{"partition-id": 0})
    first, again, second = (site.play(number, shares(models, enc={}))[1]["enc"] for number in (1, 1, 2))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], second[key]) for key in first)


def test_the_engine_is_told_of_each_tasks_deadline(
    tasks: dict[str, Task], models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[RoundOrder] = []

    class Busy:
        def run_round(self, order: RoundOrder, weights: object) -> None:
            orders.append(order)
            raise EngineError("busy")

        def close(self) -> None:
            """There is nothing to let go of."""

    monkeypatch.setattr("fedmt_flower.federation.sites.connect", lambda device: Busy())
    asked = shares(models, det={}, enc={})
    with pytest.raises(EngineError):
        made(tasks).play(1, {**asked, "enc": replace(asked["enc"], deadline_s=7.5)})
    assert [one.deadline_s for one in orders[0].assignments] == [None, 7.5]
