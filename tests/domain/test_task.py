"""The short way to name a task of the usual shape."""

from __future__ import annotations

import pytest

from fedmt_flower import Task
from fedmt_flower.domain.task import TaskKind
from fedmt_flower.errors import ConfigError


def test_a_module_of_the_usual_shape_is_a_task() -> None:
    task = Task.in_module("digits", "digits.task", model="Model", parameters={"lr": 0.1})
    assert task == Task(
        name="digits",
        model="digits.task:Model",
        data="digits.task:load_data",
        train="digits.task:train",
        evaluate="digits.task:test",
        parameters={"lr": 0.1},
    )
    assert task.kind is TaskKind.WHOLE_CALL


def test_a_path_that_cannot_be_one_is_told_for_every_field() -> None:
    with pytest.raises(ConfigError) as caught:
        Task.in_module("digits", "digits/task")
    assert len(caught.value.problems) == 4


def test_steps_that_the_packages_loop_cannot_take_are_told_with_the_choices() -> None:
    parameters = {"step": "fast", "memory-format": 3}
    with pytest.raises(ConfigError) as caught:
        Task(name="x", model="a:b", data="a:c", parameters=parameters)
    assert caught.value.problems == (
        "task 'x', step: got 'fast', expected one of auto, eager, graph",
        "task 'x', memory_format: got 3, expected one of contiguous, channels_last",
    )
    own = Task(name="x", model="a:b", data="a:c", trainer="a:d", parameters=parameters)
    assert own.kind is TaskKind.STEPPED
