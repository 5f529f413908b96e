"""User code is found by its path and called by its parameters' names."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fedmt_flower.device.training.binding import bind, lookup, names, resolve, resolve_callable
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import TaskError

KNOWN = {"epochs": 2, "learning_rate": 0.1, "device": "cpu", "config": {}}


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("app_"):
            del sys.modules[name]


def task_in(folder: Path, model: str) -> Task:
    return Task(name="seg", model=model, data="app_x:data", python_path=(str(folder),))


def test_first_parameters_take_model_and_data_whatever_their_names() -> None:
    def train(net: Any, trainloader: Any, epochs: int, lr: float, device: str, momentum: float = 0.5) -> Any:
        return net, trainloader, epochs, lr, device, momentum

    bound = bind(train, "model", "data", known=KNOWN, where="here")
    assert train(*bound.args, **bound.kwargs) == ("model", "data", 2, 0.1, "cpu", 0.5)


def test_keyword_only_and_catch_all_parameters() -> None:
    def train(model: Any, data: Any, *rest: Any, config: dict[str, Any], **others: Any) -> None: ...

    bound = bind(train, 1, 2, known=KNOWN, where="here")
    assert bound.kwargs == {"config": {}}
    assert bound.args == (1, 2)


@pytest.mark.parametrize("wanted", ["local_epochs", "num_epochs", "epochs"])
def test_names_of_one_meaning(wanted: str) -> None:
    assert lookup(names({"local-epochs": 4}), wanted) == 4


def test_an_exact_name_goes_before_its_alias() -> None:
    assert lookup({"local_epochs": 5, "epochs": 2}, "epochs") == 2


def test_a_class_is_bound_without_its_self() -> None:
    assert bind(torch.nn.Linear, known={"in_features": 3, "out_features": 2}, where="").arguments == {
        "in_features": 3,
        "out_features": 2,
        "bias": True,
        "device": None,
        "dtype": None,
    }


def test_a_parameter_without_value_is_named_with_its_likes() -> None:
    def train(model: Any, data: Any, learning_rat: float) -> None: ...

    with pytest.raises(TaskError, match=r"task 'seg', train: parameter 'learning_rat' has no value") as info:
        bind(train, 1, 2, known=KNOWN, where="task 'seg', train")
    assert "did you mean learning_rate?" in str(info.value)
    assert "known: config, device, epochs, learning_rate" in str(info.value)


def test_too_few_parameters() -> None:
    def train(model: Any) -> None: ...

    with pytest.raises(TaskError, match="takes 1 positional parameters, expected at least 2"):
        bind(train, 1, 2, known={}, where="here")


@pytest.mark.parametrize(
    ("path", "cause"),
    [
        ("app_m:modle", "app_m has no 'modle'; did you mean model?"),
        ("app_mm:model", "there is no module 'app_mm'; did you mean app_m?"),
        ("app_m.sub:model", "there is no module 'app_m.sub'"),
        ("app_broken:model", r"importing app_broken raised ZeroDivisionError: .* \(app_broken.py:1\)"),
        ("app_needs:model", "importing app_needs raised ModuleNotFoundError: No module named 'app_absent'"),
        ("app_m:number", "got a int, expected something that can be called"),
    ],
)
def test_what_cannot_be_imported_is_told_in_one_line(tmp_path: Path, path: str, cause: str) -> None:
    (tmp_path / "app_m.py").write_text("number = 1\ndef model(): return 1\n")
    (tmp_path / "app_broken.py").write_text("1 / 0\n")
    (tmp_path / "app_needs.py").write_text("import app_absent\n")
    with pytest.raises(TaskError, match=f"task 'seg', model '{path}': {cause}") as info:
        resolve_callable(task_in(tmp_path, path), "model")
    assert "\n" not in str(info.value)


def test_two_apps_with_modules_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "app_same.py").write_text(f"where = {folder!r}\n")
    assert resolve(task_in(tmp_path / "one", "app_same:where"), "model") == "one"
    with pytest.raises(TaskError, match="is hidden by a module of the same name"):
        resolve(task_in(tmp_path / "two", "app_same:where"), "model")
