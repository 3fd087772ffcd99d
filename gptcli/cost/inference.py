"""Inference: compute-bound prefill of a prompt and memory-bound decoding.

    prefill     2·N·T + 4·C·T·keys    FLOPs of a prompt of T tokens, keys per query averaged, summed over layers
    decode      2·N + 4·C·keys        FLOPs of the last token of a full context, which reads every weight, key and value:
                2·N + 2·2·L·C·T       bytes in 16 bits; divided by the memory bandwidth, a bound on the speed of one sequence

These are hardware limits: no program is faster, and a good one reaches 60 to 80 % of the bandwidth.

`serving` predicts what such a program reaches for a batch of sequences, each of a prompt and an
output: every step reads the weights once and the cache of every sequence, and computes one token
for each. BANDWIDTH and PRODUCTS are the shares of the peak that it reaches.

The GPUs of a replica divide its attention heads evenly (tensor parallelism), as those of the trainer
do: 7 GPUs do not hold a model of 96 heads. Replicas divide the sequences.
"""

from __future__ import annotations

from typing import NamedTuple

from gptcli.cost.flops import mean_keys
from gptcli.cost.hardware import Gpu, Precision, peak_flops
from gptcli.cost.layout import divisors
from gptcli.cost.memory import WEIGHT_BYTES, kv_cache_per_token
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted, in_bytes

# gpt-fast (PyTorch, 2023): Llama 7B on an A100 of 2,039 GB/s, 104.9 tokens/s in bf16, which reads
# 1,414 GB/s; https://github.com/meta-pytorch/gpt-fast
BANDWIDTH = 0.69
PRODUCTS = 0.6  # of a prompt's products: an assumption
SERVED_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}  # per weight


class Inference(NamedTuple):
    """One sequence of a full context in 16 bits. Figures of the GPU are None if no GPU is named, or as
    many as there are heads do not hold the model.
    """

    prefill_flops: float
    decode_flops: float
    """FLOPs of the last token of the context."""
    decode_bytes: int
    """Bytes read for that token."""
    gpus: int | None
    """Smallest number of GPUs that divides the heads and holds the weights and the cache."""
    prefill_seconds: float | None
    """Lower bound: all GPUs at their peak."""
    tokens_per_second: float | None
    """Upper bound: all GPUs at their memory bandwidth."""


def inference(config: ModelConfig, gpu: Gpu | None) -> Inference:
    """Return FLOPs, bytes and speed limits of running a model on one full context."""
    N, C, T, layers = config.parameters, config.d_model, config.n_ctx, range(config.n_layer)
    prefill = 2.0 * N * T + 4.0 * C * T * sum(
        mean_keys(T, config.band_of(layer)) for layer in layers
    )
    decode = 2.0 * N + 4.0 * C * sum(min(T, config.band_of(layer) or T) for layer in layers)
    n_bytes = WEIGHT_BYTES["16bit"] * N + kv_cache_per_token(config) * T
    gpus = None if gpu is None else _gpus_that_hold(n_bytes, config.n_head, gpu)
    return Inference(
        prefill_flops=prefill, decode_flops=decode, decode_bytes=n_bytes, gpus=gpus,
        prefill_seconds=None if gpu is None or gpus is None else prefill / (gpus * gpu.peak_flops),
        tokens_per_second=None if gpu is None or gpus is None else gpus * gpu.bandwidth / n_bytes,
    )  # fmt: skip


def _gpus_that_hold(n_bytes: int, heads: int, gpu: Gpu) -> int | None:
    """Return the smallest divisor of `heads` so that as many GPUs hold `n_bytes`; None without one."""
    return next((n for n in divisors(heads) if n * gpu.memory_bytes >= n_bytes), None)


