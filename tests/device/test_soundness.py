"""Layers that do not compute in bfloat16 what they do in float32 are named before a task learns from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedmt_flower.bench.engine_rounds import Rounds
from fedmt_flower.bench.mixes import SCHEMES, fast_step, synthetic_task
from fedmt_flower.device.engine.client import EngineClient
from fedmt_flower.device.engine.connection import connect
from fedmt_flower.device.ipc.job import Job
from fedmt_flower.device.training import soundness, trainer
from fedmt_flower.device.training.initial import initial_weights
from fedmt_flower.device.training.runtime import TaskRuntime
from fedmt_flower.device.training.soundness import flaw
from fedmt_flower.device.training.training_step import TrainingStep
from fedmt_flower.domain.device import Backend, DeviceSettings
from fedmt_flower.domain.round import Mode
from fedmt_flower.domain.step import MemoryFormat, Precision, StepRules
from fedmt_flower.domain.task import Scalar, Task
from fedmt_flower.errors import TaskError
from fedmt_flower.tasks import models
from fedmt_flower.tasks.objectives import classification

FAST = StepRules(precision=Precision.BFLOAT16, memory_format=MemoryFormat.CHANNELS_LAST)
PARAMETERS: dict[str, Scalar] = {"samples": 64, "batch_size": 16, "lr": 0.01, "in_channels": 3}


def step_of(model: nn.Module, rules: StepRules = FAST) -> TrainingStep:
    return TrainingStep(
        model=model.train().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        objective=classification,
        optimizer=torch.optim.SGD(model.parameters()),
        weights=list(model.parameters()),
        mu=0.0,
        anchor=[],
        loss=torch.zeros((), dtype=torch.float64),
        rules=rules,
    )


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8)


class Broken(nn.Conv2d):
    """In bfloat16, one of its kernels leaves some of its work undone."""

    wrong = ""

    def forward(self, given: Tensor) -> Tensor:
        output = super().forward(given)
        if output.dtype is torch.bfloat16 and self.wrong:
            part = torch.zeros_like(output)
            part[:, : output.shape[1] // 4] = 1.0
            match self.wrong:
                case "values":
                    output = output * (1 - part)
                case "nan":
                    output = output.masked_fill(part.bool(), math.nan)
                case "weights":
                    output = nn.functional.conv2d(given, self.weight.detach(), self.bias)
                case "gradients":
                    output = output.detach() * part + output * (1 - part)
        return output


def small(wrong: str = "") -> nn.Module:
    torch.manual_seed(0)
    broken = Broken(8, 16, 1)
    broken.wrong = wrong
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), broken, nn.Flatten(),
        nn.Linear(16 * 900, 10),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mobilenet_v3_large", "shufflenet_v2", "resnet18", "densenet121"])
def test_sound_layers_are_no_matter(name: str) -> None:
    assert flaw(step_of(getattr(models, name)(in_channels=3)), batch()) == ""


def test_of_layers_that_are_alike_the_first_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[tuple[int, ...]] = []

    def look(layer: nn.Module, given: Tensor) -> tuple[str, ...]:
        looked.append(tuple(given.shape))
        return ()

    monkeypatch.setattr(soundness, "_deviations", look)
    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)]
    model = nn.Sequential(
        *layers, nn.Conv2d(3, 3, 3, stride=2), layers[0], nn.Flatten(), nn.Linear(3 * 15 * 15, 10)
    )
    assert flaw(step_of(model), batch()) == ""
    assert looked == [(8, 3, 32, 32), (8, 3, 32, 32), (8, 3, 15, 15), (8, 675)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("values", "layer 4 computes outputs 4"),
        ("nan", "layer 4 computes outputs that are not finite"),
        ("gradients", "layer 4 computes gradients of its input "),
        ("weights", "layer 4 computes gradients of its weight 100%"),
    ],
)
def test_a_layer_that_is_wrong_is_named(wrong: str, said: str) -> None:
    found = flaw(step_of(small(wrong)), batch())
    assert found.startswith(said)
    assert "in bfloat16, channels_last; set precision: float32 and memory_format: contiguous" in found
    assert flaw(step_of(small(wrong), replace(FAST, precision=Precision.FLOAT32)), batch()) == ""


class Gated(nn.Linear):
    """A user's own kind of layer."""

    def forward(self, given: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(given) * gate, gate


class Two(nn.Module):
    """Raw pixels whose mean a first layer takes away, and a layer with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 1, 3, bias=False), Gated(900, 10)
        with torch.no_grad():
            self.first.weight -= self.first.weight.mean()

    def forward(self, images: Tensor) -> Tensor:
        shallow = self.first(200.0 + images).flatten(1)
        return self.second(shallow, torch.ones((), dtype=shallow.dtype))[0]  # type: ignore[no-any-return]


def test_layers_and_data_of_any_kind_are_no_matter() -> None:
    assert flaw(step_of(Two()), batch()) == ""


class Noisy(nn.Linear):
    """With weights that are drawn anew in each pass."""

    def forward(self, given: Tensor) -> Tensor:
        return nn.functional.linear(given, self.weight + torch.randn_like(self.weight), self.bias)


def test_a_layer_that_draws_noise_is_no_matter() -> None:
    model = nn.Sequential(nn.Flatten(), Noisy(3072, 16), nn.Linear(16, 10))
    assert flaw(step_of(model), batch()) == ""


class Unused(nn.Linear):
    """With a weight that its forward pass has no use for."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.spare = nn.Parameter(torch.ones(1))


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.spectral_norm(nn.Linear(16, 16)),
        lambda: nn.utils.weight_norm(nn.Linear(16, 16)),
        Unused,
    ],
    ids=["spectral_norm", "weight_norm", "unused"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_that_no_gradient_reaches_are_no_matter(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 16), make(), nn.Linear(16, 10))
    assert flaw(step_of(model), batch()) == ""


