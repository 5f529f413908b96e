"""cells: model, data, training and test."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(nn.Module):
    """A perceptron over thirty measurements of a cell's nucleus."""

    def __init__(self, hidden: int = 64):
        super().__init__()
        self.fc1 = nn.Linear(30, hidden)
        self.fc2 = nn.Linear(hidden, 2)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))


def load_data(partition_id: int, num_partitions: int, batch_size: int):
    """Load this partition of the cells, one in five samples for testing."""
    features, labels = load_breast_cancer(return_X_y=True)
    features, labels = features[partition_id::num_partitions], labels[partition_id::num_partitions]
    x = torch.tensor((features - features.mean(axis=0)) / features.std(axis=0), dtype=torch.float32)
    y = torch.tensor(labels)
    parts = train_test_split(x, y, test_size=0.2, random_state=42)
    trainset, testset = TensorDataset(parts[0], parts[2]), TensorDataset(parts[1], parts[3])
    return DataLoader(trainset, batch_size, shuffle=True), DataLoader(testset, batch_size)


def train(net, trainloader, epochs, lr, device):
    """Train the model on the training set."""
    net.to(device)
    net.train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    running_loss = 0.0
    for _ in range(epochs):
        for features, labels in trainloader:
            optimizer.zero_grad()
            loss = F.cross_entropy(net(features.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def test(net, testloader, device):
    """Validate the model on the test set."""
    net.to(device)
    net.eval()
    loss, correct = 0.0, 0
    with torch.no_grad():
        for features, labels in testloader:
            features, labels = features.to(device), labels.to(device)
            outputs = net(features)
            loss += F.cross_entropy(outputs, labels, reduction="sum").item()
            correct += (outputs.argmax(dim=1) == labels).sum().item()
    samples = len(testloader.dataset)
    return loss / samples, correct / samples
