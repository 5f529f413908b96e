"""`fedmt doctor`, on this very machine."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import pytest

from fedmt_flower.cli import doctor, main


def test_it_tells_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["doctor", "--json"])
    answer = json.loads(capsys.readouterr().out)
    found = {finding["what"]: finding for finding in answer["findings"]}
    assert found["python"]["found"] == platform.python_version()
    assert found["flwr"]["found"] == version("flwr")
    assert bool(answer["gpu"]["gpus"]) == ("GPU 0" in found)
    assert code == int(any(finding["verdict"] == "problem" for finding in answer["findings"]))

    assert main(["doctor"]) == code
    text = capsys.readouterr().out
    assert all(name.strip() in text for name in found)


def test_what_is_missing_comes_with_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_installed", lambda name: name == "xgboost")
    assert main(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    ray = next(finding for finding in findings if finding["what"] == "ray")
    assert (ray["verdict"], ray["found"]) == ("note", "not installed")
    assert "fedmt_flower[simulation]" in ray["advice"]
    cuda_build = next(finding for finding in findings if finding["verdict"] == "problem")
    assert "pip uninstall xgboost" in cuda_build["advice"]
