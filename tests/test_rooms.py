"""The rooms of the package import in one direction, and each heavy library has its one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedmt_flower

PACKAGE = Path(fedmt_flower.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

ORDER = ("errors", "domain", "planning", "device", "federation", "cli", "plots")
"""A room may import itself and what stands before it; `cli`, `plots` and `bench` are one outside."""

RANK = {room: rank for rank, room in enumerate(ORDER)} | dict.fromkeys(["plots", "bench"], ORDER.index("cli"))

FLOORS = (
    *("contract", "ipc", "training", "worker", "backends", "processes", "profile", "planner", "inline"),
    "engine",
)
"""The packages and modules of `device`, likewise."""

HOMES = {
    "flwr": ("federation/",),
    "ray": ("federation/",),
    "torch": ("device/", "tasks/"),
    "torchvision": ("device/", "tasks/"),
    "xgboost": ("planning/xgboost_model.py",),
    "hydra": ("federation/compose.py",),
    "omegaconf": ("federation/compose.py",),
    "pynvml": ("device/",),
    "prometheus_client": ("device/engine/monitor.py",),
    "matplotlib": ("plots/",),
    "rich": ("cli/",),
}
"""Where a library may be imported."""


def imports(module: str) -> Iterator[str]:
    """Every module that `module` imports, anywhere in it, by its full name."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    return module.split("/")[0].removesuffix(".py")


def test_there_are_modules_in_every_room() -> None:
    assert set(ORDER) <= {room(module) for module in MODULES}


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) in RANK])
def test_a_room_imports_only_rooms_above_it(module: str) -> None:
    names = {name.split(".")[1] for name in imports(module) if name.startswith("fedmt_flower.")}
    below = {name for name in names & set(RANK) if RANK[name] > RANK[room(module)]}
    assert not below, f"{module} imports {below}"


@pytest.mark.parametrize(
    "module", [m for m in MODULES if m.startswith("device/") and m != "device/__init__.py"]
)
def test_a_floor_of_the_device_imports_only_floors_above_it(module: str) -> None:
    own = FLOORS.index(module.split("/")[1].removesuffix(".py"))
    names = [name.split(".") for name in imports(module) if name.startswith("fedmt_flower.device.")]
    below = {name[2] for name in names if name[2] in FLOORS and FLOORS.index(name[2]) > own}
    assert not below, f"{module} imports {below}"


@pytest.mark.parametrize("module", [m for m in MODULES if room(m) != "tasks"])
def test_tasks_are_reached_by_import_path_only(module: str) -> None:
    assert not [name for name in imports(module) if name.startswith("fedmt_flower.tasks")]


@pytest.mark.parametrize("module", MODULES)
def test_heavy_libraries_stay_in_their_places(module: str) -> None:
    wrong = {
        library
        for library in {name.split(".")[0] for name in imports(module)}
        if library in HOMES and not module.startswith(HOMES[library])
    }
    assert not wrong, f"{module} imports {wrong}"


def test_only_one_module_names_the_variables_of_mps() -> None:
    speaking = [module for module in MODULES if "CUDA_MPS_" in (PACKAGE / module).read_text()]
    assert len(speaking) == 1
    assert room(speaking[0]) == "device"


@pytest.mark.parametrize("module", ["fedmt_flower", "fedmt_flower.cli", "fedmt_flower.domain.round"])
def test_importing_the_package_loads_nothing_heavy(module: str) -> None:
    heavy = ["torch", "flwr", "ray", "xgboost", "hydra", "omegaconf", "matplotlib", "sklearn"]
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({heavy!r})))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


def test_modules_of_tests_have_names_of_their_own() -> None:
    """Pytest imports them by their bare names, so that a second one of a name stops the whole suite."""
    met = Counter(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert not [name for name, count in met.items() if count > 1]
