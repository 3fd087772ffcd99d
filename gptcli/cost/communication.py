"""Count the bytes that one process of a layout communicates in a step of `gpt train`.

`gpt train --dry-run` builds the processes and compares. A collective counts the bytes of the whole
tensor that is gathered or summed, a message its own.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import ELEMENT_BYTES, StepConfig
from gptcli.cost.sharding import ShardedTensor, layer_tensors, layers_of, outer_tensors
from gptcli.model.config import ModelConfig

FP32 = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTraffic:
    """Bytes of a step by the mesh axis over which they are sent."""

    tp: int = 0
    shard: int = 0
    dp: int = 0
    pp: int = 0
    """Sent: activations forwards, their gradients backwards, and those of a tied table."""


def step_traffic(
    config: ModelConfig, layout: Layout, work: StepConfig, stage: int, *, each: int = 1
) -> StepTraffic:
    """Return the bytes of one process in a step without recomputation.

    How often FSDP gathers the shards of a stage depends on the pipeline schedule, which may keep
    them: they are counted for every pass.
    """
    tp, shard, pp, m = layout.tp, layout.shard, layout.pp, work.micro_batches
    layers, first, last = layers_of(config, pp, stage, each), stage == 0, stage == pp - 1
    positions = work.micro_batch * config.n_ctx
    e, stream = ELEMENT_BYTES[work.precision], positions * config.d_model
    layer, outer = layer_tensors(config), outer_tensors(config, pp, stage)
    # FSDP fills up shards to be as large as the first
    of_layer, of_outer = (
        shard * sum(t.local_numel(layout, 0, 0) for t in part) for part in (layer, outer)
    )
    mine = layers * of_layer + of_outer

    # of gradients: stages, and replicas, keep them whole until the last micro-batch
    exchanges = m if shard > 1 and pp == 1 else 1
    by_tp = by_shard = by_dp = by_pp = 0
    if tp > 1:
        # A branch gathers what it reads and scatters what it adds, and the other way round for
        # their gradients; so does the head; the embedding's are fp32. Of each position the loss
        # adds up two numbers and compares one.
        by_tp = m * (
            8 * layers * e * stream
            + first * 2 * FP32 * stream
            + last * (2 * e * stream + 3 * FP32 * positions)
        )
        partial = [
            sum(t.rows * t.columns for t in part if t.partial_grad) for part in (layer, outer)
        ]
        # of a layer's gradients, before they have been added to others
        width = e if shard > 1 and pp == 1 else FP32
        by_tp += exchanges * (width * layers * partial[0] + FP32 * partial[1])
    # a layer forwards and backwards, what is outside once, as it is; gradients are added up in fp32
    if shard > 1:
        by_shard = m * (2 * layers * e * of_layer + FP32 * of_outer) + exchanges * FP32 * mine
    if layout.dp > 1:
        by_dp = FP32 * mine // shard
    if pp > 1:  # a stage sends on what it made, and back what it got the gradient of
        by_pp = m * (2 * each - first - last) * FP32 * stream // tp
        if config.tied and (first or last):
            by_pp += FP32 * ShardedTensor(config.vocab_size, config.d_model, 0).local_numel(
                layout, 0, 0
            )
    return StepTraffic(tp=by_tp, shard=by_shard, dp=by_dp, pp=by_pp)
