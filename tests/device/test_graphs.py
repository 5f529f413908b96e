"""Steps as graphs: when they are taken, that they change nothing, and what is said where they cannot be."""

from __future__ import annotations

import gc
import random
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmt_flower.device.ipc.state import Packing, empty_buffer, unpacked
from fedmt_flower.device.training.capturable import make_capturable
from fedmt_flower.device.training.graphs import StepGraphs
from fedmt_flower.device.training.recording import CudaRecorder, NotRecorded
from fedmt_flower.device.training.seeding import choose_kernels
from fedmt_flower.device.training.trainer import Loop
from fedmt_flower.domain.profile import StepKind
from fedmt_flower.domain.step import StepRules
from fedmt_flower.errors import ConfigError
from fedmt_flower.tasks.objectives import classification

CPU = torch.device("cpu")
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01)
DATA = (torch.randn(71, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(71) % 4)
"""Four batches of 16 and one of 7."""


class HostRecorder:
    """Records on the host: what was recorded is done anew at each replay, on the very tensors."""

    def __init__(self, waits: str = "", fails: str = "") -> None:
        self.recorded = self.replayed = 0
        self._waits, self._fails = waits, fails

    def obstacle(self, device: torch.device) -> str:
        return ""

    def aside(self) -> Any:
        return nullcontext()

    @contextmanager
    def watch(self) -> Iterator[list[str]]:
        waits: list[str] = []
        yield waits
        waits += [self._waits] if self._waits else []

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        if self._fails:
            raise NotRecorded(self._fails)
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4)
    )


def train(
    model: nn.Module, graphs: StepGraphs | None, data: Any = DATA, optimizer: Any = SGD, **config: Any
) -> Loop:
    """One round; on the model as it is."""
    config = {"seed": 3, "batch_size": 16, "epochs": 2, "proximal-mu": 0.1} | config
    loop = Loop(classification, optimizer, graphs)
    loop.setup(model, data, config, data[0].device if isinstance(data, tuple) else CPU)
    while loop.step():
        pass
    return loop


def bits(model: nn.Module) -> list[bytes]:
    return [tensor.cpu().numpy().tobytes() for tensor in model.state_dict().values()]


def test_a_replayed_round_is_the_round_itself_and_so_is_the_next() -> None:
    """Also where the second round brings other weights, and a learning rate that needs another recording."""
    plain, fast = net(), net()
    recorder = HostRecorder()
    graphs = StepGraphs(recorder)
    for round_ in range(3):
        rate = partial(SGD, lr=0.1 if round_ < 2 else 0.05)
        eager, graphed = train(plain, None, optimizer=rate), train(fast, graphs, optimizer=rate)
        assert bits(fast) == bits(plain)
        assert graphed.metrics() == eager.metrics()
        assert (eager.step_kind, graphed.step_kind) == (StepKind.EAGER, StepKind.GRAPH)
        assert graphed.why_eager == ""
        assert recorder.recorded == (1, 1, 2)[round_]
    # Two epochs of four whole batches, but for the two before a recording, or the first of a round.
    assert recorder.replayed == 6 + 7 + 6


def test_a_last_batch_of_one_sample_more_is_none_of_the_graphs() -> None:
    """A single sample that is left over joins the batch before it: 16, 16 and 17."""
    plain, fast, recorder = net(), net(), HostRecorder()
    data = tuple(part[:49] for part in DATA)
    train(plain, None, data, epochs=3)
    train(fast, StepGraphs(recorder), data, epochs=3)
    assert bits(fast) == bits(plain)
    # Three epochs of two whole batches, but for the two before the recording.
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def handed_over(
    make: Callable[[], nn.Module], graphs: StepGraphs, data: Any = DATA, optimizer: Any = SGD, **config: Any
) -> tuple[nn.Module, Loop]:
    """A model and a loop that go on with a round after its third step, as in a process that has rehearsed."""
    config = {"seed": 3, "batch_size": 16, "epochs": 2, "proximal-mu": 0.1} | config
    source, target = make(), make()
    train(target, graphs, data, optimizer, **config)
    before, after = Loop(classification, optimizer), Loop(classification, optimizer, graphs)
    before.setup(source, data, config, data[0].device)
    for _ in range(3):
        before.step()
    packing = Packing({"model": source.state_dict(), "trainer": before.state_dict()})
    buffer = empty_buffer(packing.size, data[0].device)
    packing.into(buffer)
    state = unpacked(packing.layout, buffer)
    after.setup(target, data, config, data[0].device)
    target.load_state_dict(state["model"])
    after.load_state_dict(state["trainer"])
    return target, after


