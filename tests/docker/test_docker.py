"""The containers' files, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
FILES = {"plain": ("compose.yml",), "tls": ("compose.yml", "compose.tls.yml")}
SITES = {"cpu": ("clientapp-1", "clientapp-2"), "gpu": ("clientapp-1-gpu", "clientapp-2-gpu")}
PROGRAMS = ("flower-superlink", "flower-supernode", "flower-superexec")


@cache
def compose_command() -> tuple[str, ...]:
    for command in (("docker", "compose"), ("docker-compose",)):
        if shutil.which(command[0]):
            asked = subprocess.run([*command, "version", "--short"], capture_output=True, text=True)
            if re.match(r"v?[2-9]\.", asked.stdout):
                return command
    pytest.skip("no `docker compose` of version 2 or later on this host")


def composed(files: tuple[str, ...], profile: str) -> dict[str, Any]:
    """What `docker compose config` makes of the files; fails if it does not accept them."""
    named = [word for file in files for word in ("--file", str(DOCKER / file))]
    done = subprocess.run(
        [*compose_command(), *named, "--profile", profile, "config", "--format", "json"],
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)
    return services


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    hadolint = shutil.which("hadolint", path=str(BIN)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("no hadolint on this host")
    done = subprocess.run([hadolint, str(DOCKER / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("profile", SITES)
@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_compose_accepts_the_files(files: tuple[str, ...], profile: str) -> None:
    config = composed(files, profile)
    services = config["services"]
    assert set(services) == {"superlink", "serverapp", "supernode-1", "supernode-2", *SITES[profile]}
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert [(port["host_ip"], port["published"]) for port in published] == [("127.0.0.1", "8000")]
    for name, service in services.items():
        secured = "--insecure" not in service["command"]
        assert secured == (len(files) == 2), name
        assert "grpc_health" in service["healthcheck"]["test"][-1]
    for site, gpu in zip(SITES[profile], ("0", "1"), strict=True):
        (network,) = services[site]["networks"]
        assert config["networks"][network]["internal"] is True
        devices = services[site].get("deploy", {}).get("resources", {}).get("reservations", {})
        assert [one["device_ids"] for one in devices.get("devices", [])] == ([[gpu]] * (profile == "gpu"))


def test_no_service_sees_another_ones_keys() -> None:
    for name, service in yaml.safe_load((DOCKER / "compose.tls.yml").read_text())["services"].items():
        owner = {"serverapp": "superlink"}.get(
            name, name.replace("clientapp", "supernode").removesuffix("-gpu")
        )
        for secret in service["secrets"]:
            assert secret == "ca.pem" or secret.startswith(f"{owner}."), name
        named = re.findall(r"/run/secrets/(\S+)", "\n".join(service["command"]))
        assert set(named) == set(service["secrets"]), name


@cache
def options(program: str) -> frozenset[str]:
    done = subprocess.run([str(BIN / program), "--help"], capture_output=True, text=True, timeout=120)
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w-]*", done.stdout))


def commands(text: str) -> list[str]:
    """The commands of Flower's programs in the code blocks of a page."""
    blocks = "\n".join(re.findall(r"^```\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line.removeprefix("fedmt warm -- ") for line in blocks.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.startswith("flower-")]


def test_flower_knows_every_option_that_the_guide_gives() -> None:
    given = commands((ROOT / "docs" / "deploy.md").read_text())
    assert {command.split()[0] for command in given} == set(PROGRAMS)
    for command in given:
        used = set(re.findall(r"(?<!\S)--[a-z][\w-]*", command))
        assert used <= options(command.split()[0]), command


def test_flower_knows_every_option_that_the_services_are_given() -> None:
    programs: dict[str, str] = {}
    for file in FILES["tls"]:
        for name, service in yaml.safe_load((DOCKER / file).read_text())["services"].items():
            words = service.get("entrypoint", []) + service["command"]
            if name.startswith("clientapp-") and "entrypoint" in service:
                assert words[:3] == ["fedmt", "warm", "--"], name
                words = words[3:]
            programs.setdefault(name, words[0])
            used = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert used <= options(programs[name]), name
    assert set(programs.values()) == set(PROGRAMS)


def test_all_files_name_one_version_of_flower() -> None:
    texts = [
        path.read_text() for path in (DOCKER / "Dockerfile", DOCKER / "compose.yml", DOCKER / "README.md")
    ]
    found = [re.findall(r"FLWR_VERSION(?:=|:-|` \| )(\d+\.\d+\.\d+)", text) for text in texts]
    assert all(found)
    assert len({version for versions in found for version in versions}) == 1
