"""One GPU shared by tasks under NVIDIA MPS: a budget is a share of its streaming multiprocessors (SMs)."""

from __future__ import annotations

import logging
import math
import os
import shutil
import subprocess
import time
from pathlib import Path

import psutil

from fedmt_flower.device.backends import facts
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.domain.plan import Sharing, check_budget
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

_PIPE = "CUDA_MPS_PIPE_DIRECTORY"
_LOG = "CUDA_MPS_LOG_DIRECTORY"
_PERCENTAGE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"
_MEMORY = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"
_PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"
_BELOW_NORMAL = "1"
_DEFAULT_PIPE = Path("/tmp/nvidia-mps")
_LONGEST_PIPE = 80
"""An AF_UNIX address has at most 107 bytes; past it the daemon ends without saying why."""

_STEP = 2
"""SMs come in pairs (a TPC): on 132 SMs, 60 % gives 78, 33 % 42 and 30 % 38."""

_SPARE_BYTES = 15 << 30

_LEAST = 8
"""The fewest that a client is given: 1 % gives 8 of 132."""


def multiprocessors_of(budget: float, total: int) -> int:
    """SMs that a budget of `budget` % comes to on a GPU of `total` SMs: rounded down to a pair, at least 8.

    Raises
    ------
    ConfigError
        If `budget` is not in (0, 100].
    """
    check_budget("a task", budget)
    # The epsilon keeps a third of 132 SMs, 33.333… %, at 44 where the arithmetic is exact.
    return min(total, max(_LEAST, _STEP * math.floor(total * budget / (100 * _STEP) + 1e-9)))


def percentage_for(level: int, total: int) -> int:
    """The least whole percentage that MPS rounds down to `level` of `total` SMs."""
    return min(100, math.ceil(100 * level / total - 1e-9))


