"""Distribution of a model over processes: replicas, shards, tensor parallelism, pipeline stages.

The product of the four is the number of processes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig

EXAMPLE = {"dp": 2, "shard": 4, "tp": 2, "pp": 2}  # example layout for messages
AXES = tuple(EXAMPLE)


@dataclass(frozen=True, slots=True)
class Layout:
    """Processes along each axis."""

    dp: int = 1
    """Replicas: each holds all parameters."""
    shard: int = 1
    """Processes that share parameters, gradients and optimizer state, gathered layer by layer
    (FSDP, ZeRO stage 3).
    """
    tp: int = 1
    """Processes that share every matrix product, its inputs and outputs (Megatron, with sequence
    parallelism).
    """
    pp: int = 1
    """Pipeline stages of consecutive layers."""

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.dp * self.shard * self.tp * self.pp

    @property
    def replicas(self) -> int:
        """Number of groups of processes that read different sequences."""
        return self.dp * self.shard

    def __str__(self) -> str:
        return (
            ",".join(f"{axis}={getattr(self, axis)}" for axis in AXES if getattr(self, axis) > 1)
            or "dp=1"
        )


def parse_layout(text: str, axes: Sequence[str] = AXES) -> Layout:
    """Return the layout that a text such as "dp=2,shard=4,tp=2,pp=2" describes, with axes of `axes`
    only.

    Raises UsageError.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d{1,9})\s*", part)
        if match is None or int(match[2]) < 1:
            example = ",".join(f"{axis}={EXAMPLE[axis]}" for axis in axes)
            raise UsageError(
                f"{part.strip()!r} is no part of a layout",
                field="layout",
                code="malformed_layout",
                hint=f"write it like {example}",
            )
        if match[1] not in axes:
            raise UsageError(
                f"unknown axis {match[1]!r}",
                field="layout",
                code="unknown_axis",
                hint=nearest(match[1], axes),
            )
        if match[1] in sizes:
            raise UsageError(
                f"{match[1]} is given twice",
                field="layout",
                code="repeated_axis",
                hint="name each axis once",
            )
        sizes[match[1]] = int(match[2])
    return Layout(**sizes)


def check_layout(layout: Layout, config: ModelConfig) -> None:
    """Raise UsageError if the layout cannot divide the model."""
    if config.n_head % layout.tp:
        divisors = [str(n) for n in range(1, config.n_head + 1) if config.n_head % n == 0]
        raise UsageError(
            f"tp={layout.tp} does not divide {config.n_head} heads",
            field="layout",
            code="layout_does_not_divide",
            hint=f"tp can be {', '.join(divisors)}",
        )
    if layout.pp > config.n_layer:
        raise UsageError(
            f"pp={layout.pp} is more stages than the model's {config.n_layer} layers",
            field="layout",
            code="too_many_stages",
            hint=f"pp is at most {config.n_layer}",
        )


def layers_of_stage(n_layer: int, pp: int, stage: int) -> int:
    """Return the number of layers of a pipeline stage: as even as possible, the first stages take
    one more.
    """
    return n_layer // pp + (stage < n_layer % pp)
