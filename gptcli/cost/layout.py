"""Distribution of a model over processes: replicas, shards, tensor parallelism, pipeline stages; and
the parameters of each process, tensor by tensor, as `gpt train` shards them.

The product of the four axes is the number of processes. `gpt train --dry-run` builds the processes
and compares their parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gptcli.cost.memory import SCHEDULES, PipelineSchedule
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted

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
                f"{part.strip()!r} is not an axis with its size",
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
    """Raise UsageError if the layout cannot divide the model's heads or layers."""
    if (problem := _undivided(layout, config)) is not None:
        raise problem


def check_division(
    layout: Layout,
    config: ModelConfig,
    sequences: int,
    *,
    schedule: PipelineSchedule = "1f1b",
    precision: str = "bf16",
) -> None:
    """Raise UsageError if `gpt train` cannot run a batch of `sequences` on the layout anywhere."""
    if (problem := division_problem(layout, config, sequences, schedule, precision)) is not None:
        raise problem


def division_problem(
    layout: Layout,
    config: ModelConfig,
    sequences: int,
    schedule: PipelineSchedule = "1f1b",
    precision: str = "bf16",
) -> UsageError | None:
    """Return why `gpt train` cannot run the layout, or None; its check and that of the planner."""
    if (problem := _undivided(layout, config)) is not None:
        return problem
    if config.n_ctx % layout.tp:
        return _refusal(
            f"tp={layout.tp} does not divide a context of {config.n_ctx}",
            "layout_does_not_divide",
            "tp also divides the sequence: make tp a divisor",
        )
    if layout.tp > 1 and config.d_model % (layout.tp * layout.shard):
        return _refusal(
            f"{layout} does not divide a width of {config.d_model}",
            "layout_does_not_divide",
            "with tp, make tp times shard divide d_model",
        )
    if (stages := SCHEDULES[schedule] * layout.pp) > config.n_layer and layout.pp > 1:
        return UsageError(
            f"{schedule} makes {stages} stages of pp={layout.pp}, "
            f"more than the model's {counted(config.n_layer, 'layer')}",
            field="pipeline_schedule",
            code="too_many_stages",
            hint="1f1b makes half as many",
        )
    if layout.replicas > sequences:
        return _refusal(
            f"{layout} reads {counted(layout.replicas, 'sequence')} at a time, "
            f"but a batch is {counted(sequences, 'sequence')}",
            "batch_too_small_for_layout",
            "raise {option:batch_tokens}, or use fewer processes",
        )
    if layout.replicas * layout.pp > sequences:
        return _refusal(
            f"{layout} keeps {layout.pp} micro-batches of {layout.replicas} replicas at work, "
            f"but a batch is {counted(sequences, 'sequence')}",
            "batch_too_small_for_layout",
            "raise {option:batch_tokens}, or use fewer stages",
        )
    if precision == "fp8" and layout.tp > 1:
        return UsageError(
            "fp8 does not work with tp",
            where="{option:precision} fp8",
            code="precision_without_layout",
            hint="{option:precision} bf16 runs anywhere",
        )
    return None


def _undivided(layout: Layout, config: ModelConfig) -> UsageError | None:
    if config.n_head % layout.tp:
        return _refusal(
            f"tp={layout.tp} does not divide {counted(config.n_head, 'head')}",
            "layout_does_not_divide",
            f"tp can be {', '.join(map(str, divisors(config.n_head)))}",
        )
    if layout.pp > config.n_layer:
        return _refusal(
            f"pp={layout.pp} is more stages than the model's {counted(config.n_layer, 'layer')}",
            "too_many_stages",
            f"pp is at most {config.n_layer}",
        )
    return None


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, from 1 on."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _refusal(what: str, code: str, hint: str) -> UsageError:
    return UsageError(what, field="layout", code=code, hint=hint)


