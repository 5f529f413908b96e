"""How a stepped task takes its training steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from fedmt_flower.errors import ConfigError


class StepChoice(StrEnum):
    """Whether a task's step is captured as a CUDA graph."""

    AUTO = "auto"
    """Where that is possible; else kernel by kernel, and the round's report says why."""
    EAGER = "eager"
    """Never: kernel by kernel."""
    GRAPH = "graph"
    """Always: a task that cannot fails."""


class Precision(StrEnum):
    """The arithmetic of the forward and backward pass; weights and their updates stay what they are."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    """torch's autocast: products and convolutions in bfloat16."""


class MemoryFormat(StrEnum):
    """How images and the weights of convolutions lie in memory."""

    CONTIGUOUS = "contiguous"
    """As the model and the data have them."""
    CHANNELS_LAST = "channels_last"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRules:
    """Three hyperparameters of every task that the package's own loop trains: see the enumerations."""

    step: StepChoice = StepChoice.AUTO
    precision: Precision = Precision.FLOAT32
    memory_format: MemoryFormat = MemoryFormat.CONTIGUOUS

    @property
    def is_reduced(self) -> bool:
        """Whether products and convolutions have less than 32 bits."""
        return self.precision is not Precision.FLOAT32

    @property
    def is_plain(self) -> bool:
        """Whether steps compute as torch does by itself, one by one or as a graph."""
        return not self.is_reduced and self.memory_format is MemoryFormat.CONTIGUOUS

    @classmethod
    def of(cls, parameters: Mapping[str, object]) -> Self:
        """The rules among a task's hyperparameters, where ``memory-format`` may have its dash.

        Raises
        ------
        ConfigError
            If one has a value that it cannot have.
        """
        known = {name.replace("-", "_"): value for name, value in parameters.items()}
        kinds = {"step": StepChoice, "precision": Precision, "memory_format": MemoryFormat}
        problems = [
            f"{name}: got {known[name]!r}, expected one of {', '.join(kind)}"
            for name, kind in kinds.items()
            if name in known and known[name] not in list(kind)
        ]
        if problems:
            raise ConfigError(*problems)
        return cls(
            step=StepChoice(str(known.get("step", StepChoice.AUTO))),
            precision=Precision(str(known.get("precision", Precision.FLOAT32))),
            memory_format=MemoryFormat(str(known.get("memory_format", MemoryFormat.CONTIGUOUS))),
        )
