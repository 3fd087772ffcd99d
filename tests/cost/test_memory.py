from __future__ import annotations

import pytest
import torch

from gptcli.cost.hardware import find_gpu
from gptcli.cost.memory import (
    TRAINING_BYTES,
    kv_cache_per_token,
    least_gpus,
    memory_by_part,
    training_memory,
    zero_memory,
)
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.kv_cache import KVCache


@pytest.mark.parametrize(
    ("size", "n_bytes"), [("124M", 36_864), ("1.5B", 307_200), ("175B", 4_718_592)]
)
def test_kv_cache_per_token(size: str, n_bytes: int) -> None:
    assert kv_cache_per_token(ModelConfig.from_paper(find_size(size))) == n_bytes


@pytest.mark.parametrize("attention", ["dense", "banded"])
def test_kv_cache_is_what_the_model_allocates(attention: str) -> None:
    config = ModelConfig(
        n_layer=3, n_head=2, d_model=8, n_ctx=16, vocab_size=11, attention=attention, band=4
    )
    cache = KVCache(config, 1, torch.device("cpu"), torch.bfloat16)
    assert memory_by_part(config.parameters, config)["kv_cache_per_context"] == sum(
        tensor.nbytes for tensor in (*cache.keys, *cache.values)
    )


def test_zero_baseline_of_7_5_billion() -> None:
    """ZeRO, figure 1: 120 GB for 7.5B parameters without sharding, 16 B each: 2 + 2 + 12."""
    assert training_memory(7_500_000_000, "mixed") == {
        "parameters": 15e9,
        "gradients": 15e9,
        "optimizer": 90e9,
    }
    assert sum(training_memory(7_500_000_000, "mixed").values()) == 120e9


def test_bytes_a_parameter_by_recipe() -> None:
    assert {recipe: sum(parts.values()) for recipe, parts in TRAINING_BYTES.items()} == {
        "fp32": 16,
        "mixed": 16,
        "megatron": 18,
    }


def test_our_trainers_state_is_what_torch_holds() -> None:
    """fp32 Adam on a real model, byte for byte, but for Adam's step counters."""
    weights = torch.nn.Parameter(torch.ones(1000))
    optimizer = torch.optim.AdamW([weights])
    weights.sum().backward()
    optimizer.step()
    assert weights.grad is not None
    moments = [tensor for name, tensor in optimizer.state[weights].items() if name != "step"]
    held = {
        "parameters": weights.nbytes,
        "gradients": weights.grad.nbytes,
        "optimizer": sum(tensor.nbytes for tensor in moments),
    }
    assert training_memory(1000) == held


def test_gpt3_in_fp32_is_700_gb() -> None:
    """The cost article's 175e9 x 4 B; the exact count is 0.2 % less."""
    memory = memory_by_part(find_size("175B").parameters)
    assert memory["inference_fp32"] == pytest.approx(700e9, rel=0.005)
    assert memory["inference_16bit"] == pytest.approx(350e9, rel=0.005)
    assert (
        memory["training"]
        == memory["parameters"] + memory["gradients"] + memory["optimizer"]
        == 16 * 174_604_259_328
    )


@pytest.mark.parametrize(
    ("n_bytes", "least"), [(1, 1), (80 * 10**9, 1), (80 * 10**9 + 1, 2), (700 * 10**9, 9)]
)
def test_least_gpus(n_bytes: int, least: int) -> None:
    assert least_gpus(n_bytes, find_gpu("a100").memory_bytes) == least


def test_the_article_finds_no_gpu_that_holds_gpt3() -> None:
    """Its largest single-GPU memory: 48 GB."""
    assert find_gpu("rtx8000").memory_bytes == 48e9
    assert (
        least_gpus(memory_by_part(find_size("175B").parameters)["inference_fp32"], 48 * 10**9) == 15
    )


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_of_7_5_billion_on_64(stage: int, gigabytes: float) -> None:
    """ZeRO, figure 1: each stage divides one part more over the ranks: optimizer, gradients,
    parameters.
    """
    assert zero_memory(7_500_000_000, 64, stage) / 1e9 == pytest.approx(gigabytes, abs=0.05)