class MpsBackend:
    """Seats of one GPU under MPS.

    Uses the control daemon that the environment names or that listens at the default place; where none
    runs, starts its own, and stops only that. Where MPS cannot run, tasks share the GPU by time slicing:
    budgets are not enforced, a warning says so and `name` is ``timeslice``.

    Parameters
    ----------
    index
        The GPU, as NVML counts.
    directory
        Private directory of this engine; the daemon's pipes and logs go there.
    memory_share
        Largest part of the card's memory that one task may take, (0, 1].
    """

    def __init__(self, index: int, directory: Path, memory_share: float = 0.5) -> None:
        self.name = "mps"
        self.max_workers = 48
        self._index = index
        self._directory = directory
        self._memory_share = memory_share
        self._outside = directory / "no-mps"
        self._card: facts.Gpu | None = None
        self._control: Control | None = None
        self._server = 0

    @property
    def spares(self) -> bool:
        """Whether a task may have several workers: on cards sold with 16 GB or more."""
        return self._opened().memory_bytes >= _SPARE_BYTES

    def open(self) -> None:
        """Look at the GPU and reach MPS's daemon there, started here if none runs.

        Raises
        ------
        EngineError
            If there is no such GPU, it is cut into MIG slices or closed to CUDA, or another user's MPS server
            holds it.
        """
        card = facts.gpu(self._index)
        binaries = facts.mps_binaries()
        self._card = card
        # A client that finds no daemon in its pipe directory runs without MPS, as time slicing wants it.
        self._outside.mkdir(parents=True, exist_ok=True)
        reason = facts.why_not_mps(card, binaries)
        if card.mig or card.compute_mode == "prohibited":
            raise EngineError(reason)
        if card.multiprocessors == 0:
            raise EngineError(
                f"GPU {card.index} ({card.name}): CUDA cannot be started on it; see the log above"
            )
        if not reason:
            try:
                self._control = self._reach(binaries.control, card)
            except DaemonError as error:
                reason = str(error)
        if reason:
            self._time_slice(reason)
            return
        self.name = "mps"
        self.max_workers = facts.max_clients(card.cuda)

    def seat(self, budget: float, sharing: Sharing, *, yields: bool = False) -> Seat:
        """The seat of a budget: its SMs, its memory cap, its priority, and the daemon that enforces them."""
        card = self._opened()
        environment = {"CUDA_VISIBLE_DEVICES": card.uuid}
        if self._control is None or sharing is Sharing.TIME_SLICED:
            environment[_PIPE] = str(self._outside)
            return Seat(device="cuda:0", level=card.multiprocessors, environment=environment)
        level = multiprocessors_of(budget, card.multiprocessors)
        environment |= {
            _PIPE: str(self._control.pipe),
            _PERCENTAGE: str(percentage_for(level, card.multiprocessors)),
            _MEMORY: f"0={max(1, int(card.memory_bytes * self._memory_share) >> 30)}G",
        }
        if yields:
            environment[_PRIORITY] = _BELOW_NORMAL
        return Seat(device="cuda:0", level=level, environment=environment)

    def welcome(self, pid: int, seat: Seat) -> None:
        """Check that the worker `pid`, whose CUDA is up, is a client of MPS if its seat is under MPS.

        Raises
        ------
        EngineError
            If MPS does not know the worker: it would run on, silently, outside its budget.
        """
        if self._control is None or seat.environment[_PIPE] != str(self._control.pipe):
            return
        for attempt in range(2):
            for server in self._control.servers():
                if pid in self._control.clients(server):
                    self._server = server
                    return
            time.sleep(0.1 * (1 - attempt))
        raise EngineError(
            f"worker {pid} of GPU {self._index} runs outside MPS (its daemon does not list it as a client); "
            f"see {self._control.log}"
        )

    def healthy(self) -> str:
        """One line telling why workers of this session cannot go on; empty if they can."""
        if self._control is None:
            return ""
        where = f"GPU {self._index}; see {self._control.log}"
        try:
            if self._server and self._server not in self._control.servers():
                return f"MPS server {self._server} has ended on {where}"
            if faulty := self._control.faulty():
                return f"MPS server {faulty[0]} reports a fault on {where}"
        except DaemonError as error:
            return f"MPS's control daemon does not answer ({error}) on {where}"
        return ""

    def lost(self) -> str:
        """Tell if the server that the workers' contexts live in has ended: calls into CUDA may then hang."""
        if self._server and not _is_running(self._server):
            return f"MPS server {self._server} has ended on GPU {self._index}, in the midst of work"
        return ""

    def memory(self) -> tuple[int, int]:
        """The card's, as NVML gives it."""
        with facts.nvml() as library:
            try:
                found = library.nvmlDeviceGetMemoryInfo(library.nvmlDeviceGetHandleByIndex(self._index))
            except library.NVMLError as error:
                raise EngineError(f"GPU {self._index}: NVML says {str(error)!r}") from error
            return int(found.used), int(found.total)

    def reopen(self) -> None:
        """Begin the session anew, after the last worker has left; EngineError if that does not work."""
        self._server = 0
        if self._control is not None and not self._control.recovers(patience_s=1.0):
            self._control.stop()
            self._control = None
        if self._control is None:
            self.open()

    def evict(self, pid: int) -> None:
        """Take the client `pid` from the GPU before it is killed.

        Killing a client with work in flight is undefined under MPS.
        """
        if self._control is None or not self._server:
            return
        try:
            self._control.ask(f"terminate_client {self._server} {pid}", timeout_s=2.0)
        except DaemonError as error:
            log.warning("GPU %d: MPS could not end its client %d: %s", self._index, pid, error)

    def close(self) -> None:
        """Stop the daemon, if it was started here."""
        if self._control is not None:
            self._control.stop()
            self._control = None
        self._card = None

    def _opened(self) -> facts.Gpu:
        if self._card is None:
            raise EngineError(f"GPU {self._index} is not open: call open() first")
        return self._card

    def _time_slice(self, reason: str) -> None:
        self.name = "timeslice"
        log.warning(
            "GPU %d: budgets are NOT enforced, tasks share it by time slicing: %s", self._index, reason
        )

    def _reach(self, program: str, card: facts.Gpu) -> Control:
        ambient = Path(os.environ.get(_PIPE, _DEFAULT_PIPE))
        own = self._directory / "mps"
        if ambient != own / "pipe" and ambient.is_dir():
            control = Control(program, ambient, Path(os.environ.get(_LOG, "/var/log/nvidia-mps")))
            if control.answers():
                self._refuse_others(control)
                log.info("GPU %d: using the MPS daemon at %s", card.index, ambient)
                return control
        control = OwnControl(program, own / "pipe", own / "log", card.uuid)
        control.start()
        return control

    def _refuse_others(self, control: Control) -> None:
        for server in control.servers():
            try:
                owner = Path(f"/proc/{server}").stat().st_uid
            except FileNotFoundError:
                continue
            if owner != os.getuid():
                raise EngineError(
                    f"GPU {self._index} is held by the MPS server {server} of user {owner}, which takes no "
                    "other user's clients; wait for it or run as that user"
                )


class DaemonError(Exception):
    """MPS's control daemon cannot be started or does not answer."""


