"""What a SuperExec finds as `flwr-clientapp` under `fedmt warm`: asks for a process that has its imports.

It is started for every message, without its package: it imports of the standard library what it needs alone.
"""

from __future__ import annotations

import json
import os
import socket
import sys

STARTED = b"started"
"""What the answer to a request is."""

REQUEST_LIMIT = 1 << 16
"""Bytes of a request; Flower's own are below 1 KiB."""

STREAMS = (0, 1, 2)


def request(address: str, arguments: list[str]) -> bool:
    """Ask at `address` for a ClientApp with `arguments`, this working directory and these streams."""
    asked = json.dumps({"directory": os.getcwd(), "arguments": arguments}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        try:
            link.connect(address)
            socket.send_fds(link, [asked], STREAMS)
            return link.recv(len(STARTED)) == STARTED
        except OSError:
            return False


if __name__ == "__main__":
    _, own_address, cold, *own_arguments = sys.argv
    if not request(own_address, own_arguments):
        # Whoever forks is gone: the message is not to suffer for it.
        os.execv(cold, [cold, *own_arguments])
