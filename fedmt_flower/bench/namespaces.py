"""A server and sites in network namespaces of their own, joined by links of given rates.

Needs root, `ip` and `tc`. Each site has a pair of veth devices to the server, and a token bucket (`tbf`) at
each end of it, which holds back what leaves there.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedmt_flower.domain.network import Link
from fedmt_flower.errors import EngineError

_DEVICE: Final = "uplink"
_QUEUED_MS: Final = 100
_BUCKET_S: Final = 0.005
_LEAST_BUCKET: Final = 32 << 10
_LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Namespaces that are joined: the server's, and those of its sites."""

    server: str
    sites: tuple[str, ...]

    def address(self, site: int) -> str:
        """The server's address on the link to `site`."""
        return f"10.77.{site}.1"


def inside(namespace: str) -> tuple[str, ...]:
    """What goes before a command that is to run in `namespace`."""
    return ("ip", "netns", "exec", namespace)


def unavailable() -> str:
    """Why this host can have no such network; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if missing := [program for program in ("ip", "tc") if shutil.which(program) is None]:
        return f"network namespaces need {' and '.join(missing)} (on Debian: apt-get install iproute2)"
    try:
        with joined([Link(up_mbps=100, down_mbps=100)]):
            return ""
    except EngineError as error:
        return str(error)


@contextmanager
def joined(links: Sequence[Link]) -> Iterator[Network]:
    """A network with a site at the end of each of `links`; nothing of it, nor any process in it, stays.

    Raises
    ------
    EngineError
        If this host does not let it be made.
    """
    tag = f"fmt{os.getpid()}-{time.monotonic_ns() % 10**6}"
    network = Network(server=f"{tag}s", sites=tuple(f"{tag}n{site}" for site in range(len(links))))
    with ExitStack() as made:
        for namespace in (network.server, *network.sites):
            _do("ip", "netns", "add", namespace)
            made.callback(_remove, namespace)
            _do(*_within(namespace, "link", "set", "dev", "lo", "up"))
        for site, link in enumerate(links):
            _join(network, site, link)
        yield network


def _join(network: Network, site: int, link: Link) -> None:
    name = network.sites[site]
    near = f"site{site}"
    _do(*_within(network.server, "link", "add", near, "type", "veth", "peer", "name", _DEVICE, "netns", name))
    ends = (
        (network.server, near, network.address(site), link.down_mbps),
        (name, _DEVICE, f"10.77.{site}.2", link.up_mbps),
    )
    for namespace, device, address, mbps in ends:
        _do(*_within(namespace, "addr", "add", f"{address}/24", "dev", device))
        _do(*_within(namespace, "link", "set", "dev", device, "up"))
        bucket = max(_LEAST_BUCKET, int(mbps * 1e6 / 8 * _BUCKET_S))
        shape = ("rate", f"{mbps:g}mbit", "burst", f"{bucket}b", "latency", f"{_QUEUED_MS}ms")
        _do(*inside(namespace), "tc", "qdisc", "add", "dev", device, "root", "tbf", *shape)


def _within(namespace: str, *words: str) -> list[str]:
    return ["ip", "-n", namespace, *words]


def _remove(namespace: str) -> None:
    """End whatever still runs in `namespace`, and take it away."""
    found = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    for pid in found.stdout.split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _do("ip", "netns", "del", namespace)


def _do(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{' '.join(words)} failed: {' '.join(done.stderr.split())}")


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes that a site had received and sent by `moment`, in seconds since the epoch."""

    moment: float
    received: int
    sent: int


class Meter:
    """Reads what crosses the links of some sites, twenty times a second, while the context lasts.

    Parameters
    ----------
    processes
        A process in each site's namespace, by the site's name.
    """

    def __init__(self, processes: Mapping[str, int]) -> None:
        self._files = {site: Path(f"/proc/{pid}/net/dev") for site, pid in processes.items()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.readings: dict[str, list[Reading]] = {site: [] for site in processes}

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_EVERY_S):
            for site, file in self._files.items():
                with suppress(OSError):  # the process has ended
                    self.readings[site].append(_read(file))


def _read(file: Path) -> Reading:
    for line in file.read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == _DEVICE:
            fields = counts.split()
            return Reading(time.time(), received=int(fields[0]), sent=int(fields[8]))
    raise OSError(f"{file}: no device {_DEVICE!r}")
