"""The tasks: a model and data for each. The package's own loop trains them."""

import torch
from sklearn.datasets import load_diabetes, load_wine
from sklearn.model_selection import train_test_split
from torch import nn

from fedmt_flower import Task


def wine_model() -> nn.Module:
    """Tells three cultivars of wine apart."""
    return nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 3))


def wine_data(partition_id: int, num_partitions: int):
    """This node's wines: (train, test), each (inputs, classes)."""
    features, cultivars = load_wine(return_X_y=True)
    return _split(features, torch.tensor(cultivars), partition_id, num_partitions)


def diabetes_model() -> nn.Module:
    """Foretells how far the illness goes within a year."""
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))


def diabetes_data(partition_id: int, num_partitions: int):
    """This node's patients: (train, test), each (inputs, targets)."""
    features, progression = load_diabetes(return_X_y=True)
    targets = torch.tensor((progression - 152) / 77, dtype=torch.float32)
    return _split(features, targets, partition_id, num_partitions)


def _split(features, targets, partition_id: int, num_partitions: int):
    inputs = torch.tensor((features - features.mean(axis=0)) / features.std(axis=0), dtype=torch.float32)
    inputs, targets = inputs[partition_id::num_partitions], targets[partition_id::num_partitions]
    parts = train_test_split(inputs, targets, test_size=0.2, random_state=42)
    return (parts[0], parts[2]), (parts[1], parts[3])


TASKS = (
    Task(
        name="wine",
        model="tasks_app.tasks:wine_model",
        data="tasks_app.tasks:wine_data",
        parameters={"lr": 0.1, "batch_size": 16},
    ),
    Task(
        name="diabetes",
        model="tasks_app.tasks:diabetes_model",
        data="tasks_app.tasks:diabetes_data",
        objective="fedmt_flower.tasks.objectives:regression",
        optimizer="torch.optim:Adam",
        parameters={"lr": 0.01, "batch_size": 16},
    ),
)
