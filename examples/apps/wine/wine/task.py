"""wine: model, data, training and test."""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A perceptron over thirteen measurements of a wine."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(13, 32)
        self.fc2 = nn.Linear(32, 3)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


def get_weights(net):
    """The model's weights as a list of arrays."""
    return [value.cpu().numpy() for value in net.state_dict().values()]


def set_weights(net, parameters):
    """Put a list of arrays into the model."""
    named = zip(net.state_dict().keys(), parameters, strict=True)
    net.load_state_dict(OrderedDict({key: torch.tensor(value) for key, value in named}), strict=True)


def load_data(partition_id: int, num_partitions: int):
    """Load this partition of the wines, one in five samples for testing."""
    features, labels = load_wine(return_X_y=True)
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    x = torch.tensor(features[partition_id::num_partitions], dtype=torch.float32)
    y = torch.tensor(labels[partition_id::num_partitions])
    parts = train_test_split(x, y, test_size=0.2, random_state=42)
    trainset, testset = TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])
    return DataLoader(trainset, batch_size=8, shuffle=True), DataLoader(testset, batch_size=8)


def train(net, trainloader, valloader, epochs, learning_rate, device):
    """Train the model, then validate it."""
    net.to(device)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for features, labels in trainloader:
            optimizer.zero_grad()
            F.cross_entropy(net(features.to(device)), labels.to(device)).backward()
            optimizer.step()
    val_loss, val_acc = test(net, valloader, device)
    return {"val_loss": val_loss, "val_accuracy": val_acc}


def test(net, testloader, device):
    """Validate the model on the test set."""
    net.to(device)
    net.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for features, labels in testloader:
            outputs = net(features.to(device))
            labels = labels.to(device)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    samples = len(testloader.dataset)
    return loss / samples, correct / samples
