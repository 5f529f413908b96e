"""Which throughput model a device plans with."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Final

from fedmt_flower.domain.device import Backend
from fedmt_flower.domain.profile import DeviceFeatures
from fedmt_flower.errors import ConfigError
from fedmt_flower.planning.analytic import AnalyticModel, ThreadModel
from fedmt_flower.planning.throughput import ThroughputModel

log = logging.getLogger(__name__)

SHIPPED: Final = "models"
"""Directory of `fedmt_flower.planning` with models that `fedmt fit` wrote, one file a device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """A throughput model and, in a few words, what it rests on.

    `devices` are those on whose samples it was fitted.
    """

    model: ThroughputModel
    basis: str
    devices: tuple[str, ...] = ()


ANALYTIC: Final = Chosen(model=AnalyticModel(), basis="analytic model")
THREADS: Final = Chosen(model=ThreadModel(), basis="analytic model of threads")


class Models:
    """The throughput models that a device can plan with, each read once.

    Parameters
    ----------
    backend
        The device's backend. The shipped models were fitted on GPUs: CPUs plan with an analytic one, or
        with the file that they are given.
    shipped
        Directory of models that come along; None is the package's own.
    """

    def __init__(self, backend: str, shipped: Path | None = None) -> None:
        self._backend = backend
        self._shipped = shipped
        self._read: dict[tuple[str, int], Chosen] = {}

    def choose(self, path: str, device: DeviceFeatures) -> Chosen:
        """The model of the file `path`; without one the shipped model nearest to `device`, or the analytic.

        Raises
        ------
        ConfigError
            If the file cannot be read, or is not a model of this version.
        """
        if path:
            return self._file(Path(path))
        if self._backend != Backend.MPS:
            return self.untaught
        found = [self._file(file) for file in self._files()]
        return next((one for one in found if device.name in one.devices), found[0] if found else ANALYTIC)

    @property
    def untaught(self) -> Chosen:
        """The model that needs no samples, and nothing of a task but what it is alone."""
        return ANALYTIC if self._backend == Backend.MPS else THREADS

    def _files(self) -> list[Path]:
        if self._shipped is not None:
            return sorted(self._shipped.glob("*.json"))
        folder = resources.files("fedmt_flower.planning") / SHIPPED
        if not folder.is_dir():
            return []
        return sorted(Path(str(file)) for file in folder.iterdir() if file.name.endswith(".json"))

    def _file(self, path: Path) -> Chosen:
        from fedmt_flower.planning.xgboost_model import XGBoostModel

        try:
            key = str(path), path.stat().st_mtime_ns
            if key not in self._read:
                model = XGBoostModel.from_text(path.read_text())
                card = model.card
                basis = f"model fitted to {card.samples} samples of {', '.join(card.devices)}"
                self._read[key] = Chosen(model=model, basis=basis, devices=card.devices)
                log.info("%s: %s", path, basis)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"allocation model {path}: {reason}; fedmt fit makes such a file") from error
        except ConfigError as error:
            raise ConfigError(f"allocation model {path}: {error}") from error
        return self._read[key]
