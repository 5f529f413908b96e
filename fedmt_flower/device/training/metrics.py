"""What a user's train and evaluate may return, as metrics by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fedmt_flower.errors import TaskError

_FORMS = "a number (the loss), (loss, accuracy), (loss, metrics) or a mapping of numbers"


def read_metrics(task: str, function: str, returned: Any) -> dict[str, float]:
    """Read what `function`, ``train`` or ``evaluate``, returned.

    A number is the loss, a pair is loss and accuracy, or loss and a mapping. Training's loss and accuracy
    are called ``train_loss`` and ``train_accuracy``; training may also return nothing.

    Raises
    ------
    TaskError
        If it is none of these, or a value is not finite.
    """
    where = f"task {task!r}: {function} returned"
    prefix = "train_" if function == "train" else ""
    if returned is None and function == "train":
        return {}
    if isinstance(returned, (tuple, list)) and len(returned) == 2:
        loss, other = returned
        rest = other if isinstance(other, Mapping) else {f"{prefix}accuracy": other}
        values: Mapping[Any, Any] = {f"{prefix}loss": loss, **rest}
    elif isinstance(returned, Mapping):
        values = returned
    else:
        values = {f"{prefix}loss": returned}
    metrics = {}
    for name, value in values.items():
        try:
            metrics[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            got = f"{type(value).__name__} as {name}"
            raise TaskError(f"{where} {got}; expected {_FORMS}") from error
        if not math.isfinite(metrics[str(name)]):
            raise TaskError(
                f"{where} {name} {metrics[str(name)]}, which is not finite; a smaller lr may help"
            )
    return metrics
