"""What the engine's process does: serve rounds, one at a time, to clients that come and go."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version

from fedmt_flower.device.backends import DeviceBackend
from fedmt_flower.device.engine.gathering import Gathering, Gatherings, Lane
from fedmt_flower.device.engine.home import Home
from fedmt_flower.device.engine.monitor import Monitor
from fedmt_flower.device.ipc.frames import (
    Advanced,
    Complete,
    EngineStatus,
    FromClient,
    Hello,
    Inquire,
    Metrics,
    Questions,
    Refused,
    Run,
    Scrape,
    Updated,
    Welcome,
    WorkerStatus,
)
from fedmt_flower.device.ipc.protocol import AsyncChannel, peer, ready
from fedmt_flower.device.planner.planner import Planner
from fedmt_flower.device.processes.pool import Pool
from fedmt_flower.device.processes.zygote import Zygote
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.round import RoundOrder, RoundReport
from fedmt_flower.errors import ConfigError, FedMTError, ProtocolError

log = logging.getLogger(__name__)

_HELLO_S = 10.0
_FIRST_CLIENT_S = 20.0
"""Least time for the client that started the engine to come, which a busy host may hold up."""

Client = AsyncChannel[Questions]


class Server:
    """An engine at work.

    Parameters
    ----------
    backend
        The device, not yet open.
    home
        The device's directory, locked by this process.
    settings
        The idle time-out is the time to wait for the first client, at least. Each client then says how long
        to stay after it has left, and the engine stays for the one that asks for the latest moment.
    zygote
        What its workers are forked from; None starts one.
    """

    def __init__(
        self, backend: DeviceBackend, home: Home, settings: DeviceSettings, zygote: Zygote | None = None
    ) -> None:
        self._backend = backend
        self._home = home
        self._settings = settings
        self._stay_until = 0.0
        self._greeted = False
        self._pool = Pool(backend, home.workers, zygote)
        self._planner = Planner(backend, self._pool)
        self._started = time.monotonic()
        self._stop = asyncio.Event()
        self._turn = asyncio.Lock()
        self._gatherings = Gatherings(self._play)
        self._queue: list[str] = []
        self._sites: Counter[str] = Counter()
        self._clients: set[asyncio.Task[None]] = set()
        self._lease: asyncio.TimerHandle | None = None
        self._monitor = Monitor(self.status, backend.memory)

    async def run(self, announce: Callable[[], None]) -> None:
        """Serve until told to stop, or until no client has come for long enough.

        Parameters
        ----------
        announce
            Called once clients can connect.

        Raises
        ------
        EngineError
            If the device or the workers cannot be made ready.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._backend.open()
        try:
            await self._pool.open()
            with (
                self._monitor.serving(self._settings.metrics_port),
                socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener,
            ):
                self._home.remove_socket()
                with self._home.address() as address:
                    listener.bind(address)
                listener.listen()
                listener.setblocking(False)
                accepting = asyncio.create_task(self._accept(listener))
                self._renew_lease(max(self._settings.idle_timeout_s, _FIRST_CLIENT_S))
                log.info("engine of %s ready, pid %d", self._home.device, os.getpid())
                announce()
                await self._stop.wait()
                log.info("engine of %s ends", self._home.device)
                self._home.remove_socket()
                accepting.cancel()
            for client in self._clients:
                client.cancel()
            await asyncio.gather(*self._clients, return_exceptions=True)
        finally:
            await self._planner.call_off()
            await self._pool.close()
            self._backend.close()

    def status(self) -> EngineStatus:
        """What the engine is doing."""
        return EngineStatus(
            pid=os.getpid(),
            version=version("fedmt_flower"),
            backend=self._backend.name,
            device=self._home.device,
            uptime_s=time.monotonic() - self._started,
            rounds=self._sites.total(),
            sites=dict(self._sites),
            queue=tuple(self._queue),
            workers=tuple(
                WorkerStatus(
                    pid=worker.pid,
                    task=worker.task.name,
                    run=worker.run,
                    budget=worker.budget,
                    level=worker.seat.level,
                    busy=worker.busy,
                    rounds=worker.rounds,
                    site=worker.site,
                    samples=worker.progress.samples if worker.progress else 0,
                    total=worker.progress.total if worker.progress else 0,
                )
                for worker in self._pool.workers
            ),
        )

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            await ready(listener.fileno())
            try:
                sock, _ = listener.accept()
            except OSError as error:  # it has gone again, or this process has too many files open
                log.warning("client not accepted: %s", error)
                await asyncio.sleep(0.1)
                continue
            client = asyncio.create_task(self._serve(AsyncChannel(sock, FromClient)))
            self._clients.add(client)
            client.add_done_callback(self._forget)
            self._renew_lease()

    def _forget(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        self._renew_lease()

    def _renew_lease(self, stay_s: float = 0.0) -> None:
        """Stay for as long as there are clients, and `stay_s` seconds from now."""
        loop = asyncio.get_running_loop()
        self._stay_until = max(self._stay_until, loop.time() + stay_s)
        if self._lease is not None:
            self._lease.cancel()
        self._lease = None if self._clients else loop.call_at(self._stay_until, self._stop.set)

    async def _serve(self, client: Client) -> None:
        stay_s = 0.0
        try:
            async with asyncio.timeout(_HELLO_S):
                stay_s = await self._welcome(client)
            while (received := await client.receive()) is not None:
                match received.frame:
                    case Run(order=order):
                        await self._serve_round(client, order, received.fds)
                    case Inquire():
                        await client.send(self.status())
                    case Scrape():
                        await client.send(Metrics(text=self._monitor.text()))
                    case Hello():
                        raise ProtocolError("a second greeting in one conversation")
        except ProtocolError as error:
            log.warning("client dismissed: %s", error)
            await _try_send(client, Refused(error=str(error)))
        except OSError as error:
            log.info("client gone: %s", error)
        except Exception as error:
            log.exception("client dismissed")
            await _try_send(client, Refused(error=f"engine {os.getpid()}: {error!r}; see {self._home.log}"))
        finally:
            client.close()
            self._renew_lease(stay_s)

    async def _welcome(self, client: Client) -> float:
        """Greet a client; gives the seconds to stay after it. ProtocolError if it cannot be served."""
        if (user := peer(client.sock).user) != os.getuid():
            raise ProtocolError(
                f"this engine is user {os.getuid()}'s and serves nobody else, got user {user}"
            )
        received = await client.receive()
        if received is None:
            raise ConnectionAbortedError("it said nothing")
        if not isinstance(received.frame, Hello):
            raise ProtocolError(f"expected a greeting first, got {type(received.frame).__name__}")
        if received.frame.version != (mine := version("fedmt_flower")):
            raise ProtocolError(
                f"engine {os.getpid()} of {self._home.device} runs fedmt_flower {mine}, this client "
                f"{received.frame.version}: end it with `fedmt engine stop`, then try again"
            )
        stay_s = received.frame.idle_timeout_s
        if stay_s and not self._greeted:
            self._greeted, self._stay_until = True, 0.0
        await client.send(Welcome(backend=self._backend.name))
        return stay_s

    async def _serve_round(self, client: Client, order: RoundOrder, files: tuple[int, ...]) -> None:
        """Run a round, unless its client goes away meanwhile."""
        running = asyncio.create_task(self._run_round(client, order, files))
        leaving = asyncio.create_task(client.left())
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                await running
            else:
                log.warning("site %s: the client left in the middle of round %d", order.site, order.round)
        except asyncio.CancelledError:
            where = f"round {order.round} of site {order.site!r}"
            await _try_send(client, Refused(error=f"{where}: engine {os.getpid()} was stopped"))
            raise
        finally:
            leaving.cancel()
            running.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)
            for file in files:
                os.close(file)

    async def _run_round(self, client: Client, order: RoundOrder, files: tuple[int, ...]) -> None:
        async def on_progress(progress: Advanced) -> None:
            await _try_send(client, progress)

        async def on_update(task: str, file: int) -> None:
            await _try_send(client, Updated(task=task), file)

        names = order.brings
        if len(files) != len(names):
            raise ProtocolError(f"round with {len(files)} files of weights for {len(names)} tasks")
        lane = Lane(dict(zip(names, files, strict=True)), on_progress, on_update)
        try:
            report = await self._gatherings.carry(order, lane)
        except FedMTError as error:
            problems = error.problems if isinstance(error, ConfigError) else ()
            await client.send(Refused(error=str(error), problems=problems))
            return
        await client.send(Complete(report=report))

    async def _play(self, gathering: Gathering) -> RoundReport:
        """Plan and run a round when it is its turn."""
        order = gathering.order
        self._queue.append(order.site)
        try:
            await self._turn.acquire()
        finally:
            self._queue.remove(order.site)
        try:
            await self._pool.refresh()
            planned = await self._planner.plan(order, gathering.weights)
            report = await gathering.run(planned, self._pool, self._backend)
            self._planner.observe(order, report)
            self._sites[order.site] += 1
            self._monitor.record(report)
            return report
        finally:
            self._turn.release()


async def _try_send(client: Client, frame: object, *files: int) -> None:
    """Send to a client that may have gone: if so, its conversation ends by itself."""
    try:
        await client.send(frame, files)
    except OSError as error:
        log.debug("%s not delivered: %s", type(frame).__name__, error)
