"""Tests of the costs of reading and writing, counted a second time, layer by layer."""

from __future__ import annotations

import pytest

from gptcli.cost.hardware import find_gpu
from gptcli.cost.inference import inference
from gptcli.model.config import ModelConfig, find_size

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
    assert run.gpus == 5
    assert run.tokens_per_second == pytest.approx(5 * 2039e9 / run.decode_bytes)
    assert run.prefill_seconds == pytest.approx(run.prefill_flops / 5 / 312e12)


def test_a_band_spares_work_and_no_memory() -> None:
    dense, banded = (
        inference(ModelConfig.from_paper(find_size("125M"), attention=kind), None)
        for kind in ("dense", "banded")
    )
    assert banded.prefill_flops < dense.prefill_flops
    assert banded.decode_flops < dense.decode_flops
    assert banded.decode_bytes == dense.decode_bytes
