"""From import paths to calls: find a user's functions and hand them what they ask for by name."""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmt_flower.device.training.faults import describe
from fedmt_flower.domain.task import Task
from fedmt_flower.errors import TaskError

_ALIASES = (
    ("epochs", "local_epochs", "num_epochs"),
    ("lr", "learning_rate"),
    ("round", "server_round"),
)


def resolve(task: Task, field: str) -> Any:
    """Import what `field` of `task` names, after putting `task.python_path` in front of ``sys.path``.

    Raises
    ------
    TaskError
        If there is no such module or object, or importing it raised; with close matches if any.
    """
    path: str = getattr(task, field)
    where = f"task {task.name!r}, {field} {path!r}"
    module_name, _, attributes = path.partition(":")
    _extend_search(task, where, module_name.partition(".")[0])
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise TaskError(f"{where}: importing {module_name} raised {describe(error)}") from error
        close = _close(module_name, _siblings(error.name))
        raise TaskError(f"{where}: there is no module {error.name!r}{close}") from error
    except Exception as error:
        raise TaskError(f"{where}: importing {module_name} raised {describe(error)}") from error
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            close = _close(attribute, [name for name in dir(found) if not name.startswith("__")])
            raise TaskError(f"{where}: {module_name} has no {attribute!r}{close}")
        found = getattr(found, attribute)
    return found


def resolve_callable(task: Task, field: str) -> Callable[..., Any]:
    """Import what `field` of `task` names; TaskError unless it can be called."""
    found = resolve(task, field)
    if not callable(found):
        raise TaskError(
            f"task {task.name!r}, {field} {getattr(task, field)!r}: "
            f"got a {type(found).__name__}, expected something that can be called"
        )
    return found  # type: ignore[no-any-return]


def names(values: Mapping[str, object]) -> dict[str, Any]:
    """Give `values` the names that parameters can have: ``local-epochs`` becomes ``local_epochs``."""
    return {name.replace("-", "_").replace(".", "_"): value for name, value in values.items()}


def lookup(known: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """The value of `name` in `known`, under that name or one that means the same."""
    for candidate in (name, *_synonyms(name)):
        if candidate in known:
            return known[candidate]
    return default


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of `function` by name, each with its default; None where it has none."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # it is not written in Python
        return {}
    return {p.name: None if p.default is p.empty else p.default for p in parameters}


def bind(
    function: Callable[..., Any],
    *positional: object,
    known: Mapping[str, object],
    where: str,
) -> inspect.BoundArguments:
    """Bind the arguments of a call: `positional` come first, every other parameter by its name.

    Parameters
    ----------
    function
        What will be called. Its first parameters take `positional` whatever their names are. Each
        other one that `known` has a value for gets it; ``epochs``, ``local_epochs`` and ``num_epochs``
        mean the same, as do ``lr`` and ``learning_rate``. ``**kwargs`` receives nothing.
    known
        Values by parameter name.
    where
        What an error says first: the task and the field.

    Returns
    -------
    inspect.BoundArguments
        With the defaults applied.

    Raises
    ------
    TaskError
        If a parameter has neither a value nor a default, or too few take `positional`.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:
        signature = inspect.Signature()
    parameters = list(signature.parameters.values())
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(plain) < len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise TaskError(
            f"{where}: takes {len(plain)} positional parameters, expected at least {len(positional)}"
        )
    given: dict[str, object] = {}
    for parameter in [*plain[len(positional) :], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]:
        value = lookup(known, parameter.name, parameter.default)
        if value is parameter.empty:
            raise TaskError(
                f"{where}: parameter {parameter.name!r} has no value"
                f"{_close(parameter.name, known)}; set it among the task's parameters "
                f"(known: {', '.join(sorted(known))})"
            )
        given[parameter.name] = value
    bound = signature.bind(*positional, **given)
    bound.apply_defaults()
    return bound


@dataclass(frozen=True, slots=True)
class Call:
    """A user's function, and what it will be called with."""

    function: Callable[..., Any]
    arguments: inspect.BoundArguments

    def __call__(self) -> Any:
        return self.function(*self.arguments.args, **self.arguments.kwargs)


def prepare(task: Task, field: str, *positional: object, known: Mapping[str, object]) -> Call:
    """Find what `field` of `task` names and bind it as `bind` does; TaskError if either cannot be done."""
    function = resolve_callable(task, field)
    where = f"task {task.name!r}, {field} {getattr(task, field)!r}"
    return Call(function, bind(function, *positional, known=known, where=where))


def _synonyms(name: str) -> tuple[str, ...]:
    for group in _ALIASES:
        if name in group:
            return tuple(other for other in group if other != name)
    return ()


def _close(name: str, candidates: Mapping[str, object] | list[str]) -> str:
    matches = difflib.get_close_matches(name, list(candidates), n=3)
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _siblings(missing: str) -> list[str]:
    """Full names of the modules beside the one that is missing."""
    parent, _, _ = missing.rpartition(".")
    if parent:
        path = getattr(sys.modules.get(parent), "__path__", None)
        return [f"{parent}.{module.name}" for module in pkgutil.iter_modules(path)] if path else []
    return [module.name for module in pkgutil.iter_modules()]


def _extend_search(task: Task, where: str, top: str) -> None:
    for directory in reversed(task.python_path):
        if directory not in sys.path:
            sys.path.insert(0, directory)
    loaded = getattr(sys.modules.get(top), "__spec__", None)
    if loaded is None or not task.python_path:
        return
    importlib.invalidate_caches()
    spec = importlib.machinery.PathFinder.find_spec(top, list(task.python_path))
    if spec and spec.origin and loaded.origin and Path(spec.origin) != Path(loaded.origin):
        raise TaskError(
            f"{where}: {spec.origin} is hidden by a module of the same name that another task of this "
            f"process has loaded from {loaded.origin}; rename one, or use a backend with a process per task"
        )
