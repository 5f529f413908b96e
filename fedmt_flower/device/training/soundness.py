"""Whether layers compute, in a task's precision and memory format, what they compute in float32.

cuBLAS on an H100 leaves parts of products in bfloat16 unwritten, without an error, if a process may use some
numbers of its multiprocessors (see `fedmt_flower.device.backends.mps_seats.sound_share`). Budgets avoid
those; of other GPUs, and other versions, nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from fedmt_flower.device.training.batches import Batch
from fedmt_flower.device.training.convolutions import without_cudnn
from fedmt_flower.device.training.training_step import TrainingStep

BOUND: Final = 0.03
"""‖difference‖ / ‖value in float32‖ that a layer may have: bfloat16, with 8 bits, makes 0.004 of it."""

_LAYERS: Final = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def flaw(step: TrainingStep, batch: Batch) -> str:
    """What the first layer that is not sound gets wrong, with what to do; empty if all are.

    The model computes its loss on `batch` once, as in a step, and each layer its output and its gradients
    twice more, as in a step and in float32, on random input of the kind that it was given: kernels are chosen
    by that, and sums that nearly cancel, as in some data, would look wrong. Of layers that are alike in all
    but their weights the first is looked at. Nothing is left of it but the state of the random generators.
    """
    found: list[str] = []
    seen: set[object] = set()
    model, rules = step.model, step.rules

    def look(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        match inputs, output:
            # A user's own kind of layer may take and give something else.
            case (Tensor() as given,), Tensor() if given.is_floating_point() and not found:
                kind = type(layer), layer.extra_repr(), given.shape
                if kind in seen:
                    return
                seen.add(kind)
                wrong = _deviations(layer, torch.randn_like(given))
                found.extend(f"layer {name} computes {what}" for what in wrong)

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, _LAYERS)]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in layers]
    try:
        step.loss_of(batch)
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                setattr(module, name, buffer)  # a model may have put another in its place
                buffer.copy_(before)
    if not found:
        return ""
    device, place = step.loss.device, ""
    if device.type == "cuda":
        count = torch.cuda.get_device_properties(device).multi_processor_count
        place = f" with {count} multiprocessors"
    return (
        f"{found[0]} in {rules.precision}, {rules.memory_format}{place}; "
        "set precision: float32 and memory_format: contiguous"
    )


def _deviations(layer: nn.Module, given: Tensor) -> Iterator[str]:
    """What `layer` gets wrong on the input `given` in the present arithmetic; no hooks are called."""
    if not all(weight.isfinite().all() for weight in layer.parameters()):
        return  # what has diverged does so in any arithmetic
    learning = {name: weight for name, weight in layer.named_parameters() if weight.requires_grad}
    exact = {name: _exact(weight) for name, weight in layer.named_parameters()}
    theirs, ours = given.detach().requires_grad_(), _exact(given)
    with torch.enable_grad():
        torch.manual_seed(0)  # a user's layer may draw noise, and must draw the same below
        output = layer.forward(theirs)
        direction = torch.randn_like(output)
        # Some weights are none of the forward pass's: a hook that is not called here makes one of others.
        gradients = torch.autograd.grad(output, [theirs, *learning.values()], direction, allow_unused=True)
        # By torch's few kernels: each of cuDNN's many is loaded when first used.
        with torch.autocast(given.device.type, enabled=False), without_cudnn():
            placed = {f"layer.{name}": weight for name, weight in exact.items()}
            torch.manual_seed(0)
            expected = torch.func.functional_call(_Bare(layer), placed, (ours,))
            sources = [ours, *(exact[name] for name in learning)]
            goals = torch.autograd.grad(expected, sources, direction.to(expected.dtype), allow_unused=True)
    names = ["outputs", "gradients of its input", *(f"gradients of its {name}" for name in learning)]
    for name, value, goal in zip(names, (output, *gradients), (expected, *goals), strict=True):
        if goal is None:
            continue
        goal = goal.detach()
        value = torch.zeros_like(goal) if value is None else value.detach().to(goal.dtype)
        size, difference = float(goal.norm()), float((value - goal).norm())
        if difference <= BOUND * size:
            continue
        yield f"{name} " + (
            f"{difference / size if size else math.inf:.0%} off those in float32"
            if math.isfinite(difference)
            else "that are not finite"
        )


class _Bare(nn.Module):
    """A layer whose hooks are not called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, given: Tensor) -> Tensor:
        """Compute what the layer does."""
        output: Tensor = self.layer.forward(given)
        return output


def _exact(tensor: Tensor) -> Tensor:
    """A copy in float32, in the order that is torch's own, to differentiate by."""
    return tensor.detach().to(torch.float32, copy=True).contiguous().requires_grad_()
