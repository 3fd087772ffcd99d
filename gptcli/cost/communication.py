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
    """Bytes of collectives between tensor-parallel ranks."""
    shard: int = 0
    """Bytes of FSDP's all-gathers and reduce-scatters."""
    dp: int = 0
    """Bytes of the all-reduce between replicas."""
    pp: int = 0
    """Bytes sent to other stages: activations forward, their gradients backward, and those of a
    tied embedding.
    """


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
    # FSDP pads every shard to the size of the first
    of_layer, of_outer = (
        shard * sum(t.local_numel(layout, 0, 0) for t in part) for part in (layer, outer)
    )
    mine = layers * of_layer + of_outer

    # stages and replicas reduce gradients once, after the last micro-batch
    exchanges = m if shard > 1 and pp == 1 else 1
    by_tp = by_shard = by_dp = by_pp = 0
    if tp > 1:
        # A branch all-gathers its input and reduce-scatters its output, and the reverse for their
        # gradients; so does the head; those of the embedding are in fp32. The loss all-reduces
        # two sums and one maximum per position.
        by_tp = m * (
            8 * layers * e * stream
            + first * 2 * FP32 * stream
            + last * (2 * e * stream + 3 * FP32 * positions)
        )
        partial = [
            sum(t.rows * t.columns for t in part if t.partial_grad) for part in (layer, outer)
        ]
        # bytes per element of a layer's gradients, before accumulation
        width = e if shard > 1 and pp == 1 else FP32
        by_tp += exchanges * (width * layers * partial[0] + FP32 * partial[1])
    # layers are gathered for forward and backward, the rest once in fp32; gradients are in fp32
    if shard > 1:
        by_shard = m * (2 * layers * e * of_layer + FP32 * of_outer) + exchanges * FP32 * mine
    if layout.dp > 1:
        by_dp = FP32 * mine // shard
    if pp > 1:  # a stage sends its output forward and the gradient of its input back
        by_pp = m * (2 * each - first - last) * FP32 * stream // tp
        if config.tied and (first or last):
            by_pp += FP32 * ShardedTensor(config.vocab_size, config.d_model, 0).local_numel(
                layout, 0, 0
            )
    return StepTraffic(tp=by_tp, shard=by_shard, dp=by_dp, pp=by_pp)
