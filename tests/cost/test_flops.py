from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.flops import (
    CONVENTIONS,
    flops_per_token,
    mean_keys,
    parameters_by_part,
)
from gptcli.model.attention import causal_mask
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.transformer import GPT


def paper(size: str, **changes: object) -> ModelConfig:
    return ModelConfig.from_paper(find_size(size), **changes)


def test_the_formulas_of_gpt2() -> None:
    """124M: N = 124,439,808 and L·C·T = 12·768·1,024 = 9,437,184."""
    assert flops_per_token(paper("gpt2"), "6N") == 6 * 124_439_808
    assert flops_per_token(paper("gpt2"), "palm") == 6 * 124_439_808 + 12 * 9_437_184
    assert flops_per_token(paper("gpt2"), "causal") == 6 * 124_439_808 + 6 * 9_437_184


@pytest.mark.parametrize(("size", "share"), [("125M", 0.23), ("175B", 0.027)])
def test_attention_share_at_2048(size: str, share: float) -> None:
    """From 23 % to 2.7 % of PaLM's count."""
    config = paper(size)
    assert 1 - flops_per_token(config, "6N") / flops_per_token(config, "palm") == pytest.approx(
        share, abs=0.005 if share > 0.1 else 0.0005
    )


@pytest.mark.parametrize(
    ("n_ctx", "band"),
    [(64, None), (64, 1), (64, 7), (64, 64), (64, 100), (1, None), (1, 5), (257, 128)],
)
def test_mean_keys_are_those_of_the_mask(n_ctx: int, band: int | None) -> None:
    """Counted on the mask the model is held against, but for half a key: the formula counts the
    diagonal as half where it is cut.
    """
    seen = causal_mask(n_ctx, n_ctx, band, torch.device("cpu")).double()
    assert 0 <= float(seen.sum()) / n_ctx - mean_keys(n_ctx, band) <= 0.5


def test_only_banded_layers_are_narrow() -> None:
    dense, banded = (
        paper("125M", attention=attention, n_layer=3, band=256) for attention in ("dense", "banded")
    )
    saved = flops_per_token(dense, "causal") - flops_per_token(banded, "causal")
    assert saved == 12 * 768 * (1024 - 256 * (1 - 256 / 4096))  # one of three layers
    assert flops_per_token(dense, "palm") == flops_per_token(banded, "palm")


def test_a_band_as_wide_as_the_context_is_dense() -> None:
    assert flops_per_token(paper("125M", band=2048), "causal") == flops_per_token(
        paper("125M", attention="dense"), "causal"
    )


@pytest.mark.parametrize("size", ["gpt2", "gpt3", "13B"])
def test_each_convention_counts_more_than_the_papers(size: str) -> None:
    six_n, palm, causal = (
        flops_per_token(paper(size), convention) for convention in CONVENTIONS[:3]
    )
    assert six_n < causal < palm


def test_unknown_convention() -> None:
    with pytest.raises(ValueError, match="chinchilla"):
        flops_per_token(paper("gpt2"), "chinchilla")  # type: ignore[arg-type]


# Rows of llm-foundry's published throughput tables: (layers, heads, width), context, exact
# parameters, tokens/s per GPU, peak, MFU in %. Their vocabulary is 50,368, and their MFU counts (6N
# + 12·L·C·T); fp8 rows against fp8's peak.
A100, H100, H100_FP8 = 312e12, 989.5e12, 1979e12
LLM_FOUNDRY = [
    ((12, 12, 768), 2048, 125_311_488, 141_737, A100, 44.45),
    ((24, 16, 1024), 2048, 355_985_408, 52_689, A100, 46.27),
    ((24, 16, 2048), 2048, 1_315_950_592, 39_837, H100, 36.65),
    ((32, 20, 2560), 2048, 2_651_837_440, 22_772, H100, 41.25),
    ((32, 32, 4096), 2048, 6_658_859_008, 9_670, H100, 42.20),
    ((40, 40, 5120), 2048, 12_853_954_560, 4_989, H100, 41.42),
    ((40, 40, 5120), 2048, 12_853_954_560, 1_976, A100, 52.04),
    ((24, 16, 2048), 8192, 1_328_533_504, 32_010, H100_FP8, 20.71),
]


@pytest.mark.parametrize("row", LLM_FOUNDRY, ids=lambda row: f"{row[2]}-{row[5]}")
def test_mfu_of_published_throughput(
    row: tuple[tuple[int, int, int], int, int, int, float, float],
) -> None:
    (n_layer, n_head, d_model), n_ctx, parameters, tokens_per_second, peak, printed = row
    config = ModelConfig(
        n_layer=n_layer, n_head=n_head, d_model=d_model, n_ctx=n_ctx, vocab_size=50368
    )
    assert config.parameters == parameters
    mfu = flops_per_token(config, "palm") * tokens_per_second / peak
    assert 100 * mfu == pytest.approx(printed, rel=0.0005)


def test_megatrons_forms() -> None:
    """With all layers computed again, four parts of work for every three, but for the head; PaLM's
    count, but for biases and norms.
    """
    config = paper("175B", vocab_size=51200, attention="dense")
    plain, again = (
        flops_per_token(config, convention) for convention in ("megatron", "megatron-recompute")
    )
    head = 6 * config.vocab_size * config.d_model
    assert (again - head) / (plain - head) == pytest.approx(4 / 3)
    assert plain == pytest.approx(flops_per_token(config, "palm"), rel=0.001)
    assert again == pytest.approx(8 * config.parameters, rel=0.03), "the 8TP of the days"


configs = st.builds(
    lambda layers, heads, head_width, n_ctx, vocab, tied, norm: ModelConfig(
        n_layer=layers, n_head=heads, d_model=heads * head_width, n_ctx=n_ctx, vocab_size=vocab, tied=tied, norm=norm
    ),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 16), st.integers(1, 64), st.integers(1, 100), st.booleans(),
    st.sampled_from(["pre", "post"]),
)  # fmt: skip


def part_of(name: str) -> str:
    """Return the part that a tensor of the real model belongs to."""
    for piece, part in (
        ("wte", "embeddings"),
        ("wpe", "positions"),
        ("attn", "attention"),
        ("mlp", "mlp"),
        ("lm_head", "head"),
    ):
        if piece in name.split("."):
            return part
    return "norms"


@given(configs)
def test_parts_are_those_of_the_real_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = GPT(config)
    counted = dict.fromkeys(parameters_by_part(config), 0)
    for name, parameter in model.named_parameters():
        counted[part_of(name)] += parameter.numel()
    assert parameters_by_part(config) == counted
    assert sum(counted.values()) == config.parameters