class Control:
    """A control daemon that somebody runs, reached through its own program."""

    def __init__(self, program: str, pipe: Path, log_directory: Path) -> None:
        self.pipe = pipe
        self.log = log_directory
        self._program = program

    def ask(self, command: str, timeout_s: float = 5.0) -> str:
        """What the daemon answers to `command`; DaemonError if it does not."""
        try:
            answer = subprocess.run(
                [self._program],
                input=f"{command}\n",
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DaemonError(f"{command!r} had no answer in {timeout_s:g} s") from error
        text = answer.stdout.strip()
        if answer.returncode or text.startswith("Cannot find"):
            raise DaemonError(
                (text or answer.stderr.strip() or f"exit code {answer.returncode}").splitlines()[0]
            )
        return text

    def answers(self) -> bool:
        """Whether a daemon listens in the pipe directory."""
        try:
            self.ask("get_server_list")
        except DaemonError:
            return False
        return True

    def servers(self) -> tuple[int, ...]:
        """Process ids of the daemon's servers: none until the first client has come."""
        return parse_pids(self.ask("get_server_list"))

    def clients(self, server: int) -> tuple[int, ...]:
        """Process ids of a server's clients."""
        return parse_pids(self.ask(f"get_client_list {server}"))

    def faulty(self) -> tuple[int, ...]:
        """The servers that wait, after a fatal fault, for their last client to leave."""
        return tuple(s for s in self.servers() if "FAULT" in self.ask(f"get_server_status {s}").upper())

    def recovers(self, patience_s: float) -> bool:
        """Whether, within `patience_s` seconds, the daemon answers and no server of its is faulty."""
        deadline = time.monotonic() + patience_s
        try:
            while self.faulty():
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.05)
        except DaemonError:
            return False
        return True

    def stop(self) -> None:
        """Leave the daemon as it is: it is somebody else's."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ) | {_PIPE: str(self.pipe), _LOG: str(self.log)}


class OwnControl(Control):
    """A control daemon of this engine's own, in the engine's directory, serving one GPU."""

    def __init__(self, program: str, pipe: Path, log_directory: Path, uuid: str) -> None:
        super().__init__(program, pipe, log_directory)
        self._uuid = uuid
        self._keeper: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the daemon, or take over the one that a killed engine left in this directory."""
        if len(os.fsencode(self.pipe)) > _LONGEST_PIPE:
            raise DaemonError(f"the path {self.pipe} is too long for MPS's sockets; set a shorter TMPDIR")
        self.log.mkdir(parents=True, exist_ok=True)
        if not self.answers():
            # What a killed daemon leaves (a server, sockets, a lock) keeps the next one from starting.
            _end(_processes_in(self.pipe), patience_s=0.0)
            shutil.rmtree(self.pipe, ignore_errors=True)
            self.pipe.mkdir(parents=True)
            try:
                subprocess.run(
                    [self._program, "-d"],
                    env=self._environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    timeout=10,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                raise DaemonError(f"{facts.CONTROL} does not start ({error}); see {self.log}") from error
            self._await(5.0)
        # The keeper's input ends when this process does, however it ends; the daemon then goes too.
        self._keeper = subprocess.Popen(
            ["/bin/sh", "-c", 'read -r _; echo quit | exec "$0"', self._program],
            env=self._environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def stop(self) -> None:
        """Stop the daemon and its servers."""
        if self._keeper is None or self._keeper.stdin is None:
            return
        session = _processes_in(self.pipe)
        self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._keeper = None
        _end(session, patience_s=2.0)

    def _await(self, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while not self.answers():
            if time.monotonic() > deadline:
                raise DaemonError(f"{facts.CONTROL} was started but does not answer; see {self.log}")
            time.sleep(0.02)

    def _environment(self) -> dict[str, str]:
        # One GPU per daemon: its clients' memory limits count devices as the daemon sees them.
        return super()._environment() | {"CUDA_VISIBLE_DEVICES": self._uuid}


def parse_pids(text: str) -> tuple[int, ...]:
    """The process ids in an answer of the control daemon: the lines that are a number."""
    return tuple(int(line) for line in text.split("\n") if line.strip().isdecimal())


def _processes_in(pipe: Path) -> list[psutil.Process]:
    """MPS's daemon and servers whose pipe directory is `pipe`, those a dead daemon has left included."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.info["name"].startswith("nvidia-cuda-mps") and process.environ().get(_PIPE) == str(
                pipe
            ):
                found.append(process)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    return found


def _end(processes: list[psutil.Process], patience_s: float) -> None:
    """Wait until `processes` have ended by themselves; end those that have not after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while any(_is_running(process.pid) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        if _is_running(process.pid):
            try:
                process.kill()
            except psutil.NoSuchProcess:  # it was faster
                continue


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
