"""Parameters that one process of a layout holds, tensor by tensor, as `gpt train` shards them.

`gpt train --dry-run` builds the processes and compares.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from gptcli.cost.layout import Layout, layers_of_stage
from gptcli.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class ShardedTensor:
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
    return ([table, positions] if first else []) + ([norm, norm, *head] if last else [])


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
