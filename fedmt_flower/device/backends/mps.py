"""One GPU shared by tasks under NVIDIA MPS: a budget is a share of its streaming multiprocessors (SMs)."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from fedmt_flower.device.backends import facts
from fedmt_flower.device.backends.mps_daemon import Control, DaemonError, OwnControl, is_running
from fedmt_flower.device.backends.mps_seats import LOG, PIPE, seat_outside, seat_within, sound_share
from fedmt_flower.device.ipc.seat import Seat
from fedmt_flower.domain.plan import Sharing
from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

_DEFAULT_PIPE = Path("/tmp/nvidia-mps")
_SPARE_BYTES = 15 << 30


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
        if self._control is None or sharing is Sharing.TIME_SLICED:
            return seat_outside(card, self._outside)
        return seat_within(card, budget, self._control.pipe, self._memory_share, yields=yields)

    def sound(self, budget: float) -> float:
        """`budget`, or on a Hopper GPU under MPS what `sound_share` makes of it."""
        card = self._opened()
        hopper = self._control is not None and card.capability[0] == facts.HOPPER
        return sound_share(budget, card.multiprocessors) if hopper else budget

    def welcome(self, pid: int, seat: Seat) -> None:
        """Check that the worker `pid`, whose CUDA is up, is a client of MPS if its seat is under MPS.

        Raises
        ------
        EngineError
            If MPS does not know the worker: it would run on, silently, outside its budget.
        """
        if self._control is None or seat.environment[PIPE] != str(self._control.pipe):
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
        if self._server and not is_running(self._server):
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
        ambient = Path(os.environ.get(PIPE, _DEFAULT_PIPE))
        own = self._directory / "mps"
        if ambient != own / "pipe" and ambient.is_dir():
            control = Control(program, ambient, Path(os.environ.get(LOG, "/var/log/nvidia-mps")))
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
