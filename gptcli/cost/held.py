"""What one process of a layout holds, tensor by tensor, as `gpt train` divides them: `gpt train --dry-run` builds the processes and
compares."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.layout import Layout, layers_of_stage
from gptcli.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Divided:
    """A parameter, and what tensor parallelism makes of it."""

    rows: int
    columns: int
    by: int | None
    """The dimension that is divided, 0 or 1, or None."""
    added: bool = False
    """Each slice of the sequence adds its part to the gradient."""

    def piece(self, layout: Layout, slice_: int, shard: int) -> int:
        """Elements of a process: of its slice, the rows that are its shard; columns, where slices are uneven."""
        rows = chunk(self.rows, layout.tp, slice_) if self.by == 0 else self.rows
        columns = self.columns // layout.tp if self.by == 1 else self.columns
        if layout.tp > 1 and self.by == 0 and self.rows % (layout.tp * layout.shard):
            return rows * chunk(columns, layout.shard, shard)
        return chunk(rows, layout.shard, shard) * columns


def layer_tensors(config: ModelConfig) -> list[Divided]:
    """Of one layer, in the model's order."""
    C, F = config.d_model, config.d_ff
    norm = [Divided(C, 1, None, added=True)] * 2
    attention = [Divided(3 * C, C, 0), Divided(3 * C, 1, 0), Divided(C, C, 1), Divided(C, 1, None)]
    mlp = [Divided(F, C, 0), Divided(F, 1, 0), Divided(C, F, 1), Divided(C, 1, None)]
    return [*norm, *attention, *norm, *mlp]


def outer_tensors(config: ModelConfig, stages: int, stage: int) -> list[Divided]:
    """Of a stage, what stands outside of its layers."""
    table, first, last = Divided(config.vocab_size, config.d_model, 0), stage == 0, stage == stages - 1
    head = [] if first and config.tied else [table]
    positions, norm = Divided(config.n_ctx, config.d_model, None, added=True), Divided(config.d_model, 1, None, added=True)
    return ([table, positions] if first else []) + ([norm, norm, *head] if last else [])


def held(config: ModelConfig, layout: Layout, stage: int, slice_: int, shard: int, *, each: int = 1) -> int:
    """Parameters of the process at this place along pp, tp and shard, each counted from 0; its moments are twice as many. `each`: the
    stages of a process."""
    tensors = layer_tensors(config) * layers_of(config, layout.pp, stage, each) + outer_tensors(config, layout.pp, stage)
    return sum(t.piece(layout, slice_, shard) for t in tensors)


def layers_of(config: ModelConfig, pp: int, stage: int, each: int) -> int:
    """Layers of a process that holds `each` of the pipeline's stages, the first of them `stage`."""
    return sum(layers_of_stage(config.n_layer, each * pp, index) for index in range(stage, each * pp, pp))


def chunk(n: int, parts: int, index: int) -> int:
    """The size of part `index` of `n`, as torch divides: all equal but the last ones, which may be smaller or empty."""
    size = -(-n // parts)
    return max(0, min(size, n - index * size))
