"""The package's own training loop, and the batches it draws."""

from __future__ import annotations

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedmt_flower.device.training.batches import batches, count, draws, gathered, in_memory, is_tensors, rows
from fedmt_flower.device.training.trainer import Loop, evaluate_by
from fedmt_flower.tasks.objectives import classification, regression

CPU = torch.device("cpu")
X = torch.randn(65, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
TENSORS = (X, Y)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))


def loop(model: nn.Module, data: Any = TENSORS, **config: Any) -> Loop:
    made = Loop(classification, partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    made.setup(model, data, {"seed": 3, "batch_size": 16, **config}, CPU)
    return made


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


@pytest.mark.parametrize(
    ("n", "size", "expected"),
    [(65, 16, [16, 16, 16, 17]), (64, 16, [16] * 4), (66, 16, [16] * 4 + [2]), (1, 16, [1]), (3, 1, [1] * 3)],
)
def test_a_last_batch_of_one_joins_the_one_before(n: int, size: int, expected: list[int]) -> None:
    for data in ((X[:1].expand(n, -1),), TensorDataset(X[:1].expand(n, -1))):
        assert [rows(batch) for batch in batches(data, size, CPU)] == expected


def test_a_shuffled_epoch_has_every_sample_once_and_may_begin_in_its_middle() -> None:
    data = (torch.arange(65),)
    whole, rest = (
        [gathered(b, CPU)[0] for b in draws(data, 16, CPU, torch.Generator().manual_seed(2), skip)]
        for skip in (0, 2)
    )
    assert sorted(torch.cat(whole).tolist()) == list(range(65))
    assert torch.cat(whole).tolist() != list(range(65))
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], rest, strict=True))


def test_what_is_in_memory_is_found_there() -> None:
    subset = Subset(Subset(TensorDataset(X, Y), list(range(40))), [3, 5])
    found = in_memory(subset)
    assert is_tensors(found)
    assert torch.equal(found[0], X[[3, 5]])
    assert count(DataLoader(subset, sampler=torch.utils.data.SubsetRandomSampler([1]))) == 1


def test_a_loop_trains_for_its_epochs() -> None:
    model = net()
    made = loop(model, epochs=3)
    used = list(iter(made.step, 0))
    assert used == [16, 16, 16, 17] * 3
    assert made.step() == 0
    assert 0 < made.metrics()["train_loss"] < 1


def test_a_loop_is_plain_minibatch_descent() -> None:
    model, twin = net().eval(), net().eval()
    made = loop(model, epochs=1)
    list(iter(made.step, 0))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    shuffle = torch.Generator().manual_seed(3 + 0x9E3779B9)
    for x, y in (drawn.gather() for drawn in draws(TENSORS, 16, CPU, shuffle)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(weights(model), weights(twin))


@pytest.mark.parametrize("form", ["tensors", "data set", "loader"])
@pytest.mark.parametrize("taken", [0, 3, 4, 6])
def test_a_loop_goes_on_elsewhere_as_if_never_moved(form: str, taken: int) -> None:
    def data() -> Any:
        if form == "tensors":
            return TENSORS
        rows = TensorDataset(X, Y)
        generator = torch.Generator().manual_seed(8)
        return rows if form == "data set" else DataLoader(rows, 13, shuffle=True, generator=generator)

    stayed, moved = net(), net()
    still = loop(stayed, data(), epochs=2, **{"proximal-mu": 0.1})
    list(iter(still.step, 0))
    before = loop(moved, data(), epochs=2, **{"proximal-mu": 0.1})
    for _ in range(taken):
        before.step()
    buffer = io.BytesIO()
    torch.save((moved.state_dict(), before.state_dict()), buffer)
    buffer.seek(0)
    model_state, loop_state = torch.load(buffer)
    torch.manual_seed(99)
    elsewhere = net()
    elsewhere.load_state_dict(model_state)
    after = loop(elsewhere, data(), epochs=2, **{"proximal-mu": 0.1})
    after.load_state_dict(loop_state)
    list(iter(after.step, 0))
    assert torch.equal(weights(elsewhere), weights(stayed))
    assert after.metrics() == still.metrics()


def test_the_proximal_term_pulls_towards_the_weights_received() -> None:
    start = weights(net())
    distances = []
    for mu in (0.0, 1.0, 5.0):
        model = net()
        made = loop(model, epochs=3, **{"proximal-mu": mu})
        list(iter(made.step, 0))
        distances.append(float((weights(model) - start).norm()))
    assert distances[0] > distances[1] > distances[2] > 0


def test_the_proximal_term_has_the_gradient_of_fedprox() -> None:
    model, twin = net().eval(), net().eval()
    made = loop(model, epochs=1, batch_size=65, **{"proximal-mu": 0.5})
    anchor = copy.deepcopy(list(twin.parameters()))
    with torch.no_grad():
        for weight, other in zip(model.parameters(), twin.parameters(), strict=True):
            weight += 0.1
            other += 0.1
    made.step()
    loss = nn.functional.cross_entropy(twin(X), Y)
    loss = loss + 0.25 * sum((a - b).square().sum() for a, b in zip(twin.parameters(), anchor, strict=True))
    loss.backward()
    with torch.no_grad():
        for weight in twin.parameters():
            assert weight.grad is not None
            weight -= 0.1 * weight.grad
    torch.testing.assert_close(weights(model), weights(twin))


@pytest.mark.parametrize("bad", [{"epochs": 0}, {"batch_size": 0}])
def test_a_round_of_nothing_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more of each"):
        loop(net(), **bad)


def test_batches_may_be_mappings() -> None:
    class Named(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            return dict(zip(("img", "label"), super().__getitem__(index), strict=True))

    model = net()
    made = loop(model, DataLoader(Named(X, Y), 10))
    assert list(iter(made.step, 0)) == [10] * 6 + [5]


def test_evaluation_is_the_mean_over_samples_whatever_the_batch() -> None:
    model = nn.Linear(4, 1).eval()
    data = (X, X[:, :1])
    by_one = evaluate_by(regression, model, data, CPU, batch_size=1)
    at_once = evaluate_by(regression, model, data, CPU, batch_size=65)
    assert by_one == pytest.approx(at_once)
    errors = (model(X) - X[:, :1]).detach()
    assert at_once["mae"] == pytest.approx(float(errors.abs().mean()))
