"""Which steps a CUDA graph can stand for: what speaks against one, and what one has built in."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedmt_flower.device.training.batches import Data, Selection, is_tensors
from fedmt_flower.device.training.numerics import float32
from fedmt_flower.device.training.recording import Recorder
from fedmt_flower.device.training.training_step import TrainingStep

Signature = tuple[object, ...]

_FEWEST = 3
"""Whole batches of a round: the first and the second step are taken kernel by kernel."""


def obstacle(
    recorder: Recorder,
    device: torch.device,
    data: Data,
    optimizer: torch.optim.Optimizer,
    whole_batches: int,
) -> str:
    """Why a round takes no graph, as far as is known before its first step; empty if it may take one."""
    if reason := recorder.obstacle(device):
        return reason
    if not is_tensors(data):
        return f"its data is a {type(data).__name__}, not tensors in memory"
    if any(part.device != device for part in data):
        return "its data does not fit on the device"
    if whole_batches < _FEWEST:
        return f"a round of {whole_batches} whole batches is too short"
    return _uncapturable(optimizer)


def make_capturable(optimizer: torch.optim.Optimizer) -> None:
    """Have `optimizer` keep on the device whatever changes from step to step, and from round to round."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        takes_tensor = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW) or group.get("fused")
        if takes_tensor and group["params"]:
            device = group["params"][0].device
            # A clone, since a loaded one is a view of all that was loaded, copied with it.
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device).clone()
        for weight in group["params"]:
            # A process that took plain steps only may have counted them on the host.
            if "step" in (held := optimizer.state.get(weight, {})):
                held["step"] = torch.as_tensor(held["step"], dtype=torch.float32, device=weight.device)


def signature_of(step: TrainingStep, selection: Selection) -> Signature:
    """What a graph has built in: two steps of one signature differ in the values of tensors alone."""
    settings = tuple(
        tuple((name, repr(value)) for name, value in sorted(group.items()) if not _is_data(name, value))
        for group in step.optimizer.param_groups
    )
    return (
        id(step.model),
        tuple(_addresses(step.model)),
        tuple(weight.data_ptr() for weight in step.weights),
        id(step.objective),
        type(step.optimizer),
        settings,
        tuple((tuple(tensor.shape), tensor.dtype) for tensor in step.tensors()),
        step.mu,
        step.rules,
        tuple((len(selection.index), *tensor.shape[1:], tensor.dtype) for tensor in selection.tensors),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        float32(),
    )


@dataclass(frozen=True, slots=True)
class HostState:
    """What a step may change on the host, where no graph would change it."""

    generators: tuple[object, ...]
    attributes: tuple[tuple[str, str, object], ...]
    addresses: tuple[int, ...]


def host_state(step: TrainingStep) -> HostState:
    """The host's side of `step` at this moment."""
    legacy = np.random.get_state(legacy=False)
    return HostState(
        generators=(
            torch.get_rng_state().numpy().tobytes(),
            random.getstate(),
            repr(legacy["state"]["pos"]),
            legacy["state"]["key"].tobytes(),
        ),
        attributes=tuple(
            (name, key, value)
            for name, module in step.model.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str))
        ),
        addresses=(*_addresses(step.model), *(tensor.data_ptr() for tensor in step.tensors())),
    )


def unrepeatable(before: HostState, after: HostState) -> str:
    """What the step between two moments did that no graph would repeat; empty if nothing."""
    if before.generators != after.generators:
        return "each step draws from a generator of the host, and a graph would repeat one draw"
    changed = set(after.attributes) - set(before.attributes)
    if changed or len(before.attributes) != len(after.attributes):
        module, key = min((name, key) for name, key, _ in changed) if changed else ("", "an attribute")
        return f"each step changes {'.'.join(filter(None, (module, key)))} of the model on the host"
    if before.addresses != after.addresses:
        return "each step puts new tensors in the place of the model's or the optimizer's"
    return ""


def _uncapturable(optimizer: torch.optim.Optimizer) -> str:
    if type(optimizer) is torch.optim.SGD or all("capturable" in group for group in optimizer.param_groups):
        return ""
    kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"
    return f"its optimizer {kind} has no `capturable`: part of its state may lie on the host"


def _addresses(model: nn.Module) -> Iterator[int]:
    yield from (tensor.data_ptr() for tensor in model.parameters())
    yield from (tensor.data_ptr() for tensor in model.buffers())


def _is_data(name: str, value: object) -> bool:
    return name == "params" or isinstance(value, Tensor)
