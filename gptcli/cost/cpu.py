"""CPUs as devices: the memory of a training process, and the speed of training.

A process on a CPU holds more than the tensors that `rank_memory` counts. The rest was measured in
runs of `gpt train` with 0.1M to 124M parameters (tests/benchmarks/LOG.md):

    libraries    Python and PyTorch, and its compiler if the run is compiled
    checkpoint   the largest matrix, mapped from the newest checkpoint's file beside the next step
                 for the copy in transformers' format. The checkpoint itself needs nothing: it is
                 written between two steps, from the tensors
    heap         freed blocks too small for the next tensor: C libraries do not move what is in use

The speed is a share of the rate of a single matrix product, which the trainer measures in
milliseconds before its first step (`gptcli.trainer.machine`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from gptcli.cost.hardware import Gpu
from gptcli.cost.layout import Layout, layers_of_stage
from gptcli.cost.rank_memory import (
    ELEMENT_BYTES,
    StepConfig,
    layer_parameters,
    rank_memory,
    saved_by_layer,
)
from gptcli.model.config import ModelConfig

NAME = "cpu"
"""Name of this machine's processor as a device of `gpt cost`."""
FAMILY = "cpu"
PIECE = 3200  # vocabulary entries per product of the head: gptcli.model.loss
# bytes of a process that has imported and initialized everything, and of what the heap still gains
# after the first steps
LIBRARIES = 470_000_000
TOKENIZER = 1_100  # bytes of a tokenizer per entry of its vocabulary
COMPILER = 90_000_000  # bytes of torch.compile's libraries
CONNECTIONS = 10_000_000  # bytes of a process of several: threads and buffers
SHARDED_BYTES = 35_000_000  # more of a process with sharded weights
# holes that gathered weights and their gradients leave in the heap of a sharded run after some
# hundred steps, by gathered bytes of its layers; bytes of a layer that leave none; and the most
# that was seen, with layers of up to 14 MB: larger models have not been measured
HOLES_OF_SHARDS = 8
MIN_GATHERED_BYTES = 2_400_000
MAX_HOLES_BYTES = 330_000_000
# share of the tensors of a step that are freed and found again only in part
HEAP = 0.30
# the same share with several micro-batches: the gradients of earlier ones, which stay, divide the
# freed blocks
HEAP_OF_SEVERAL = 0.45
# with full recomputation the input of each layer stays between the blocks of its forward pass:
# widths of them that no later layer uses
HOLES_OF_LAYER = 8
# share of the rate of a single matrix product that a training step on a CPU reaches: low, high
UTILISATION = (0.15, 0.75)
STEP_SECONDS = (0.003, 0.03)  # constant part of a step on a CPU: low, high
MICRO_BATCH_TOKENS = 4096  # more tokens at a time gain no speed


class CpuMemory(NamedTuple):
    """Peak bytes of a training process on a CPU by what they are for."""

    tensors: int
    """Tensors of a step, as `rank_memory` counts them, and the average of the weights."""
    checkpoint: int
    """Pages of the newest checkpoint that are read while the next step runs."""
    heap: int
    """Freed memory that no other tensor fits into."""
    libraries: int
    """Python, PyTorch, the tokenizer and connections to other processes."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.tensors + self.checkpoint + self.heap + self.libraries


def on_cpu(work: StepConfig, config: ModelConfig, *, has_kernels: bool) -> StepConfig:
    """Return a step as a CPU computes it; `has_kernels` if the kernels in C can be built."""
    kernel = has_kernels and work.precision == "bf16"
    fused = config.dropout == 0
    return replace(work, piece=PIECE, in_place=True, fused=fused, head_kernel=kernel)


def cpu_memory(
    config: ModelConfig,
    layout: Layout,
    work: StepConfig,
    *,
    average_bytes: int = 0,
    fewer_moments: int = 0,
    compiled: bool = False,
) -> CpuMemory:
    """Return the memory of the fullest process of a run whose step is `on_cpu`.

    `average_bytes` are those of the weights' moving average; the optimizer is AdamW without
    `fewer_moments` of its numbers.
    """
    found = rank_memory(config, layout, work)
    temporary = found.activations + found.logits + found.workspace
    extra = average_bytes - 4 * fewer_moments
    several = work.micro_batches > 1
    heap = (HEAP_OF_SEVERAL if several else HEAP) * temporary
    if work.recompute == "full":
        stream = ELEMENT_BYTES[work.precision] * work.micro_batch * config.n_ctx * config.d_model
        heap += HOLES_OF_LAYER * stream * config.n_layer / (layout.pp * layout.tp)
    # what a layer frees lies between what it keeps: only the first gradients of a step fit there
    if work.recompute == "selective" and several:
        _, again = saved_by_layer(
            config, layout.tp, work.micro_batch, work.precision, work.recompute, fused=work.fused
        )
        heap += again * layers_of_stage(config.n_layer, layout.pp, 0)
    if layout.shard > 1:
        gathered = ELEMENT_BYTES[work.precision] * layer_parameters(config, layout.tp)
        layers = layers_of_stage(config.n_layer, layout.pp, 0)
        holes = HOLES_OF_SHARDS * layers * max(0, gathered - MIN_GATHERED_BYTES)
        heap += SHARDED_BYTES + min(holes, MAX_HOLES_BYTES)
    return CpuMemory(
        tensors=found.total + extra,
        checkpoint=4 * config.vocab_size * config.d_model,
        heap=round(heap),
        libraries=LIBRARIES
        + TOKENIZER * config.vocab_size
        + COMPILER * compiled
        + CONNECTIONS * (layout.processes > 1),
    )


def cpu_device(cores: int, rate: float, bandwidth: float, memory_bytes: int, name: str = "") -> Gpu:
    """Return this machine's processor as a row of the hardware table.

    `rate` is the measured FLOP/s of a single matrix product, which takes the place of a peak, and
    `bandwidth` that of a copy in bytes per second.
    """
    what = f"{name or 'this processor'}, {cores} core{'s' * (cores != 1)}"
    return Gpu(
        name=NAME,
        aliases=(),
        family=FAMILY,
        device_names=(),
        peak_flops=rate,
        fp32_flops=rate,
        bf16=True,
        memory_bytes=memory_bytes,
        bandwidth=bandwidth,
        fp8_flops=None,
        link=None,
        network=None,
        watts=None,
        source=f"{what}: a matrix product measured now",
        url="",
        date="",
    )


def seconds_per_token(rate: float, flops: float, batch_tokens: int) -> tuple[float, float]:
    """Return the low and high seconds of a token of `flops` on a CPU, in steps of `batch_tokens`.

    `rate` is the FLOP/s of a single matrix product.
    """
    low, high = UTILISATION
    least, most = STEP_SECONDS
    return flops / (high * rate) + least / batch_tokens, flops / (low * rate) + most / batch_tokens