class Serving(NamedTuple):
    """A batch of sequences of one length on the fewest GPUs that hold it."""

    batch: int
    """Sequences at a time."""
    prompt: int
    """Tokens of each prompt."""
    output: int
    """Tokens generated for each."""
    precision: Precision
    """Precision of weights and products; the cache has 16 bits, or 32 in fp32."""
    gpus: int
    replicas: int
    """Copies of the model, each on an equal part of the GPUs, that divide the sequences."""
    weight_bytes: int
    """Weights of a replica."""
    cache_bytes: int
    """Keys and values of all sequences at their end."""
    first_token_seconds: float
    """Time from the prompts to the first token."""
    token_seconds: float
    """Mean time of each further token of a sequence."""
    seconds: float
    """Time of the whole batch."""
    tokens_per_second: float
    """Generated tokens per second of all sequences together."""
    dollars_per_million: float | None
    """Dollars for a million generated tokens, GPUs always busy; None without a price."""


def serving(
    config: ModelConfig,
    gpu: Gpu,
    *,
    precision: Precision,
    batch: int = 1,
    prompt: int | None = None,
    output: int | None = None,
    price: float | None = None,
) -> Serving:
    """Return speed, memory and price of generating text for a batch.

    Prompt and output default to half of the context each. `price` is in dollars per GPU-hour. Raises
    UsageError if they are longer than the context together, or the GPU lacks the precision or memory.
    """
    T = config.n_ctx
    prompt = max(1, T // 2) if prompt is None else prompt
    output = max(1, T - prompt) if output is None else output
    if prompt + output > T:
        raise UsageError(
            f"{counted(prompt, 'token')} of prompt and {output:,} of output are more than a "
            f"context of {T:,}",
            field="prompt_tokens",
            code="longer_than_context",
            hint="fewer of either, or a larger {option:n_ctx}",
        )
    N, C = config.parameters, config.d_model
    weights = SERVED_BYTES[precision] * N
    each = kv_cache_per_token(config, 4 if precision == "fp32" else 2)
    sequence = each * (prompt + output)
    gpus, replicas = _fewest_gpus(config, gpu, weights, sequence, batch)
    tp, share = gpus // replicas, -(-batch // replicas)  # of a replica: GPUs and sequences
    speed = tp * peak_flops(gpu, precision) * PRODUCTS
    bandwidth = tp * gpu.bandwidth * BANDWIDTH
    layers = range(config.n_layer)
    of_prompt = 2.0 * N * prompt + 4.0 * C * prompt * sum(
        mean_keys(prompt, config.band_of(layer)) for layer in layers
    )
    first = share * of_prompt / speed + weights / bandwidth
    read = each * (prompt + output / 2) * share  # on average
    keys = prompt + output / 2
    of_token = 2.0 * N + 4.0 * C * sum(min(keys, config.band_of(layer) or keys) for layer in layers)
    token = max((weights + read) / bandwidth, share * of_token / speed)
    seconds = first + (output - 1) * token
    rate = batch * output / seconds
    return Serving(
        batch=batch,
        prompt=prompt,
        output=output,
        precision=precision,
        gpus=gpus,
        replicas=replicas,
        weight_bytes=weights,
        cache_bytes=sequence * batch,
        first_token_seconds=first,
        token_seconds=token,
        seconds=seconds,
        tokens_per_second=rate,
        dollars_per_million=None if price is None else price * gpus / rate / 3600 * 1e6,
    )


def _fewest_gpus(
    config: ModelConfig, gpu: Gpu, weights: int, sequence: int, batch: int
) -> tuple[int, int]:
    """Return the fewest GPUs, and the fewest replicas on them, that hold the bytes of the weights
    and of each sequence.

    Raises UsageError if no number of GPUs that divides the heads holds one sequence.
    """
    found = []
    for tp in divisors(config.n_head):
        if (at_once := (tp * gpu.memory_bytes - weights) // sequence) > 0:
            replicas = -(-batch // at_once)
            found.append((replicas * tp, replicas))
    if not found:
        raise UsageError(
            f"{config.n_head:,} {gpu.name}, one for each head, cannot hold the "
            f"{in_bytes(weights + sequence)} of this model and one sequence",
            field="gpu",
            code="does_not_fit_in_memory",
            hint="use a GPU with more memory, or a smaller model",
        )
    return min(found)
