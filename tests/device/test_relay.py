"""What two workers do in a hand-over, without an engine."""

from __future__ import annotations

import socket
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fedmt_flower.device.contract import Weights
from fedmt_flower.device.ipc.frames import (
    Answers,
    Continue,
    FromWorker,
    Offer,
    Offered,
    Pause,
    Paused,
    Relieve,
    Stand,
    Standing,
    Taken,
    ToWorker,
)
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.ipc.place import Place
from fedmt_flower.device.ipc.protocol import Channel
from fedmt_flower.device.ipc.state import empty_buffer
from fedmt_flower.device.training.execution import HandedOver
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.worker import relay
from fedmt_flower.device.worker.relay import Relay
from fedmt_flower.domain.round import Mode
from fedmt_flower.domain.task import Task

PLACE = Place(handle=b"", size=0, offset=0, counter=b"", counter_offset=0)


@pytest.fixture(autouse=True)
def host_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tasks bring their folder and choose their threads."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def a_task(trainer: str = "", optimizer: str = "torch.optim:SGD") -> Task:
    return Task(
        name="long",
        model="handover_tasks:model",
        data="handover_tasks:data",
        objective="handover_tasks:unhurried",
        trainer=f"handover_tasks:{trainer}" if trainer else "",
        optimizer=optimizer,
        parameters={"lr": 0.01, "batch_size": 16, "epochs": 2},
        python_path=(str(Path(__file__).parent),),
    )


class Worker:
    """One without a process: its relay, and the engine's end of its channel."""

    def __init__(self, task: Task) -> None:
        ours, theirs = socket.socketpair()
        self.engine: Channel[Answers] = Channel(ours, FromWorker)
        self.runtime = TaskRuntime(task, "cpu")
        self.relay = Relay(Channel(theirs, ToWorker), self.runtime)

    def answer(self) -> tuple[Answers, list[int]]:
        received = self.engine.receive()
        assert received is not None
        return received.frame, list(received.fds)


def bits(weights: Weights | None) -> dict[str, bytes]:
    assert weights is not None
    return {name: array.tobytes() for name, array in weights.items()}


def check_that_it_goes_on_as_if_it_had_stayed(task: Task, place: Place | None = None) -> None:
    """Have one worker hand a job over to another after a step: through a file, or at `place`."""
    job = Job(site="clinic", round=1, seed=3, mode=Mode.TRAIN, parameters=task.parameters)
    weights = initial_weights(task, 1)
    stayed = bits(TaskRuntime(task, "cpu").run(job, weights).weights)
    source, target = Worker(task), Worker(task)
    orders = [Offer()] if place else []
    for told in (*orders, Pause(by_device=place is not None), Relieve()):
        source.engine.send(told)
    with pytest.raises(HandedOver):
        source.runtime.run(job, weights, between=source.relay.between)
    if place:
        assert source.answer() == (Offered(place=place), [])
    paused, files = source.answer()
    assert isinstance(paused, Paused)
    assert target.relay.stand(Stand(job=job, place=place)) == Standing(opened=place is not None)
    order = Continue(layout=paused.layout, size=paused.size, checksum=paused.checksum)
    result = target.relay.go_on(order, files[0] if files else None, lambda progress: None)
    assert target.answer() == (Taken(), [])
    assert bits(result.weights) == stayed


@pytest.mark.parametrize("optimizer", ["torch.optim:SGD", "torch.optim:Adagrad"])
def test_practising_leaves_nothing_with_the_job_that_is_taken_over(optimizer: str) -> None:
    """Adagrad has a state before its first step, which then lies in what was practised with."""
    check_that_it_goes_on_as_if_it_had_stayed(a_task(optimizer=optimizer))


@pytest.mark.parametrize("trainer", ["Strict", "Open"])
def test_a_trainer_of_the_users_takes_a_state_over_that_could_not_be_practised(trainer: str) -> None:
    check_that_it_goes_on_as_if_it_had_stayed(a_task(trainer))


def test_a_worker_without_memory_to_practise_stands_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, asked = empty_buffer, list[int]()

    def scarce(size: int, device: torch.device | str) -> torch.Tensor:
        asked.append(size)
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return genuine(size, device)

    monkeypatch.setattr(relay, "empty_buffer", scarce)
    check_that_it_goes_on_as_if_it_had_stayed(a_task())
    assert len(asked) == 2


def test_a_place_is_made_when_the_memory_of_practising_is_free_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state goes from device to device, both of which the host plays."""
    genuine, places = empty_buffer, list[torch.Tensor]()
    made: list[weakref.ref[torch.Tensor]] = []

    def noted(size: int, device: torch.device | str) -> torch.Tensor:
        buffer = genuine(size, device)
        made.append(weakref.ref(buffer))
        return buffer

    def new_place(size: int, device: torch.device) -> tuple[torch.Tensor, Place]:
        assert [buffer() for buffer in made] == [None]
        places.append(genuine(size, device))
        return places[0], PLACE

    monkeypatch.setattr(relay, "empty_buffer", noted)
    monkeypatch.setattr(relay, "new_place", new_place)
    monkeypatch.setattr(relay, "opened", lambda place, device: places[0])
    monkeypatch.setattr(torch.cuda, "ipc_collect", lambda: None)
    check_that_it_goes_on_as_if_it_had_stayed(a_task(), PLACE)
    assert len(made) == 2
