"""What this host's GPUs, driver and MPS are, and what they allow."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

from fedmt_flower.errors import EngineError

log = logging.getLogger(__name__)

CONTROL = "nvidia-cuda-mps-control"
SERVER = "nvidia-cuda-mps-server"

HOPPER = 9
"""The major compute capability of the architecture whose products in bfloat16 need certain shares."""
_VOLTA = (7, 0)
"""The first architecture whose MPS clients can be given a share of the SMs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU.

    Parameters
    ----------
    index, uuid, name
        As NVML gives them.
    memory_bytes
        The whole card's.
    multiprocessors
        Streaming multiprocessors that a process without MPS sees; 0 if CUDA could not be asked.
    capability
        CUDA compute capability, (major, minor).
    driver, cuda
        The driver's version, and the CUDA version it brings as (major, minor).
    mig
        Whether the card is cut into MIG slices.
    compute_mode
        ``default``, ``exclusive`` or ``prohibited``.
    gpm
        Whether NVML's performance monitoring (SM occupancy) works on it: Hopper and later.
    """

    index: int
    uuid: str
    name: str
    memory_bytes: int
    multiprocessors: int
    capability: tuple[int, int]
    driver: str
    cuda: tuple[int, int]
    mig: bool
    compute_mode: str
    gpm: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsBinaries:
    """Where MPS's programs are; an empty path is a program that is not on the PATH."""

    control: str
    server: str


@contextmanager
def nvml() -> Iterator[ModuleType]:
    """NVML's module between its start and its end; EngineError in one line where there is no NVML."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise EngineError(
            f"no NVIDIA GPU can be used here: NVML says {str(error)!r}; run on the CPUs with device=cpu, or "
            "check the driver with nvidia-smi"
        ) from error
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def gpu_count() -> int:
    """How many GPUs this host has; 0 where there is no NVML."""
    try:
        with nvml() as library:
            return int(library.nvmlDeviceGetCount())
    except EngineError:
        return 0


def gpus() -> tuple[Gpu, ...]:
    """Every GPU of this host in NVML's order; EngineError where NVML finds none."""
    with nvml() as library:
        return tuple(_describe(library, index) for index in range(library.nvmlDeviceGetCount()))


def gpu(index: int) -> Gpu:
    """The GPU that NVML counts as `index`; EngineError if there is none."""
    with nvml() as library:
        count = library.nvmlDeviceGetCount()
        if index >= count:
            raise EngineError(
                f"device index {index}: this host has {count} GPU(s), counted from 0; choose one of them"
            )
        return _describe(library, index)


def mps_binaries() -> MpsBinaries:
    """MPS's programs on this host's PATH."""
    return MpsBinaries(control=shutil.which(CONTROL) or "", server=shutil.which(SERVER) or "")


def why_not_mps(card: Gpu, binaries: MpsBinaries) -> str:
    """One line telling why MPS cannot give tasks shares of `card`; empty if it can."""
    if not binaries.control or not binaries.server:
        missing = CONTROL if not binaries.control else SERVER
        return f"{missing} is not on the PATH; install the driver's MPS programs"
    if card.mig:
        return f"GPU {card.index} is cut into MIG slices, whose SMs MPS does not share out; disable MIG"
    if card.capability < _VOLTA:
        major, minor = card.capability
        return f"{card.name} has compute capability {major}.{minor}; shares of the SMs need 7.0 or later"
    if card.compute_mode == "prohibited":
        return f"GPU {card.index} is in compute mode 'prohibited'; an administrator must allow CUDA on it"
    return ""


def max_clients(cuda: tuple[int, int]) -> int:
    """Clients that one MPS server takes on a device: 48, and 60 from CUDA 13.1."""
    return 60 if cuda >= (13, 1) else 48


def doctor() -> dict[str, object]:
    """What `fedmt doctor` tells of this host's GPUs; plain values, also where there is no GPU."""
    binaries = mps_binaries()
    try:
        cards = gpus()
    except EngineError as error:
        return {"gpus": [], "gpu_problem": str(error), "mps_control": binaries.control}
    return {
        "gpus": [
            {
                "index": card.index,
                "name": card.name,
                "uuid": card.uuid,
                "memory_gb": round(card.memory_bytes / 1e9, 1),
                "multiprocessors": card.multiprocessors,
                "capability": "{}.{}".format(*card.capability),
                "driver": card.driver,
                "cuda": "{}.{}".format(*card.cuda),
                "mig": card.mig,
                "compute_mode": card.compute_mode,
                "sm_occupancy": "NVML GPM" if card.gpm else "not to be had: NVML GPM needs Hopper or later",
                "budgets": why_not_mps(card, binaries)
                or f"enforced by MPS, {max_clients(card.cuda)} clients{_in_bfloat16(card)}",
            }
            for card in cards
        ],
        "gpu_problem": "",
        "mps_control": binaries.control,
    }


def _in_bfloat16(card: Gpu) -> str:
    if card.capability[0] != HOPPER:
        return ""
    return "; for steps in bfloat16 cut to 50, 25 or 12.5 %, or from 90 % and to 12.5 % as they are"


def _describe(library: ModuleType, index: int) -> Gpu:
    handle = library.nvmlDeviceGetHandleByIndex(index)
    uuid = _text(library.nvmlDeviceGetUUID(handle))
    cuda = library.nvmlSystemGetCudaDriverVersion_v2()
    try:
        mig = library.nvmlDeviceGetMigMode(handle)[0] == library.NVML_DEVICE_MIG_ENABLE
    except library.NVMLError:  # cards that cannot be sliced do not know the question
        mig = False
    modes = {
        library.NVML_COMPUTEMODE_DEFAULT: "default",
        library.NVML_COMPUTEMODE_PROHIBITED: "prohibited",
    }
    return Gpu(
        index=index,
        uuid=uuid,
        name=_text(library.nvmlDeviceGetName(handle)),
        memory_bytes=int(library.nvmlDeviceGetMemoryInfo(handle).total),
        multiprocessors=0 if mig else _multiprocessors(uuid),
        capability=tuple(library.nvmlDeviceGetCudaComputeCapability(handle)),
        driver=_text(library.nvmlSystemGetDriverVersion()),
        cuda=(cuda // 1000, cuda % 1000 // 10),
        mig=mig,
        compute_mode=modes.get(library.nvmlDeviceGetComputeMode(handle), "exclusive"),
        gpm=_has_gpm(library, handle),
    )


def _has_gpm(library: ModuleType, handle: object) -> bool:
    try:
        return bool(library.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice)
    except (library.NVMLError, AttributeError):
        return False


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


_COUNT = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
device, count = ctypes.c_int(), ctypes.c_int()
for status in (
    cuda.cuInit(0),
    cuda.cuDeviceGet(ctypes.byref(device), 0),
    cuda.cuDeviceGetAttribute(ctypes.byref(count), 16, device),  # MULTIPROCESSOR_COUNT
):
    if status:
        raise SystemExit(f"CUDA error {status}")
print(count.value)
"""


def _multiprocessors(uuid: str) -> int:
    # NVML does not count SMs, and CUDA must stay out of the engine's process, which forks: ask in a child.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CUDA_")}
    environment["CUDA_VISIBLE_DEVICES"] = uuid
    command = [sys.executable, "-I", "-S", "-c", _COUNT]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        log.warning("GPU %s: CUDA could not be asked for its multiprocessors: %s", uuid, reason)
        return 0
    return int(answer.stdout)