def layers_of_stage(n_layer: int, pp: int, stage: int) -> int:
    """Return the number of layers of a pipeline stage: as even as possible, the first stages take
    one more.
    """
    return n_layer // pp + (stage < n_layer % pp)


class ShardedTensor(NamedTuple):
    """A parameter of shape (rows, columns), and how tensor parallelism shards it."""

    rows: int
    columns: int
    tp_dim: int | None
    """The dimension that is sharded, 0 or 1; None for a replicated tensor."""
    partial_grad: bool = False
    """Each process computes the gradient of its part of the sequence only; the parts are summed."""

    def local_numel(self, layout: Layout, tp_rank: int, shard_rank: int) -> int:
        """Return the number of elements on a process.

        FSDP shards the rows of its tensor-parallel part, or the columns if those parts are uneven.
        """
        rows = chunk_size(self.rows, layout.tp, tp_rank) if self.tp_dim == 0 else self.rows
        columns = self.columns // layout.tp if self.tp_dim == 1 else self.columns
        if layout.tp > 1 and self.tp_dim == 0 and self.rows % (layout.tp * layout.shard):
            return rows * chunk_size(columns, layout.shard, shard_rank)
        return chunk_size(rows, layout.shard, shard_rank) * columns


def layer_tensors(config: ModelConfig) -> list[ShardedTensor]:
    """Return the tensors of one layer, in the model's order."""
    C, F = config.d_model, config.d_ff
    norm = [ShardedTensor(C, 1, None, partial_grad=True)] * 2
    attention = [
        ShardedTensor(3 * C, C, 0), ShardedTensor(3 * C, 1, 0), ShardedTensor(C, C, 1), ShardedTensor(C, 1, None)
    ]  # fmt: skip
    mlp = [
        ShardedTensor(F, C, 0), ShardedTensor(F, 1, 0), ShardedTensor(C, F, 1), ShardedTensor(C, 1, None)
    ]  # fmt: skip
    return [*norm, *attention, *norm, *mlp]


def outer_tensors(config: ModelConfig, stages: int, stage: int) -> list[ShardedTensor]:
    """Return the tensors of a stage that belong to no layer: embeddings, final norm and output
    head.
    """
    first, last = stage == 0, stage == stages - 1
    table = ShardedTensor(config.vocab_size, config.d_model, 0)
    positions = ShardedTensor(config.n_ctx, config.d_model, None, partial_grad=True)
    norm = ShardedTensor(config.d_model, 1, None, partial_grad=True)
    head = [] if first and config.tied else [table]
    # a post-norm model has no final norm
    final = [norm, norm] if config.norm == "pre" else []
    return ([table, positions] if first else []) + ([*final, *head] if last else [])


@lru_cache(maxsize=4096)  # a search for layouts repeats its calls
def rank_parameters(
    config: ModelConfig, layout: Layout, stage: int, tp_rank: int, shard_rank: int, *, each: int = 1
) -> int:
    """Return the parameters of the process at these ranks along pp, tp and shard, each counted from
    0.

    Its optimizer moments are twice as many. `each` is the number of pipeline stages per process.
    """
    layer, outer = (
        sum(tensor.local_numel(layout, tp_rank, shard_rank) for tensor in tensors)
        for tensors in (layer_tensors(config), outer_tensors(config, layout.pp, stage))
    )
    return layers_of(config, layout.pp, stage, each) * layer + outer


def layers_of(config: ModelConfig, pp: int, stage: int, each: int) -> int:
    """Return the layers of a process with `each` pipeline stages, the first of which is `stage`."""
    return sum(
        layers_of_stage(config.n_layer, each * pp, index) for index in range(stage, each * pp, pp)
    )


def chunk_size(n: int, parts: int, index: int) -> int:
    """Return the size of chunk `index` of `n`, as torch.chunk divides.

    All chunks are equal but the last ones, which may be smaller or empty.
    """
    size = -(-n // parts)
    return max(0, min(size, n - index * size))