def test_weights_that_have_diverged_are_not_the_arithmetics_fault() -> None:
    model = small()
    with torch.no_grad():
        model[0].weight[0] = math.nan  # type: ignore[index]
    assert flaw(step_of(model), batch()) == ""


class Smooth:
    """A loss that wants the gradient of the outputs by the inputs to be small."""

    @staticmethod
    def loss(model: nn.Module, batch: Any) -> Tensor:
        images = batch[0].detach().requires_grad_()
        outputs = model(images)
        (slope,) = torch.autograd.grad(outputs.sum(), images, create_graph=True)
        return nn.functional.cross_entropy(outputs, batch[1]) + slope.square().mean()

    measure = staticmethod(classification.measure)


def test_a_loss_that_differentiates_is_no_matter() -> None:
    assert flaw(replace(step_of(small()), objective=Smooth), batch()) == ""


class Counting(nn.Module):
    """A model that puts a new buffer in the old one's place."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, given: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return given


def test_looking_leaves_nothing_behind() -> None:
    model = small()
    model.append(Counting())  # type: ignore[operator]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert flaw(step_of(model), batch()) == ""
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(layer._forward_hooks for layer in model.modules())


def job(**changes: Scalar) -> Job:
    return Job(site="clinic", round=1, seed=3, mode=Mode.TRAIN, parameters={**PARAMETERS, **changes})


def task(model: str = "fedmt_flower.tasks.models:resnet18", **changes: Scalar) -> Task:
    return Task(
        name="cells",
        model=model,
        data="fedmt_flower.tasks.data:synthetic",
        parameters={**PARAMETERS, **changes},
    )


def test_what_is_learned_is_the_same_bit_for_bit_and_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    own, looked = task("fedmt_flower.tasks.models:mobilenet_v3_large"), list[str]()
    fast = {"precision": "bfloat16", "memory_format": "channels_last"}
    weights = initial_weights(own, 1)

    def trained(runtime: TaskRuntime) -> Any:
        return {name: value.copy() for name, value in runtime.run(job(**fast), weights).weights.items()}

    def looking(*given: Any) -> str:
        looked.append(flaw(*given))
        return looked[-1]

    monkeypatch.setattr(trainer, "flaw", looking)
    runtime = TaskRuntime(own, "cpu")
    first, second = trained(runtime), trained(runtime)
    assert looked == [""]
    TaskRuntime(own, "cpu").run(job(), weights)
    assert looked == [""]  # plain steps are not looked at
    monkeypatch.setattr(trainer, "flaw", lambda *_: "")
    unseen = trained(TaskRuntime(own, "cpu"))
    for name, value in unseen.items():
        assert (value == first[name]).all()
        assert (value == second[name]).all()


def test_a_task_that_would_learn_from_it_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    own = task("test_soundness:small", wrong="values")
    with pytest.raises(
        TaskError, match=r"site 'clinic', task 'cells': layer 4 computes outputs [45]\d% off"
    ) as error:
        TaskRuntime(own, "cpu").run(job(wrong="values", precision="bfloat16"), initial_weights(own, 1))
    assert "\n" not in str(error.value)
    TaskRuntime(own, "cpu").run(job(wrong="values"), initial_weights(own, 1))


@pytest.mark.gpu
@pytest.mark.timeout(280)
@pytest.mark.parametrize(("scheme", "share"), [("isolated", 25), ("static 60", 50), ("sharing", 100)])
def test_fast_steps_beside_others_have_shares_in_which_they_learn(
    home: Path, scheme: str, share: int
) -> None:
    names = ("R18", "M3", "S2", "R50")
    tasks = [synthetic_task(name, **fast_step(Backend.MPS)) for name in names]
    engine = connect(DeviceSettings(backend=Backend.MPS, idle_timeout_s=120))
    assert isinstance(engine, EngineClient)
    rounds = Rounds(engine, "soundness", tasks)
    for _ in range(3):
        # A layer that computes something else fails its task.
        report = rounds.run({task.name: 128 * 12 for task in tasks}, SCHEMES[scheme])
        assert {place.budget for place in report.plan.tasks} == {share}
        assert all(math.isfinite(done.train_metrics["train_loss"]) for done in report.tasks)
    engine.stop()
