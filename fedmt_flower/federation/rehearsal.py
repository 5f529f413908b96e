"""A server's round on replies that are made up: what it costs apart from any network.

A process of its own for each, so that its peak of memory is its own:
``python -m fedmt_flower.federation.rehearsal fedmt 100 models.npz``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from fedmt_flower.device.contract import Weights
from fedmt_flower.domain.plan import RoundPlan, Sharing
from fedmt_flower.domain.round import RoundReport, Status, TaskReport
from fedmt_flower.federation import codec
from fedmt_flower.federation.arrays import digest, to_record
from fedmt_flower.federation.package import Hello
from fedmt_flower.federation.strategy import FedMT

SERVERS = ("fedmt", "fedavg")

_KINDS = 2
"""Updates that differ from each other; the same come again and again, each time as bytes of their own."""
_WEIGHTED = "num-examples"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a round of a server took.

    Parameters
    ----------
    seconds
        From its strategies' first question to the new models, without the making of replies.
    cpu_s
        Of that, the time that a processor was at it.
    grown_bytes
        Peak of the process's memory above what it was before.
    digests
        SHA-256 of each task's new model.
    """

    seconds: float
    cpu_s: float
    grown_bytes: int
    digests: Mapping[str, str]


def rehearse(server: str, replies: int, models: Mapping[str, Weights]) -> Cost:
    """A round of all tasks with so many nodes, under FedMT or under Flower's own FedAvg, task by task."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    records = {task: to_record(weights) for task, weights in models.items()}
    if server == "fedmt":
        grid = _Replies(replies, models, packed=True)
        watch = _Watch(grid)
        ends: dict[int, tuple[float, float, int]] = {}

        def look(_: str, number: int, __: ArrayRecord) -> None:
            ends.setdefault(number, watch.read())

        results = FedMT({task: _fedavg() for task in models}, discover=True).start(
            grid, records, num_rounds=1, evaluate_fn=look
        )
        seconds, cpu, grown = ends[1]
        new = {task: result.arrays for task, result in results.items()}
        return Cost(seconds=seconds, cpu_s=cpu, grown_bytes=grown, digests=_digests(new))
    readings, new = [], {}
    for task, weights in models.items():
        grid = _Replies(replies, {task: weights}, packed=False)
        strategy = _fedavg()
        watch = _Watch(grid)
        messages = strategy.configure_train(1, records[task], ConfigRecord(), grid)
        arrays, _ = strategy.aggregate_train(1, grid.send_and_receive(messages))
        readings.append(watch.read())
        assert arrays is not None
        new[task] = arrays
    all_seconds, all_cpu, all_grown = zip(*readings, strict=True)
    return Cost(
        seconds=sum(all_seconds), cpu_s=sum(all_cpu), grown_bytes=max(all_grown), digests=_digests(new)
    )


def _fedavg() -> FedAvg:
    return FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)


def _digests(models: Mapping[str, ArrayRecord]) -> dict[str, str]:
    return {task: digest(arrays) for task, arrays in models.items()}


class _Replies(Grid):
    """A Grid whose nodes reply at once; a reply is read from its objects' bytes, as from a SuperLink.

    `made_s` and `made_cpu_s` are the time that the bytes took.
    """

    def __init__(self, nodes: int, models: Mapping[str, Weights], *, packed: bool) -> None:
        self.made_s = self.made_cpu_s = 0.0
        self._nodes = nodes
        self._packed = packed
        self._tasks = tuple(models)
        self._numbers = itertools.count(1)
        self._asked: dict[str, Message] = {}
        self._updates: list[ArrayRecord] = []
        self._bytes: list[dict[str, bytes]] = []
        for kind in range(_KINDS):
            moved = {task: _moved(weights, kind + 1) for task, weights in models.items()}
            if packed:
                content = codec.encode_answer(self._report("", 1, 0), moved, packed=True)
                update = content.array_records[codec.ARRAYS]
            else:
                update = to_record(next(iter(moved.values())))
            self._updates.append(update)
            nested = get_all_nested_objects(update)
            self._bytes.append({name: one.deflate() for name, one in nested.items()})
            update.object_id  # noqa: B018  kept in it, so that no reply hashes the arrays again

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid`."""
        return range(2, self._nodes + 2)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid`."""
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"message-{next(self._numbers)}"
            self._asked[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid`."""
        return [self._reply(self._asked.pop(one)) for one in sorted(message_ids) if one in self._asked]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """See `Grid`; in the order of the nodes."""
        replies = self.pull_messages(self.push_messages(messages))
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def _reply(self, asked: Message) -> Message:
        begin, cpu = time.monotonic(), time.thread_time()
        node = asked.metadata.dst_node_id
        kind = node % _KINDS
        trains = asked.metadata.message_type == MessageType.TRAIN
        content = self._content(asked.metadata.message_type, node)
        if trains:
            content[codec.ARRAYS] = self._updates[kind]
        reply = Message(content, reply_to=asked)
        small = [*content.metric_records.values(), *content.config_records.values(), content, reply]
        contents = {one.object_id: one.deflate() for one in small} | (self._bytes[kind] if trains else {})
        self.made_s += time.monotonic() - begin
        self.made_cpu_s += time.thread_time() - cpu
        read = inflate_object_from_contents(reply.object_id, contents)
        assert isinstance(read, Message)
        return read

    def _content(self, message_type: str, node: int) -> RecordDict:
        site, examples = f"site-{node:05}", 100 + node % 50
        if message_type == MessageType.QUERY:
            return codec.encode_hello(Hello(site=site, tasks=self._tasks, unpacks=self._packed))
        if not self._packed:
            return RecordDict({codec.METRICS: MetricRecord({_WEIGHTED: examples, "loss": 0.5})})
        trains = message_type == MessageType.TRAIN
        report = self._report(site, 1 if trains else 2, examples)
        content = codec.encode_answer(report, {})
        if trains:
            metrics = {task: {_WEIGHTED: examples} for task in self._tasks}
            content[codec.METRICS] = codec.flatten(metrics, MetricRecord())
        del content[codec.ARRAYS]
        return content

    def _report(self, site: str, number: int, examples: int) -> RoundReport:
        return RoundReport(
            site=site,
            round=number,
            plan=RoundPlan(tasks=(), sharing=Sharing.CAPPED),
            tasks=tuple(
                TaskReport(task=task, status=Status.DONE, train_examples=examples) for task in self._tasks
            ),
            timeline=(),
            backend="",
            waited_s=0.0,
            wall_s=0.0,
        )

    def set_run(self, run: Any) -> None:
        """See `Grid`."""
        raise NotImplementedError

    @property
    def run(self) -> Any:
        """See `Grid`."""
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        """See `Grid`."""
        raise NotImplementedError


class _Watch:
    """Time and memory from now on, without what replies took to be made."""

    def __init__(self, grid: _Replies) -> None:
        self._grid = grid
        # From here on its peak is counted anew.
        Path("/proc/self/clear_refs").write_text("5")
        self._before = _status("VmRSS")
        self._begin, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> tuple[float, float, int]:
        """Seconds, seconds of a processor, bytes that the process has grown by at its peak."""
        seconds = time.monotonic() - self._begin - self._grid.made_s
        cpu = time.process_time() - self._cpu - self._grid.made_cpu_s
        return seconds, cpu, _status("VmHWM") - self._before


def _moved(weights: Weights, by: int) -> Weights:
    return {name: np.asarray(array + array.dtype.type(by), array.dtype) for name, array in weights.items()}


def _status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def main() -> None:
    """Rehearse as the command line says, and print the cost as JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("server", choices=SERVERS)
    parser.add_argument("replies", type=int)
    parser.add_argument("models", type=Path, help="an npz file of arrays named task/name")
    arguments = parser.parse_args()
    with np.load(arguments.models, allow_pickle=False) as file:
        models = codec.split(dict(file))
    cost = rehearse(arguments.server, arguments.replies, models)
    sys.stdout.write(json.dumps(asdict(cost)) + "\n")


if __name__ == "__main__":
    main()
