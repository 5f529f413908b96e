"""A federation in this process: Flower's own messages, real ClientApps, no network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.task import Task
from fedmt_flower.federation.arrays import to_record

TOYS = str(Path(__file__).parent / "toys")
INLINE = DeviceSettings(backend=Backend.INLINE)
Tamper = Callable[[Message, Message], Message | None]


@dataclass
class LocalGrid(Grid):
    """Answers each message, when replies are first asked for, by calling its node's ClientApp.

    `tamper` is given what was sent to a node and its reply, which it may change or drop. `sent` and
    `received` are all messages that travelled.
    """

    apps: dict[int, tuple[ClientApp, Context]] = field(default_factory=dict)
    tamper: dict[int, Tamper] = field(default_factory=dict)
    sent: list[Message] = field(default_factory=list)
    received: list[Message] = field(default_factory=list)
    online: Callable[[], Iterable[int]] | None = None

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        self._waiting: dict[str, Message] = {}

    def add(self, node: int, app: ClientApp, **node_config: Any) -> None:
        context = Context(run_id=1, node_id=node, node_config=node_config, state=RecordDict(), run_config={})
        self.apps[node] = (app, context)

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.online()) if self.online else list(self.apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._ids)}"
            self.sent.append(message)
            self._waiting[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = [self._waiting.pop(one) for one in sorted(message_ids) if one in self._waiting]
        replies = [reply for message in asked if (reply := self._answer(message))]
        self.received += replies
        return replies

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As Flower's, but by node id: the order of replies changes the last bits of their mean."""
        ids = list(self.push_messages(messages))
        replies = {reply.metadata.src_node_id: reply for reply in self.pull_messages(ids)}
        return [replies[node] for node in sorted(replies)]

    def _answer(self, message: Message) -> Message | None:
        node = message.metadata.dst_node_id
        app, context = self.apps[node]
        arrived = _travel(message)
        try:
            reply = app(arrived, context)
        except Exception as error:
            # In the very words of Flower's SuperNode.
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=arrived)
        changed = self.tamper[node](message, reply) if node in self.tamper else reply
        return _travel(changed) if changed else None


def _travel(message: Message) -> Message:
    """What is left of `message` after a journey: no object is shared with the sender."""
    contents = {name: one.deflate() for name, one in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id
    return arrived


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What Flower sets before an app may build a Message; and one thread, for equal bits."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def grid() -> LocalGrid:
    return LocalGrid()


@pytest.fixture
def tasks() -> dict[str, Task]:
    """A classifier, a regressor and an autoencoder."""
    kinds = {
        "seg": ("classifier", "labelled", "classification"),
        "det": ("regressor", "valued", "regression"),
        "enc": ("autoencoder", "plain", "reconstruction"),
    }
    return {
        name: Task(
            name=name,
            model=f"toy_tasks:{model}",
            data=f"toy_tasks:{data}",
            objective=f"fedmt_flower.tasks.objectives:{objective}",
            parameters={"lr": 0.05, "batch_size": 16, "epochs": 1},
            python_path=(TOYS,),
        )
        for name, (model, data, objective) in kinds.items()
    }


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, ArrayRecord]]:
    """Each task's initial model, the same at every call."""
    monkeypatch.syspath_prepend(TOYS)
    import toy_tasks

    def build() -> dict[str, ArrayRecord]:
        records = {}
        builders = {"seg": toy_tasks.classifier, "det": toy_tasks.regressor, "enc": toy_tasks.autoencoder}
        for name, builder in builders.items():
            torch.manual_seed(3)
            state = builder().state_dict()
            records[name] = to_record({key: value.numpy() for key, value in state.items()})
        return records

    return build
