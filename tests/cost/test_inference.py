"""Tests of the costs of reading and writing, counted a second time, layer by layer."""

from __future__ import annotations

import pytest

from gptcli.cost.hardware import find_gpu
from gptcli.cost.inference import inference, serving
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

A100 = find_gpu("a100")
TINY = ModelConfig(
    n_layer=4, n_head=2, d_model=8, n_ctx=16, vocab_size=10, attention="banded", band=4
)


def test_products_of_a_tiny_model() -> None:
    """Scores and their sum are 2·C each for a query and key; two layers see all, two a band of
    4.
    """
    run = inference(TINY, None)
    keys = 2 * 16 + 2 * 4
    assert run.decode_flops == 2 * TINY.parameters + 4 * 8 * keys
    seen = 2 * 8 + 2 * 4 * (1 - 4 / 32)  # on average, a query's own key counted as half
    assert run.prefill_flops == pytest.approx(16 * (2 * TINY.parameters + 4 * 8 * seen))
    assert (run.gpus, run.prefill_seconds, run.tokens_per_second) == (None, None, None)


def test_bytes_of_gpt2() -> None:
    """Weights and 1,024 positions of 36,864 bytes."""
    run = inference(ModelConfig.from_paper(find_size("gpt2")), find_gpu("a100"))
    assert run.decode_bytes == 2 * 124_439_808 + 1024 * 36_864
    assert run.gpus == 1
    assert run.tokens_per_second == pytest.approx(2039e9 / run.decode_bytes)
    assert run.prefill_seconds == pytest.approx(run.prefill_flops / 312e12)


def test_many_gpus_read_together() -> None:
    run = inference(ModelConfig.from_paper(find_size("175B")), find_gpu("a100"))
    assert run.gpus == 6, "five hold it, but do not divide its 96 heads"
    assert run.tokens_per_second == pytest.approx(6 * 2039e9 / run.decode_bytes)
    assert run.prefill_seconds == pytest.approx(run.prefill_flops / 6 / 312e12)


def test_a_band_spares_work_and_no_memory() -> None:
    dense, banded = (
        inference(ModelConfig.from_paper(find_size("125M"), attention=kind), None)
        for kind in ("dense", "banded")
    )
    assert banded.prefill_flops < dense.prefill_flops
    assert banded.decode_flops < dense.decode_flops
    assert banded.decode_bytes == dense.decode_bytes


def test_gpt_fast_on_an_a100() -> None:
    """Its README: Llama 7B, batch 1, 104.9 tokens/s in bf16."""
    config = ModelConfig.from_paper(find_size("6.7B"), attention="dense")
    found = serving(config, A100, precision="bf16", prompt=5, output=200)
    assert 1 / found.token_seconds == pytest.approx(104.9, rel=0.03)
    assert found.gpus == 1


def test_a_batch_reads_the_weights_once() -> None:
    config = ModelConfig.from_paper(find_size("13B"), attention="dense")
    one, many = (
        serving(config, A100, precision="bf16", batch=n, prompt=512, output=512, price=2.0)
        for n in (1, 16)
    )
    assert one.cache_bytes * 16 == many.cache_bytes == 16 * 1024 * 2 * 40 * 5120 * 2
    assert many.token_seconds < 3 * one.token_seconds, "though sixteen times as many"
    assert many.tokens_per_second > 5 * one.tokens_per_second
    assert one.dollars_per_million is not None
    assert one.dollars_per_million == pytest.approx(
        2.0 * one.gpus / one.tokens_per_second / 3600 * 1e6
    )
    assert one.seconds == pytest.approx(one.first_token_seconds + 511 * one.token_seconds)


def test_large_batches_are_bound_by_products() -> None:
    config = ModelConfig.from_paper(find_size("gpt2"))
    found = serving(config, A100, precision="fp16", batch=4096, prompt=8, output=8)
    flops = 2 * config.parameters + 4 * 768 * 12 * 12
    assert found.token_seconds == pytest.approx(4096 * flops / (0.6 * 312e12))
    assert serving(config, A100, precision="bf16").prompt == 512


def test_more_than_a_context_is_refused() -> None:
    config = ModelConfig.from_paper(find_size("gpt2"))
    with pytest.raises(UsageError, match="more than a context of 1,024"):
        serving(config, A100, precision="bf16", prompt=1000, output=25)


@pytest.mark.parametrize("name", ["gpt2-xl", "13B", "175B"])
@pytest.mark.parametrize("gpu", ["h100", "a100-40gb", "b200"])
@pytest.mark.parametrize("batch", [1, 16, 100, 5000])
def test_gpus_of_a_replica_divide_the_heads_and_hold_its_share(
    name: str, gpu: str, batch: int
) -> None:
    config, row = ModelConfig.from_paper(find_size(name)), find_gpu(gpu)
    found = serving(config, row, precision="bf16", batch=batch)
    each, rest = divmod(found.gpus, found.replicas)
    share = -(-batch // found.replicas)
    assert (rest, config.n_head % each) == (0, 0)
    held = found.weight_bytes + found.cache_bytes // batch * share
    assert held <= each * row.memory_bytes


def test_gpt3_for_sixteen_needs_eight_h100() -> None:
    found = serving(
        ModelConfig.from_paper(find_size("175B")), find_gpu("h100"), precision="bf16", batch=16
    )
    assert (found.gpus, found.replicas) == (8, 1)


def test_more_sequences_than_all_heads_hold_are_divided_between_replicas() -> None:
    config = ModelConfig.from_paper(find_size("gpt2-xl"), n_head=1)
    one = serving(config, A100, precision="bf16", batch=200)
    many = serving(config, A100, precision="bf16", batch=200 * 10)
    assert (one.gpus, one.replicas, many.gpus, many.replicas) == (1, 1, 9, 9)
    assert many.tokens_per_second == pytest.approx(9 * one.tokens_per_second, rel=0.15)


def test_a_model_larger_than_a_gpu_for_each_head_is_refused() -> None:
    config = ModelConfig.from_paper(find_size("175B"), n_head=1)
    with pytest.raises(UsageError, match="1 a100, one for each head, cannot hold the 3"):
        serving(config, A100, precision="bf16")
    assert inference(config, A100).gpus is None
