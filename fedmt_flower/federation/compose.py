"""Hydra: from overrides to a checked configuration."""

from __future__ import annotations

import difflib
import itertools
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import msgspec.yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedmt_flower.errors import ConfigError, expected_one_of
from fedmt_flower.federation.settings import Settings, read_settings

_PACKAGE = Path(__file__).resolve().parents[1]
_SEARCH = "hydra.searchpath"
_FREE = (".parameters.", "federation.strategies.")
"""Where a user may put keys of their own."""
_ABSENT = object()


def conf_dir() -> Path:
    """The package's configuration: inside a wheel, beside the package in a checkout."""
    shipped = _PACKAGE / "conf"
    return shipped if shipped.is_dir() else _PACKAGE.parent / "conf"


def compose(overrides: Sequence[str] | str = ()) -> Settings:
    """The settings that Hydra's `overrides` of ``conf/config.yaml`` give.

    Parameters
    ----------
    overrides
        Words as on a command line, or one string of them, quoted as in a shell.

    Raises
    ------
    ConfigError
        With every problem there is: unknown choices and keys, and values that cannot be.
    """
    words, problems = _parse(_split(overrides))
    for word in [word for word in words if word.is_sweep_override()]:
        problems.append(f"override {word.input_line}: several values make a sweep; run `fedmt sim -m`")
        words.remove(word)
    choices = _Choices((conf_dir(), *_searched(words)))
    with hydra.initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        try:
            words = choices.existing(words, problems)
            words = _existing_keys(words, _compose(choices.among(words)), problems)
            config = _compose(words)
            content = OmegaConf.to_container(config, resolve=True)
            text = OmegaConf.to_yaml(config, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(*problems, f"configuration: {str(error).splitlines()[0]}") from error
    assert isinstance(content, dict)
    catalogue = (conf_dir() / "catalogue.yaml").read_bytes()
    return read_settings(
        {str(key): node for key, node in content.items()},
        text,
        msgspec.yaml.decode(catalogue, type=dict[str, dict[str, str]]),
        problems,
    )


def expand(overrides: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every combination of a sweep: the overrides of one run each, the last one varying first.

    ``allocation=temporal,sharing federation.sites=2,3`` makes four.
    """
    words, problems = _parse(overrides)
    if problems:
        raise ConfigError(*problems)
    alternatives = [
        [f"{word.get_key_element()}={value}" for value in word.sweep_string_iterator()]
        if word.is_sweep_override()
        else [str(word.input_line)]
        for word in words
    ]
    return tuple(itertools.product(*alternatives))


@dataclass(frozen=True, slots=True)
class _Choices:
    """The groups, and the choices in each, in the directories that hold configuration."""

    directories: tuple[Path, ...]

    def of(self, group: str) -> list[str]:
        """The choices in `group`; none if it is a key and no group."""
        found = {path.stem for directory in self.directories for path in (directory / group).glob("*.yaml")}
        return sorted(found)

    def among(self, words: Iterable[Override]) -> list[Override]:
        """Those of `words` that choose from a group, or say where groups are."""
        return [word for word in words if word.key_or_group == _SEARCH or self.of(word.key_or_group)]

    def existing(self, words: Iterable[Override], problems: list[str]) -> list[Override]:
        """Those of `words` that do not choose what is not there; the others become problems."""
        kept = []
        for word in words:
            choices = self.of(word.key_or_group)
            choice = "" if word.is_delete() else str(word.value())
            if choices and choice not in choices:
                problems.append(f"{word.input_line}: unknown choice; {expected_one_of(choice, choices)}")
            else:
                kept.append(word)
        return kept


def _existing_keys(words: Iterable[Override], base: DictConfig, problems: list[str]) -> list[Override]:
    """Those of `words` whose key is in `base` or is new on purpose; the others become problems."""
    kept = []
    for word in words:
        key = word.key_or_group
        new = word.is_add() or word.is_force_add() or key == _SEARCH
        if new or OmegaConf.select(base, key, default=_ABSENT) is not _ABSENT:
            kept.append(word)
            continue
        close = difflib.get_close_matches(key, list(_keys(OmegaConf.to_container(base))), n=2, cutoff=0.75)
        hint = f"did you mean {' or '.join(close)}?" if close else "`fedmt sim --print-config` shows all"
        if any(place in key for place in _FREE):
            hint += f"; to add it, write +{key}=…"
        problems.append(f"override {word.input_line}: there is no key {key!r}; {hint}")
    return kept


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a configuration, written with dots."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")


def _split(overrides: Sequence[str] | str) -> Sequence[str]:
    if not isinstance(overrides, str):
        return overrides
    try:
        return shlex.split(overrides)
    except ValueError as error:
        raise ConfigError(f"overrides {overrides!r}: {error}") from error


def _parse(words: Iterable[str]) -> tuple[list[Override], list[str]]:
    parser = OverridesParser.create()
    parsed: list[Override] = []
    problems: list[str] = []
    for word in words:
        try:
            parsed.append(parser.parse_override(word))
        except HydraException:
            problems.append(
                f"override {word!r}: expected key=value with an ASCII key, as in federation.rounds=5"
            )
    return parsed, problems


def _searched(words: Iterable[Override]) -> Iterator[Path]:
    """Directories of the user's own that `words` put into Hydra's search path."""
    for word in words:
        if word.key_or_group == _SEARCH:
            value = word.value()
            for place in value if isinstance(value, list) else [value]:
                yield Path(str(place).removeprefix("file://"))


def _compose(words: Iterable[Override]) -> DictConfig:
    return hydra.compose("config", [str(word.input_line) for word in words])
