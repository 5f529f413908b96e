"""clinic: the client."""

from flwr.clientapp import ClientApp

from fedmt_flower import MultiTaskClient, Task

tasks = Task.in_module("wine", "wine.task"), Task.in_module("cells", "cells.task")


def client_fn(context):
    """Make the client of one node."""
    return MultiTaskClient(context, *tasks).to_client()


app = ClientApp(client_fn)
