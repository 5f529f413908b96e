"""A client's round on a message that is made up: what it costs apart from any network.

The counterpart of `rehearsal`, which does this for the server.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.allocation import Allocation
from fedmt_flower.domain.device import DeviceSettings
from fedmt_flower.domain.round import Mode, RoundReport
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.federation import codec
from fedmt_flower.federation.client import client_app
from fedmt_flower.federation.package import Part
from fedmt_flower.federation.packing import pack

_RUN = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A message that was answered.

    Parameters
    ----------
    arrived
        When it reached the client, in seconds since the epoch.
    seconds
        From there to the answer.
    report
        Of the round.
    """

    arrived: float
    seconds: float
    report: RoundReport


class Reception:
    """One node's ClientApp, given the messages that FedMT sends.

    Parameters
    ----------
    tasks, allocation, device
        See `client_app`.
    weights
        The global weights of every round, by task.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        allocation: Allocation,
        device: DeviceSettings,
        weights: Mapping[str, Weights],
    ) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = _RUN
        self._app = client_app(*tasks, allocation=allocation, device=device, site="reception")
        self._context = Context(run_id=_RUN, node_id=_RUN, node_config={}, state=RecordDict(), run_config={})
        self._arrays = {task.name: pack(weights[task.name]) for task in tasks}

    def receive(self, number: int, mode: Mode, config: Mapping[str, Mapping[str, Scalar]]) -> Answered:
        """Have the app do round `number`, with the server's `config` of each task."""
        parts = {
            task: Part(mode=mode, arrays=arrays, config=ConfigRecord({**config[task]}))
            for task, arrays in self._arrays.items()
        }
        content = codec.encode_package(number, parts)
        message = Message(content, dst_node_id=_RUN, message_type=MessageType.TRAIN)
        message.metadata.__dict__["_message_id"] = f"message-{number}"
        arrived, begin = time.time(), time.monotonic()
        reply = self._app(message, self._context)
        seconds = time.monotonic() - begin
        return Answered(arrived=arrived, seconds=seconds, report=codec.decode_answer(reply.content).report)
