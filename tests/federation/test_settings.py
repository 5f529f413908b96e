"""From overrides to settings; what cannot be is in tests/cli/test_bad_input.py, as a user meets it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedmt_flower.domain.allocation import Policy
from fedmt_flower.domain.coordination import (
    Batching,
    BatchRules,
    Coordination,
    LearningRate,
    NetworkRules,
    OverlapRules,
)
from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.network import Link, Overlap
from fedmt_flower.domain.round import TaskRules
from fedmt_flower.errors import ConfigError
from fedmt_flower.federation.compose import compose, conf_dir, expand


def test_the_default_is_three_tasks_on_three_sites() -> None:
    settings = compose()
    assert [task.name for task in settings.tasks] == ["forms", "progression", "cells"]
    assert len({task.objective for task in settings.tasks}) == 3
    assert settings.federation.sites == 3
    assert settings.allocation.policy is Policy.ISOLATED


@pytest.mark.parametrize(
    "group", ["tasks", "data", "allocation", "batching", "overlap", "network", "device", "federation"]
)
def test_every_choice_of_every_group_can_be_used(group: str) -> None:
    for choice in (conf_dir() / group).glob("*.yaml"):
        assert compose([f"{group}={choice.stem}"]).tasks


def test_short_names_stand_for_import_paths() -> None:
    task = compose(["tasks.forms.model=lenet", "tasks.forms.optimizer=adam"]).tasks[0]
    assert task.model == "fedmt_flower.tasks.models:lenet"
    assert task.optimizer == "torch.optim:Adam"


def test_data_is_shared_out_through_the_parameters_of_the_tasks() -> None:
    settings = compose(
        ["data=dirichlet", "data.alpha=0.2", "data.site_volumes=[1,2,3]", "data.task_volumes=[1,2,4]"]
    )
    parameters = [task.parameters for task in settings.tasks]
    assert [own["volume"] for own in parameters] == [0.25, 0.5, 1.0]
    for own in parameters:
        assert own["partition"] == "dirichlet"
        assert own["alpha"] == 0.2
        assert own["site_volumes"] == "1:2:3"


def test_a_task_says_for_itself_how_its_data_is_shared_out() -> None:
    settings = compose(["data=dirichlet", "+tasks.cells.parameters.partition=iid"])
    assert [task.parameters["partition"] for task in settings.tasks] == ["dirichlet", "dirichlet", "iid"]


def test_one_string_means_the_same_as_words() -> None:
    words = ["allocation=static", "allocation.budgets=[80, 40, 60]", "device=inline", "folder=/tmp/x y"]
    settings = compose("allocation=static 'allocation.budgets=[80, 40, 60]' device=inline 'folder=/tmp/x y'")
    assert settings == compose(words)
    assert settings.allocation.budgets == (80.0, 40.0, 60.0)
    assert settings.device.backend is Backend.INLINE
    assert settings.folder == Path("/tmp/x y")


def test_a_task_can_have_a_strategy_of_its_own() -> None:
    federation = compose(
        ["+federation.strategies.cells.name=FedAdam", "+federation.strategies.cells.parameters.eta=0.5"]
    ).federation
    chosen = federation.strategies_of(["forms", "cells"])
    assert chosen["forms"].name == "FedAvg"
    assert (chosen["cells"].name, dict(chosen["cells"].parameters)) == ("FedAdam", {"eta": 0.5})


def test_the_text_is_the_resolved_configuration() -> None:
    text = compose(["allocation=temporal", "tasks.forms.parameters.lr=0.125", "folder=here"]).text
    assert "policy: temporal" in text
    assert "lr: 0.125" in text
    assert "folder: here" in text
    assert "${" not in text


def test_coordination_is_off_unless_it_is_asked_for() -> None:
    assert compose().coordination == Coordination()


def test_every_value_of_the_coordination_is_an_override() -> None:
    coordination = compose(
        [
            "batching=proportional",
            "batching.choices=[32,64]",
            "batching.learning_rate=sqrt",
            "overlap=fifo",
            "overlap.order=[cells,forms]",
            "network=wifi",
            "network.up_mbps=12.5",
            "network.force=true",
        ]
    ).coordination
    assert coordination.batching == BatchRules(
        policy=Batching.PROPORTIONAL, choices=(32, 64), learning_rate=LearningRate.SQRT
    )
    assert coordination.overlap == OverlapRules(policy=Overlap.FIFO, order=("cells", "forms"))
    assert coordination.overlap.arrange(["forms", "progression", "cells"]) == (
        "cells",
        "forms",
        "progression",
    )
    assert coordination.network == NetworkRules(
        link=Link(up_mbps=12.5, down_mbps=200.0, full_duplex=False, latency_s=0.003), force=True
    )


def test_a_directory_of_ones_own_adds_choices(tmp_path: Path) -> None:
    tmp_path.joinpath("tasks").mkdir()
    tmp_path.joinpath("tasks", "ward.yaml").write_text(
        "triage: {model: 'ward:Net', data: 'ward:load', python_path: [.]}"
    )
    settings = compose([f"hydra.searchpath=['file://{tmp_path}']", "tasks=ward"])
    (task,) = settings.tasks
    assert (task.name, task.model) == ("triage", "ward:Net")
    assert task.python_path == (str(Path.cwd()),)


def test_a_sweep_varies_its_last_override_first() -> None:
    assert expand(["allocation=temporal,sharing", "federation.rounds=2", "federation.sites=2,3"]) == (
        ("allocation=temporal", "federation.rounds=2", "federation.sites=2"),
        ("allocation=temporal", "federation.rounds=2", "federation.sites=3"),
        ("allocation=sharing", "federation.rounds=2", "federation.sites=2"),
        ("allocation=sharing", "federation.rounds=2", "federation.sites=3"),
    )


def test_a_sweep_can_vary_lists_and_keys_that_are_new() -> None:
    combinations = expand(
        ["+federation.strategies.cells.name=FedAdam,FedYogi", "allocation.budgets=[1],[2,3]"]
    )
    assert combinations[0] == ("+federation.strategies.cells.name=FedAdam", "allocation.budgets=[1]")
    assert combinations[3] == ("+federation.strategies.cells.name=FedYogi", "allocation.budgets=[2,3]")


def test_a_string_that_is_not_closed_is_an_error() -> None:
    with pytest.raises(ConfigError, match="No closing quotation"):
        compose("folder='x")


def test_rules_are_those_of_all_tasks_or_of_one() -> None:
    federation = compose(
        ["federation.rules.quorum=2", "++federation.task_rules.cells.deadline_s=20"]
    ).federation
    assert federation.rules_of(["forms", "cells"]) == {
        "forms": TaskRules(quorum=2),
        "cells": TaskRules(deadline_s=20.0),
    }
