"""What a user of Flower writes today for one task: Flower's own strategy and an ordinary training loop.

The text of an app's files: it runs in Flower's processes, and uses of this package its models and data.
"""

from __future__ import annotations

from typing import Final

from fedmt_flower.bench.project import project

PROJECT: Final = project(
    "stock",
    "One task under Flower alone",
    "stock_app:server",
    "stock_app:client",
    {"model": "", "rounds": 1, "samples": 256, "batch-size": 128, "device": "cpu", "mark": ""},
)

APP: Final = '''\
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.utils.data import DataLoader, TensorDataset

from fedmt_flower.tasks import data, models

server = ServerApp()
client = ClientApp()


class Marked(FedAvg):
    """FedAvg that leaves behind when each of its models was there."""

    mark = ""

    def aggregate_train(self, server_round, replies):
        made = super().aggregate_train(server_round, replies)
        with Path(self.mark).open("a") as moments:
            print(time.time(), file=moments)
        return made


@server.main()
def main(grid, context):
    config = context.run_config
    strategy = Marked()
    strategy.mark = config["mark"]
    model = getattr(models, config["model"])(in_channels=3)
    strategy.start(grid, ArrayRecord(model.state_dict()), num_rounds=config["rounds"])
    Path(config["mark"] + ".end").write_text(str(time.time()))


def prepared(message, context):
    config = context.run_config
    device = torch.device(config["device"])
    model = getattr(models, config["model"])(in_channels=3)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    split = data.synthetic(
        samples=config["samples"],
        partition_id=context.node_config["partition-id"],
        num_partitions=context.node_config["num-partitions"],
    )
    train, test = (TensorDataset(*part) for part in split)
    return model.to(device), train, test, config["batch-size"], device


@client.train()
def train(message, context):
    model, samples, _, batch_size, device = prepared(message, context)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    model.train()
    for inputs, labels in DataLoader(samples, batch_size, shuffle=True):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(inputs.to(device)), labels.to(device))
        loss.backward()
        optimizer.step()
    content = {
        "arrays": ArrayRecord(model.state_dict()),
        "metrics": MetricRecord({"num-examples": len(samples), "loss": float(loss)}),
    }
    return Message(RecordDict(content), reply_to=message)


@client.evaluate()
def evaluate(message, context):
    model, _, samples, batch_size, device = prepared(message, context)
    model.eval()
    loss = 0.0
    with torch.no_grad():
        for inputs, labels in DataLoader(samples, batch_size):
            scores = model(inputs.to(device))
            loss += float(torch.nn.functional.cross_entropy(scores, labels.to(device), reduction="sum"))
    metrics = MetricRecord({"num-examples": len(samples), "loss": loss / len(samples)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
'''
