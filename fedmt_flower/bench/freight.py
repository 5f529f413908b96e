"""Tasks that are all weight: models of given sizes whose training is a pause, so that links can be seen.

The text of an app's files; a client's import no more than it needs, as it is a new process for every
message. A pause takes no processor, as training on a GPU takes few: what the host has is Flower's.
"""

from __future__ import annotations

from typing import Final

from fedmt_flower.bench.project import project

_PROJECT: Final = project(
    "freight",
    "Models of given sizes",
    "freight_server:server",
    "freight_client:client",
    {"sizes": "", "pauses": "", "rounds": 1, "nodes": 1, "told": ""},
)

_SERVER: Final = """\
import json
import time
from pathlib import Path

import msgspec
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedmt_flower import FedMT
from freight_model import Freight
from freight_tasks import tasks

server = ServerApp()


class InTurn(FedAvg):
    # Asks one site in each round, by the sites' names in turn, and has none evaluate.

    def __init__(self):
        super().__init__(fraction_evaluate=0.0)

    def configure_train(self, server_round, arrays, config, grid):
        nodes = list(grid.get_node_ids())
        asked = nodes[(server_round - 1) % len(nodes)]
        messages = super().configure_train(server_round, arrays, config, grid)
        return [message for message in messages if message.metadata.dst_node_id == asked]


@server.main()
def main(grid, context):
    config = context.run_config
    while len(list(grid.get_node_ids())) < config["nodes"]:
        time.sleep(0.2)
    models = {
        task.name: ArrayRecord(Freight(task.parameters["megabytes"]).state_dict()) for task in tasks(config)
    }
    rounds = []

    def tell(played):
        rounds.append(msgspec.to_builtins(played))
        aside = Path(config["told"] + ".aside")
        aside.write_text(json.dumps(rounds))
        aside.rename(config["told"])

    strategies = {name: InTurn() for name in models}
    FedMT(strategies).start(grid, models, num_rounds=config["rounds"], on_round=tell)
"""

_TASKS: Final = """\
from fedmt_flower import Task


def tasks(config):
    sizes, pauses = (config[key].split(",") for key in ("sizes", "pauses"))
    return tuple(
        Task(
            name=f"task-{place}",
            model="freight_model:Freight",
            data="freight_model:data",
            train="freight_model:train",
            parameters={"megabytes": float(size), "pause_s": float(pause)},
        )
        for place, (size, pause) in enumerate(zip(sizes, pauses, strict=True))
    )
"""

_CLIENT: Final = """\
from fedmt_flower.domain.allocation import Allocation, Policy
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.federation.client import build_client_app
from fedmt_flower.federation.sites import site_of
from freight_tasks import tasks


def configure(context):
    return site_of(
        context,
        tasks(context.run_config),
        allocation=Allocation(policy=Policy.SHARING),
        device=DeviceSettings(backend=Backend.CPU),
    )


client = build_client_app(configure)
"""

_MODEL: Final = '''\
import time

import torch


class Freight(torch.nn.Module):
    """A small layer that is used, and parameters that are carried along."""

    def __init__(self, megabytes):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)
        self.freight = torch.nn.Parameter(torch.rand(int(megabytes * 250_000)))

    def forward(self, inputs):
        return self.head(inputs)


def data():
    inputs, labels = torch.rand(8, 4), torch.randint(2, (8,))
    return (inputs, labels), (inputs, labels)


def train(model, data, pause_s):
    time.sleep(pause_s)
    with torch.no_grad():
        # Flower carries equal bytes once.
        model.freight.add_(torch.rand(1))
'''

FILES: Final = {
    "pyproject.toml": _PROJECT,
    "freight_server.py": _SERVER,
    "freight_tasks.py": _TASKS,
    "freight_client.py": _CLIENT,
    "freight_model.py": _MODEL,
}
"""The app."""