def test_a_round_handed_over_goes_on_in_the_graph_of_another_process() -> None:
    stayed = net()
    whole = train(stayed, None)
    recorder = HostRecorder()
    target, after = handed_over(net, StepGraphs(recorder))
    rehearsed = recorder.replayed
    after.step()
    assert (recorder.recorded, recorder.replayed) == (1, rehearsed + 1)
    while after.step():
        pass
    assert bits(target) == bits(stayed)
    assert after.metrics() == whole.metrics()


def test_a_state_loaded_into_a_loop_that_replays_is_not_lost_on_its_graph() -> None:
    stayed, moved = net(), net()
    train(stayed, None)
    loop = Loop(classification, SGD, StepGraphs(HostRecorder()))
    loop.setup(moved, DATA, {"seed": 3, "batch_size": 16, "epochs": 2, "proximal-mu": 0.1}, CPU)
    for _ in range(3):
        loop.step()
    assert loop.step_kind is StepKind.GRAPH
    weights, state = [tensor.clone() for tensor in moved.state_dict().values()], loop.state_dict()
    state = {**state, "anchor": [a.clone() for a in state["anchor"]], "loss": state["loss"].clone()}
    momentum = {
        key: {k: v.clone() for k, v in held.items()} for key, held in state["optimizer"]["state"].items()
    }
    state["optimizer"] = {**state["optimizer"], "state": momentum}
    for _ in range(2):
        loop.step()
    with torch.no_grad():
        for mine, saved in zip(moved.state_dict().values(), weights, strict=True):
            mine.copy_(saved)
    loop.load_state_dict(state)
    while loop.step():
        pass
    assert bits(moved) == bits(stayed)


def test_memory_given_back_is_taken_again() -> None:
    recorder = HostRecorder()
    graphs = StepGraphs(recorder)
    loop = Loop(classification, SGD, graphs)
    loop.setup(net(), DATA, {"seed": 3, "batch_size": 16, "epochs": 5}, CPU)
    for _ in range(3):
        loop.step()
    loop.release()
    assert graphs._kept is None
    loop.step()
    assert (recorder.recorded, recorder.replayed) == (2, 2)


def test_counts_and_rates_that_came_from_plain_steps_go_to_the_device() -> None:
    here, there = nn.Linear(2, 2), nn.Linear(2, 2, device="meta")
    plain, capturable = torch.optim.Adam(here.parameters()), torch.optim.Adam(there.parameters())
    here(torch.ones(1, 2)).sum().backward()
    plain.step()
    capturable.load_state_dict(plain.state_dict())
    assert {held["step"].device.type for held in capturable.state.values()} == {"cpu"}
    make_capturable(capturable)
    assert {held["step"].device.type for held in capturable.state.values()} == {"meta"}
    (group,) = capturable.param_groups
    assert (group["capturable"], group["lr"].device.type) == (True, "meta")


def test_torchs_newer_names_for_float32_arithmetic_may_be_used() -> None:
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("torch has had them since 2.9")
    before, recorder = torch.backends.cuda.matmul.fp32_precision, HostRecorder()
    graphs = StepGraphs(recorder)
    try:
        train(net(), graphs)
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        train(net(), graphs)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert recorder.recorded == 2


