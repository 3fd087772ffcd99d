from __future__ import annotations

import pytest
import torch

from gptcli.cost.hardware import find_gpu
from gptcli.cost.memory import (
    TRAINING_BYTES,
    ActivationPolicy,
    kv_cache_per_token,
    layer_bytes,
    layers_in_flight,
    memory_by_part,
    min_gpus,
    training_memory,
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
    assert min_gpus(n_bytes, find_gpu("a100").memory_bytes) == least


def test_the_article_finds_no_gpu_that_holds_gpt3() -> None:
    """Its largest single-GPU memory: 48 GB."""
    assert find_gpu("rtx8000").memory_bytes == 48e9
    assert (
        min_gpus(memory_by_part(find_size("175B").parameters)["inference_fp32"], 48 * 10**9) == 15
    )


@pytest.mark.parametrize(("ranks", "gigabytes"), [(1, 120), (64, 1.9)])
def test_zero_of_7_5_billion(ranks: int, gigabytes: float) -> None:
    """ZeRO, figure 1: the whole state, and under stage 3 all parts of it divided over 64 ranks."""
    state = sum(training_memory(7_500_000_000, "mixed").values())
    assert state / ranks / 1e9 == pytest.approx(gigabytes, abs=0.05)


GIB = 2**30
# size: (layers, heads, width), micro-batch, tp, pp, interleave; GiB of parameters and optimizer,
# activations: none, sequence + selective
FIGURE_1 = {
    "22B": ((48, 64, 6144), 4, 8, 1, 1, 45.5625, 59.25, 9.5625),
    "175B": ((96, 96, 12288), 1, 8, 8, 3, 45.5625, 66.84375, 12.3515625),
    "530B": ((105, 128, 20480), 1, 8, 35, 3, 31.640625, 114.0234375, 23.076171875),
    "1T": ((128, 160, 25600), 1, 8, 64, 1, 32.958984375, 131.25, 26.5625),
}


def model(shape: tuple[int, int, int], dropout: float = 0.1) -> ModelConfig:
    return ModelConfig(
        n_layer=shape[0],
        n_head=shape[1],
        d_model=shape[2],
        n_ctx=2048,
        vocab_size=51200,
        dropout=dropout,
    )


@pytest.mark.parametrize("size", FIGURE_1)
def test_figure_1(size: str) -> None:
    shape, micro_batch, tp, pp, interleave, state, none, selective = FIGURE_1[size]
    config = model(shape)
    parameters = 12 * config.n_layer * config.d_model**2 / (tp * pp)
    assert sum(training_memory(1, "megatron").values()) * parameters / GIB == state
    in_flight = layers_in_flight(config.n_layer // pp, pp, 0, 512, interleave=interleave)
    kept = ActivationPolicy(fused=False, tp=tp, sequence_parallel=False)
    assert layer_bytes(config, micro_batch, kept) * in_flight / GIB == pytest.approx(
        none, rel=1e-12
    )
    kept = ActivationPolicy(fused=False, tp=tp, recompute="selective")
    assert layer_bytes(config, micro_batch, kept) * in_flight / GIB == pytest.approx(
        selective, rel=1e-12
    )


@pytest.mark.parametrize(
    ("kept", "formula"),
    [
        (ActivationPolicy(fused=False), lambda scores, t: 34 + scores),
        (
            ActivationPolicy(fused=False, tp=4, sequence_parallel=False),
            lambda scores, t: 10 + 24 / t + scores / t,
        ),
        (ActivationPolicy(fused=False, tp=4), lambda scores, t: 34 / t + scores / t),
        (
            ActivationPolicy(fused=False, tp=4, sequence_parallel=False, recompute="selective"),
            lambda scores, t: 10 + 24 / t,
        ),
        (ActivationPolicy(fused=False, tp=4, recompute="selective"), lambda scores, t: 34 / t),
        (ActivationPolicy(recompute="full"), lambda scores, t: 2),
    ],
)
def test_table_2(kept: ActivationPolicy, formula: object) -> None:
    config = model((24, 16, 2048))
    unit = 2 * config.n_ctx * config.d_model
    assert callable(formula)
    assert layer_bytes(config, 2, kept) == pytest.approx(
        unit * formula(5 * config.n_head * config.n_ctx / config.d_model, kept.tp)
    )


def test_fused_attention_keeps_one_figure_a_head() -> None:
    config = model((2, 16, 2048), dropout=0.0)
    assert layer_bytes(config, 1, ActivationPolicy()) == 2048 * (32 * 2048 + 4 * 16)


def test_each_recomputation_keeps_less() -> None:
    config = model((2, 16, 2048))
    for fused in (True, False):
        none, selective, full = (
            layer_bytes(config, 1, ActivationPolicy(fused=fused, recompute=kind))
            for kind in ("none", "selective", "full")
        )
        assert none > selective > full
    with pytest.raises(ValueError, match="some"):
        layer_bytes(config, 1, ActivationPolicy(recompute="some"))  # type: ignore[arg-type]


def test_in_flight() -> None:
    assert [layers_in_flight(2, 4, stage, 8) for stage in range(4)] == [8, 6, 4, 2]
    assert [layers_in_flight(2, 4, stage, 1) for stage in range(4)] == [2, 2, 2, 2], (
        "no more than there are"
    )
    assert layers_in_flight(12, 8, 0, 64, interleave=3) == pytest.approx(96 * (1 + 7 / 24))


@pytest.mark.parametrize(
    ("dropout", "kept", "each"),
    [
        # fp32 on a CPU
        (
            0.1,
            ActivationPolicy(element=4, residual=4, score=4, mask=4, fused=False),
            24 + 48 + (8 + 4) * 2 * 4 / 8,
        ),
        (
            0.0,
            ActivationPolicy(element=4, residual=4, score=4, mask=4, fused=False),
            16 + 48 + 4 * 2 * 4 / 8,
        ),
        (0.1, ActivationPolicy(residual=4), 14 + 24 + 4 * 2 / 8),  # autocast
        (0.0, ActivationPolicy(residual=4), 12 + 24 + 4 * 2 / 8),
        (0.0, ActivationPolicy(residual=4, tp=4), (12 + 24 + 4 * 2 / 8) / 4),
        (
            0.0,
            ActivationPolicy(residual=4, tp=4, sequence_parallel=False),
            12 + (24 + 4 * 2 / 8) / 4,
        ),
        (0.1, ActivationPolicy(residual=4, recompute="selective"), 4 + 24 + 4 * 2 / 8 - 8 + 4),
        (
            0.1,
            ActivationPolicy(residual=4, recompute="selective", tp=4),
            4 / 4 + (24 + 4 * 2 / 8 - 8) / 4 + 4,
        ),
        (0.1, ActivationPolicy(residual=4, recompute="selective", fused=False), 14 + 24),
        (0.1, ActivationPolicy(residual=4, recompute="full", tp=4), 1),
    ],
    ids=str,
)
def test_bytes_a_token_and_width_by_hand(
    dropout: float, kept: ActivationPolicy, each: float
) -> None:
    """3 sequences of 4 tokens at width 8, two heads."""
    config = ModelConfig(n_layer=1, n_head=2, d_model=8, n_ctx=4, vocab_size=10, dropout=dropout)
    assert layer_bytes(config, 3, kept) == pytest.approx(each * 12 * 8)


def test_in_flight_by_schedule() -> None:
    """Two chunks of layers a process add (pp-1)/(2·pp); those that run all forwards first hold
    all.
    """
    assert layers_in_flight(6, 4, 1, 8, schedule="interleaved1f1b") == pytest.approx(
        6 * 3 * (1 + 3 / 8)
    )
    assert layers_in_flight(6, 4, 1, 2, schedule="interleaved1f1b") == pytest.approx(
        6 * 2 * (1 + 3 / 8)
    )
    assert (
        layers_in_flight(6, 4, 1, 8, schedule="gpipe")
        == layers_in_flight(6, 4, 3, 8, schedule="loopedbfs")
        == 48
    )
    assert layers_in_flight(6, 1, 0, 8) == 6
