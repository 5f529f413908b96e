"""A federation on this host alone: Flower's simulation on Ray, around one engine."""

from __future__ import annotations

import importlib.util
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedmt_flower.device.contract import Engine, Weights
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.device.ipc.frames import EngineStatus
from fedmt_flower.domain.history import FederationRound
from fedmt_flower.errors import EngineError, FederationError
from fedmt_flower.federation.running import client_of, federate
from fedmt_flower.federation.settings import Settings
from fedmt_flower.federation.views import GridView

_log = logging.getLogger(__name__)

_STATUS_EVERY_S = 0.5
_LEASE_S = 1.0
"""This process is the engine's client for as long as the run takes; after it, nobody is expected."""
_ACTOR = "ray::ClientApp"
"""How the names of the processes of Flower's actors begin."""
_NOISY = ("flwr", "ray", "fedmt_flower")


class Interrupted(Exception):
    """The run was told to stop."""


def simulate(
    settings: Settings,
    initial: Mapping[str, Weights],
    log: Path,
    on_round: Callable[[FederationRound], None],
    on_status: Callable[[EngineStatus], None] | None = None,
) -> Mapping[str, Weights]:
    """Run a federation of `settings.federation.sites` sites here; can be called again and again.

    Parameters
    ----------
    settings
        The federation.
    initial
        The weights that each task begins with.
    log
        File that what Flower, Ray and the package log is added to.
    on_round
        Called after each round, in another thread than the caller's.
    on_status
        Called twice a second with what the engine is doing, in yet another thread.

    Returns
    -------
    Mapping
        The final weights, by task.

    Raises
    ------
    FederationError
        If Ray is not installed, or the federation cannot go on.
    KeyboardInterrupt
        If the user interrupts it; whatever it started has ended then.
    """
    if importlib.util.find_spec("ray") is None:
        raise FederationError(
            "Flower's simulation needs Ray, which is not installed: pip install 'fedmt_flower[simulation]'"
        )
    results: dict[str, Weights] = {}
    stop = threading.Event()
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        results.update(federate(_StoppableGrid(grid, stop), settings, initial, on_round))

    settings = replace(settings, device=replace(settings.device, idle_timeout_s=_LEASE_S))
    # Ray hides the GPUs from its actors: the engine is started out here, and they find it.
    engine = connect(settings.device)
    try:
        with _logged_to(log), _watched(engine, on_status), _interruptible(stop):
            _run_simulation(server, client_of(settings), settings.federation.sites)
    finally:
        stop.set()
        engine.close()
    return results


def _run_simulation(server: ServerApp, client: Any, sites: int) -> None:
    from flwr.simulation import run_simulation

    # The engine serves one site at a time: a second actor lets arrays travel while another site trains.
    actors = min(2, sites)
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=sites,
        backend_config={
            "init_args": {"num_cpus": actors, "logging_level": logging.ERROR, "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )


class _StoppableGrid(GridView):
    """A Grid that raises Interrupted once told to: Flower lets its server thread run on after Ctrl-C."""

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        super().__init__(grid)
        self._stop = stop

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`; Interrupted if told to stop."""
        self._check()
        return super().get_node_ids()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`; Interrupted if told to stop."""
        self._check()
        return super().pull_messages(message_ids)

    def _check(self) -> None:
        if self._stop.is_set():
            raise Interrupted("the run was told to stop")


@contextmanager
def _interruptible(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C end what runs in the context before it is raised; a second one is raised at once.

    Raised where it strikes it would shut Ray down under threads that still use it, for which Ray ends the
    whole process. So the server is told to stop, and the actors are killed: their messages fail at once, and
    the engine ends the round of a client that hangs up.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or before is not signal.default_int_handler:  # Ctrl-C raises nothing here
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop.set()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith(_ACTOR):
                    process.kill()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except Exception:
        if not stop.is_set():
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if stop.is_set():
        raise KeyboardInterrupt


@contextmanager
def _watched(engine: Engine, on_status: Callable[[EngineStatus], None] | None) -> Iterator[None]:
    """Ask the engine how it does and tell it to `on_status`, until the context ends."""
    if on_status is None or not isinstance(engine, EngineClient):
        yield
        return
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_STATUS_EVERY_S):
            try:
                on_status(engine.status())
            except EngineError as error:
                _log.warning("The engine does not tell its status any more: %s", error)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


class _LogFile(logging.FileHandler):
    """A log that cannot be written is no reason to stop a run, nor to print on its terminal."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Let the record go."""


@contextmanager
def _logged_to(path: Path) -> Iterator[None]:
    """Send what Flower, Ray and the package log to the file `path` instead of the terminal."""
    file = _LogFile(path)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [(logger.handlers[:], logger.propagate) for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.handlers, logger.propagate = [file], False
        try:
            yield
        finally:
            for logger, (handlers, propagate) in zip(loggers, before, strict=True):
                logger.handlers, logger.propagate = handlers, propagate
            file.close()
