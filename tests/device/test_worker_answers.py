"""What a worker answers where its own process, and not its task, has a problem."""

from __future__ import annotations

import errno
import os
import socket
from typing import NoReturn

import pytest

from fedmt_flower.device.ipc.frames import Failed, FromWorker, Standing, ToWorker
from fedmt_flower.device.ipc.protocol import Channel
from fedmt_flower.device.worker.process import _answer


def test_a_worker_that_can_open_no_more_files_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    engine, worker = Channel(ours, FromWorker), Channel(theirs, ToWorker)
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", full)
        _answer(worker, "site 's', task 't'", Standing)
    received = engine.receive()
    assert received is not None
    assert isinstance(received.frame, Failed)
    assert "site 's', task 't': OSError: [Errno 24] Too many open files" in received.frame.error
    _answer(worker, "site 's', task 't'", Standing)
    again = engine.receive()
    assert again is not None
    assert isinstance(again.frame, Standing)
    engine.close()
    worker.close()
