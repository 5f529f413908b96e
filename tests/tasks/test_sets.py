"""The task sets of `conf/tasks`: all can be built, and the hospital learns what it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedmt_flower.device.contract import Weights
from fedmt_flower.device.inline import InlineEngine
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.training.binding import resolve
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.round import Assignment, Mode, RoundOrder
from fedmt_flower.domain.task import Task

CONF = Path(__file__).resolve().parents[2] / "conf"
CATALOGUE = yaml.safe_load((CONF / "catalogue.yaml").read_text())
SECTIONS = {"model": "models", "data": "data", "objective": "objectives", "optimizer": "optimizers"}
ROUNDS, SITES = 5, 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tasks(which: str) -> dict[str, Task]:
    content = yaml.safe_load((CONF / "tasks" / f"{which}.yaml").read_text())
    return {
        name: Task(
            name=name,
            **{k: CATALOGUE[SECTIONS[k]][v] if k in SECTIONS else v for k, v in fields.items()},
        )
        for name, fields in content.items()
    }


def test_the_catalogue_names_what_there_is() -> None:
    for section, entries in CATALOGUE.items():
        field = next(field for field, name in SECTIONS.items() if name == section)
        for path in entries.values():
            task = Task(name="t", **{"model": "m:m", "data": "m:m", field: path})
            assert resolve(task, field) is not None


@pytest.mark.parametrize("which", ["light", "heavy", "hybrid", "fashion", "hospital"])
def test_three_tasks_whose_models_fit_their_data(which: str) -> None:
    sets = tasks(which)
    assert len(sets) == 3
    for task in sets.values():
        runtime = TaskRuntime(task, "cpu")
        share = {**task.parameters, "num_partitions": 500 if which == "fashion" else 20, "samples": 100}
        job = Job(site="s", round=1, seed=0, mode=Mode.TRAIN, parameters=share)
        model = runtime.model(job).eval()
        train = runtime.splits(job).train
        with torch.no_grad():
            measured = runtime.objective().measure(model, tuple(part[:2] for part in train))
        assert all(values.shape == (2,) and values.isfinite().all() for values in measured.values())


def federate(task: Task, sites: int) -> Weights:
    """Train for the hospital's rounds: plain averaging, weighted by samples."""
    engine, weights = InlineEngine(), dict(initial_weights(task, 0))
    for round in range(1, ROUNDS + 1):
        updates: list[tuple[int, Weights]] = []
        for site in range(sites):
            share = {"partition-id": site, "num-partitions": sites}
            order = RoundOrder(
                run="test",
                round=round,
                site=f"site-{site}",
                assignments=(Assignment(task=task, mode=Mode.TRAIN, parameters=share),),
                allocation=Allocation(policy=Policy.TEMPORAL),
            )
            result = engine.run_round(order, {task.name: weights})
            report = result.report.task(task.name)
            assert report.error == ""
            updates.append((report.train_examples, result.weights[task.name]))
        total = sum(examples for examples, _ in updates)
        weights = {
            name: np.asarray(sum(update[name] * (examples / total) for examples, update in updates))
            for name in weights
        }
    return weights


def per_sample(task: Task, weights: Weights) -> Mapping[str, torch.Tensor]:
    """Each metric of each sample of the whole test split."""
    runtime = TaskRuntime(task, "cpu")
    job = Job(site="s", round=1, seed=0, mode=Mode.EVALUATE, parameters=task.parameters)
    model: Any = runtime.model(job).eval()
    model.load_state_dict({name: torch.from_numpy(np.asarray(array)) for name, array in weights.items()})
    test: Any = runtime.splits(job).test
    with torch.no_grad():
        return {k: v.double() for k, v in runtime.objective().measure(model, test).items()}


@pytest.mark.parametrize("name", ["forms", "progression", "cells"])
def test_the_hospital_comes_within_two_standard_errors_of_central_training(name: str) -> None:
    task = tasks("hospital")[name]
    before = per_sample(task, initial_weights(task, 0))
    central, federated = (per_sample(task, federate(task, sites)) for sites in (1, SITES))
    for metric, values in central.items():
        standard_error = float(values.std()) / len(values) ** 0.5
        difference = float(federated[metric].mean() - values.mean())
        assert abs(difference) < 2 * standard_error, metric
    assert float(federated["loss"].mean()) < 0.75 * float(before["loss"].mean())