class Touching(nn.Module):
    """Does at each step what no graph would repeat."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.how, self.steps = how, 0
        self.layer = nn.Linear(192, 4)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        match self.how:
            case "counts":
                self.steps += 1
            case "draws":
                random.random()
            case "torch draws":
                torch.rand(())
            case "puts":
                self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
            case "waits":
                x = x * (1 + 0 * x.mean().item())
            case "stops":
                torch.cuda.synchronize()
        return self.layer(x.flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("counts", "each step changes steps of the model on the host"),
        ("draws", "each step draws from a generator of the host"),
        ("torch draws", "each step draws from a generator of the host"),
        ("puts", "each step puts new tensors in the place of the model's"),
    ],
)
def test_a_step_that_a_graph_would_not_repeat_is_found_out_once(how: str, reason: str) -> None:
    recorder, plain, fast = HostRecorder(), Touching(how), Touching(how)
    graphs = StepGraphs(recorder)
    for _ in range(2):
        train(plain, None)
        loop = train(fast, graphs)
        assert reason in loop.why_eager
        assert loop.step_kind is StepKind.EAGER
        assert bits(fast) == bits(plain)
    assert recorder.recorded == 0


@pytest.mark.parametrize(
    ("recorder", "data", "optimizer", "config", "reason"),
    [
        (None, DATA, SGD, {}, "graphs are recorded on NVIDIA GPUs, not on the cpu"),
        (HostRecorder(), DATA, torch.optim.Adagrad, {}, "torch.optim.adagrad.Adagrad has no `capturable`"),
        (HostRecorder(), DATA, SGD, {"batch_size": 64}, "a round of 2 whole batches is too short"),
        (HostRecorder(), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*DATA), 16), SGD, {},
         "its data is a DataLoader, not tensors in memory"),
        (HostRecorder(waits="net.py:7"), DATA, SGD, {}, "the host waits for the device at net.py:7"),
        (HostRecorder(fails="recording it raised X"), DATA, SGD, {}, "recording it raised X"),
    ],
)  # fmt: skip
def test_a_plain_step_says_why(
    recorder: HostRecorder | None, data: Any, optimizer: Any, config: dict[str, Any], reason: str
) -> None:
    model, plain = net(), net()
    loop = train(model, StepGraphs(recorder), data, optimizer, **config)
    assert reason in loop.why_eager
    train(plain, None, data, optimizer, step="eager", **config)
    assert bits(model) == bits(plain)
    with pytest.raises(NotRecorded, match=r"step 'graph' cannot be had: .*take 'auto' or 'eager'"):
        train(net(), StepGraphs(recorder), data, optimizer, step="graph", **config)


def test_no_reason_is_given_for_what_was_asked_for() -> None:
    loop = train(net(), StepGraphs(HostRecorder()), step="eager")
    assert (loop.step_kind, loop.why_eager) == (StepKind.EAGER, "")


@pytest.mark.parametrize("config", [{"precision": "bfloat16"}, {"memory-format": "channels_last"}])
def test_other_arithmetic_and_other_layouts_come_close(config: dict[str, str]) -> None:
    model, plain = net(), net()
    if "memory-format" in config:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loop, reference = train(model, None, **config), train(plain, None)
    assert loop.metrics()["train_loss"] == pytest.approx(reference.metrics()["train_loss"], rel=0.03)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == plain.state_dict()[name].dtype
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0.1, atol=0.05)
    if "precision" in config:
        assert bits(model) != bits(plain)


def test_rules_are_read_from_hyperparameters_and_refused_together() -> None:
    assert StepRules.of({"memory-format": "channels_last"}).memory_format == "channels_last"
    with pytest.raises(ConfigError) as info:
        StepRules.of({"step": "fast", "precision": 16})
    assert info.value.problems == (
        "step: got 'fast', expected one of auto, eager, graph",
        "precision: got 16, expected one of float32, bfloat16",
    )


@pytest.fixture
def deterministic() -> Iterator[None]:
    choose_kernels(True)
    yield
    choose_kernels(False)


def on_gpu(model: nn.Module) -> nn.Module:
    return model.to("cuda:0")


def fused(weights: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(weights, lr=rate(weights), momentum=0.9, fused=True)


def adamw(weights: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(weights, lr=rate(weights), capturable=True)


def rate(weights: list[Tensor]) -> Tensor:
    """A learning rate as graphs have it of these optimizers; as a number it is rounded elsewhere."""
    return torch.tensor(0.01, device=weights[0].device)


def dropping(config: dict[str, Any]) -> nn.Module:
    """A net with dropout on the GPU, laid out as `config` says."""
    made = nn.Sequential(net(), nn.Dropout(0.3), nn.Linear(4, 4)).to("cuda:0")
    return made.to(memory_format=torch.channels_last) if "memory_format" in config else made


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("optimizer", [SGD, fused, adamw])
@pytest.mark.parametrize("config", [{}, {"precision": "bfloat16", "memory_format": "channels_last"}])
def test_a_graph_trains_to_the_bits_of_plain_steps(optimizer: Any, config: dict[str, Any]) -> None:
    """Over rounds with a small last batch; later ones replay what the first recorded."""
    data, model = tuple(part.to("cuda:0") for part in DATA), partial(dropping, config)
    plain, fast = model(), model()
    graphs = StepGraphs()
    for round_ in range(3):
        eager = train(plain, None, data, optimizer, step="eager", **config)
        loop = train(fast, graphs, data, optimizer, step="graph", **config)
        assert bits(fast) == bits(plain), f"round {round_ + 1}"
        assert loop.metrics() == eager.metrics()
        assert loop.step_kind is StepKind.GRAPH
        kept = graphs._kept
        if round_ == 0:
            first = kept
        assert kept is first


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("optimizer", [SGD, fused, adamw])
@pytest.mark.parametrize("config", [{}, {"precision": "bfloat16", "memory_format": "channels_last"}])
@pytest.mark.parametrize("step", ["eager", "graph"])
def test_a_round_handed_over_on_a_gpu_ends_in_the_bits_of_one_that_stayed(
    optimizer: Any, config: dict[str, Any], step: str
) -> None:
    data, make = tuple(part.to("cuda:0") for part in DATA), partial(dropping, config)
    stayed = make()
    whole = train(stayed, None, data, optimizer, step=step, **config)
    target, after = handed_over(make, StepGraphs(), data, optimizer, step=step, **config)
    while after.step():
        pass
    assert bits(target) == bits(stayed)
    assert after.metrics() == whole.metrics()
    assert after.step_kind == step


@pytest.mark.gpu
def test_memory_does_not_grow_with_recordings() -> None:
    """A rate that is a number is part of the graph: each round records anew."""
    data, model, graphs = tuple(part.to("cuda:0") for part in DATA), on_gpu(net()), StepGraphs()
    held, kept = [], []
    for round_ in range(8):
        train(model, graphs, data, partial(SGD, lr=0.1 / (round_ + 1)), step="graph")
        held.append(torch.cuda.memory_reserved())
        kept.append(id(graphs._kept))
    assert kept[-1] != kept[-2]
    assert max(held[3:]) <= max(held[:3])


@pytest.mark.gpu
def test_a_recording_that_failed_holds_no_memory() -> None:
    def work() -> None:
        held = torch.empty(64 << 20, dtype=torch.uint8, device="cuda:0")
        torch.cuda.synchronize()
        held.zero_()

    before, refused = torch.cuda.memory_allocated(), ""
    gc.disable()
    try:
        CudaRecorder().record(work)
    except NotRecorded as error:
        refused = str(error)
    finally:
        gc.enable()
    assert "recording it raised" in refused
    assert torch.cuda.memory_allocated() == before


@pytest.mark.gpu
@pytest.mark.usefixtures("deterministic")
def test_a_learning_rate_in_a_tensor_changes_without_another_recording() -> None:
    data, model, graphs = tuple(part.to("cuda:0") for part in DATA), on_gpu(net()), StepGraphs()
    train(model, graphs, data, partial(torch.optim.AdamW, lr=0.01), step="graph")
    first = graphs._kept
    model.load_state_dict(net().state_dict())
    train(model, graphs, data, partial(torch.optim.AdamW, lr=0.001), step="graph")
    fresh = on_gpu(net())
    train(fresh, StepGraphs(), data, partial(torch.optim.AdamW, lr=0.001), step="graph")
    assert graphs._kept is first
    assert bits(model) == bits(fresh)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("how", "reason"),
    [("waits", r"the host waits for the device at test_graphs.py:\d+"), ("stops", "recording it raised")],
)
def test_a_step_that_waits_for_the_gpu_falls_back_and_the_process_stays_whole(how: str, reason: str) -> None:
    data, plain, fast = tuple(part.to("cuda:0") for part in DATA), Touching(how), Touching(how)
    on_gpu(plain)
    on_gpu(fast)
    loop = train(fast, StepGraphs(), data)
    assert re.search(reason, loop.why_eager)
    train(plain, None, data, step="eager")
    assert bits(fast) == bits(plain)
    assert torch.cuda.current_stream() == torch.cuda.default_stream()
    torch.cuda.empty_cache()
    nn.functional.dropout(torch.ones(8, device="cuda:0")).sum().item()
    sound = on_gpu(net())
    assert train(sound, StepGraphs(), data, step="graph").step_kind is StepKind.GRAPH


@pytest.mark.gpu
def test_the_recorder_of_gpus_lists_waits_by_their_lines() -> None:
    x = torch.ones(2, device="cuda:0")
    with CudaRecorder().watch() as waits:
        x.sum().item()
    assert [wait.partition(":")[0] for wait in waits] == ["test_graphs.py"]
