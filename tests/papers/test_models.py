"""The tables of GPT-2 and GPT-3: every size's shape, and exact parameter counts against the closed
form and the real model.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from gptcli.cost.estimate import FLOPS_PER_PF_DAY
from gptcli.cost.flops import flops_per_token
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.transformer import GPT
from gptcli.papers.models import (
    GPT1_TRAINING,
    GPT2_TRAINING,
    GPT3_MIXTURE,
    GPT3_MIXTURE_TOKENS,
    GPT3_TRAINING,
    MODELS,
    RAMP_TOKENS,
    TABLE_D1,
    TRAINING,
    PaperCompute,
    PaperModel,
)

# name, layers, width, heads, exact parameters, the print
GPT2_TABLE_2 = [
    ("gpt2", 12, 768, 12, 124_439_808, "117M"),
    ("gpt2-medium", 24, 1024, 16, 354_823_168, "345M"),
    ("gpt2-large", 36, 1280, 20, 774_030_080, "762M"),
    ("gpt2-xl", 48, 1600, 25, 1_557_611_200, "1542M"),
]
# name, layers, width, heads, width of a head, batch in tokens, learning rate, exact parameters
GPT3_TABLE_2_1 = [
    ("125M", 12, 768, 12, 64, 524_288, 6.0e-4, 125_226_240),
    ("350M", 24, 1024, 16, 64, 524_288, 3.0e-4, 355_871_744),
    ("760M", 24, 1536, 16, 96, 524_288, 2.5e-4, 760_300_032),
    ("1.3B", 24, 2048, 16, 128, 1_048_576, 2.0e-4, 1_315_723_264),
    ("2.7B", 32, 2560, 32, 80, 1_048_576, 1.6e-4, 2_651_553_280),
    ("6.7B", 32, 4096, 32, 128, 2_097_152, 1.2e-4, 6_658_404_352),
    ("13B", 40, 5120, 40, 128, 2_097_152, 1.0e-4, 12_853_386_240),
    ("175B", 96, 12288, 96, 128, 3_145_728, 0.6e-4, 174_604_259_328),
]


def test_there_are_thirteen() -> None:
    assert [model.paper for model in MODELS] == ["GPT-2"] * 4 + ["GPT-3"] * 8 + ["GPT-1"]


def test_gpt1_section_4_1() -> None:
    model = find_size("gpt1")
    assert (model.n_layer, model.d_model, model.n_head, model.n_ctx, model.vocab_size) == (
        12,
        768,
        12,
        512,
        40478,
    )
    assert (model.norm, model.dropout, model.batch_tokens, model.lr, model.parameters) == (
        "post",
        0.1,
        64 * 512,
        2.5e-4,
        116_534_784,
    )


@pytest.mark.parametrize("row", GPT2_TABLE_2, ids=lambda row: row[0])
def test_gpt2_table_2(row: tuple[str, int, int, int, int, str]) -> None:
    name, layers, width, heads, parameters, printed = row
    model = find_size(name)
    assert (model.n_layer, model.d_model, model.n_head, model.parameters, model.printed) == (
        layers,
        width,
        heads,
        parameters,
        printed,
    )
    assert (model.n_ctx, model.vocab_size, model.attention, model.batch_tokens) == (
        1024,
        50257,
        "dense",
        512 * 1024,
    )


@pytest.mark.parametrize("row", GPT3_TABLE_2_1, ids=lambda row: row[0])
def test_gpt3_table_2_1(row: tuple[str, int, int, int, int, int, float, int]) -> None:
    name, layers, width, heads, head_width, batch, lr, parameters = row
    model = find_size(name)
    assert (model.n_layer, model.d_model, model.n_head, model.d_model // model.n_head) == (
        layers,
        width,
        heads,
        head_width,
    )
    assert (model.batch_tokens, model.lr, model.parameters) == (batch, lr, parameters)
    assert (model.n_ctx, model.vocab_size, model.attention) == (2048, 50257, "banded")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_parameters_of_the_closed_form_and_of_the_model_itself(model: PaperModel) -> None:
    config = ModelConfig.from_paper(model)
    assert config.parameters == model.parameters
    with torch.device("meta"):
        built = GPT(config)
    assert sum(parameter.numel() for parameter in built.parameters()) == model.parameters


def test_the_two_resolved_rows_count_right_only_as_resolved() -> None:
    """Table 2.1 prints 24 heads of 128 for XL and a width of 5,140 for 13B; Table D.1's 1,320M and
    12,850M contradict both.
    """
    xl, thirteen = find_size("1.3B"), find_size("13B")
    # parameters per unit of all heads' width together, but for biases
    attention = 4 * xl.n_layer * xl.d_model
    as_printed = xl.parameters + attention * (24 - xl.n_head) * 128
    assert as_printed == pytest.approx(1.517e9, rel=0.0005)
    assert xl.parameters == pytest.approx(1.320e9, rel=0.005)
    assert 5140 % 128, "40 heads of 128 do not make that width"
    assert ModelConfig.from_paper(thirteen, d_model=5140, n_head=20).parameters != pytest.approx(
        12.850e9, rel=0.005
    )
    assert thirteen.parameters == pytest.approx(12.850e9, rel=0.0005)


def test_bigger_models_learn_more_slowly() -> None:
    assert all(small.lr > large.lr for small, large in pairwise(MODELS[4:12]))


PRINTED_FLOPS = {
    "T5-Small": 1.80e20, "T5-Base": 6.60e20, "T5-Large": 2.31e21, "T5-3B": 9.00e21, "T5-11B": 3.30e22,
    "BERT-Base": 1.64e20, "BERT-Large": 5.33e20, "RoBERTa-Base": 1.50e21, "RoBERTa-Large": 4.26e21,
    "GPT-3 Small": 2.25e20, "GPT-3 Medium": 6.41e20, "GPT-3 Large": 1.37e21, "GPT-3 XL": 2.38e21,
    "GPT-3 2.7B": 4.77e21, "GPT-3 6.7B": 1.20e22, "GPT-3 13B": 2.31e22, "GPT-3 175B": 3.14e23,
}  # fmt: skip
GPT3_PF_DAYS = [2.60, 7.42, 15.8, 27.5, 55.2, 139, 268, 3.64e3]
GPT3_MILLIONS = [125, 356, 760, 1_320, 2_650, 6_660, 12_850, 174_600]
GPT3_ROWS = [row for row in TABLE_D1 if row.size]


def test_the_rows_are_the_print() -> None:
    assert {row.name: row.flops for row in TABLE_D1} == PRINTED_FLOPS
    assert [row.pf_days for row in GPT3_ROWS] == GPT3_PF_DAYS
    assert [row.parameters / 1e6 for row in GPT3_ROWS] == GPT3_MILLIONS


@pytest.mark.parametrize("row", TABLE_D1, ids=lambda row: row.name)
def test_a_row_follows_from_its_own_columns(row: PaperCompute) -> None:
    flops = row.flops_per_parameter * row.parameters * row.tokens
    assert flops == pytest.approx(row.flops, rel=0.005)
    assert flops / FLOPS_PER_PF_DAY == pytest.approx(row.pf_days, rel=0.005)


@pytest.mark.parametrize("row", GPT3_ROWS, ids=lambda row: row.name)
def test_our_exact_sizes_give_the_printed_row(row: PaperCompute) -> None:
    config = ModelConfig.from_paper(find_size(row.size))
    flops = flops_per_token(config, "6N") * row.tokens
    assert flops == pytest.approx(row.flops, rel=0.005)
    assert flops / FLOPS_PER_PF_DAY == pytest.approx(row.pf_days, rel=0.005)
    assert config.parameters == pytest.approx(row.parameters, rel=0.005)


def test_t5_sees_half_and_nobody_else() -> None:
    assert {row.flops_per_parameter for row in TABLE_D1 if row.name.startswith("T5")} == {3}
    assert {row.flops_per_parameter for row in TABLE_D1 if not row.name.startswith("T5")} == {6}


def test_tokens_per_parameter() -> None:
    """The cost article: 1.71 for GPT-3's 175B and 6.66 for GPT-2's 1.5B, cut off after two
    decimals.
    """
    assert GPT3_TRAINING.tokens / 175e9 == pytest.approx(1.71, abs=0.01)
    assert GPT2_TRAINING.tokens / 1.5e9 == pytest.approx(6.66, abs=0.01)


def test_appendix_b() -> None:
    recipe = GPT3_TRAINING
    assert (recipe.beta1, recipe.beta2, recipe.eps) == (0.9, 0.95, 1e-8)
    assert (recipe.clip, recipe.weight_decay) == (1.0, 0.1)
    assert (recipe.warmup_tokens, recipe.decay_tokens, recipe.min_lr_ratio) == (375e6, 260e9, 0.1)
    assert recipe.tokens == 300e9
    assert recipe.ramp_from == 32_000


def test_the_ramp_runs_over_4_to_12_billion_tokens_longer_for_larger_models() -> None:
    sizes = [model.name for model in MODELS if model.paper == "GPT-3"]
    assert set(RAMP_TOKENS) <= set(sizes)
    ramps = [RAMP_TOKENS.get(name, GPT3_TRAINING.ramp_tokens) for name in sizes]
    assert ramps == sorted(ramps)
    assert (min(ramps), max(ramps)) == (4e9, 12e9)


def test_gpt2_has_gpt3s_schedule_in_proportion_and_no_ramp() -> None:
    for name in ("warmup_tokens", "tokens"):
        assert getattr(GPT2_TRAINING, name) * 30 == getattr(GPT3_TRAINING, name)
    assert GPT2_TRAINING.ramp_tokens == 0


def test_training_of_gpt1_section_4_1() -> None:
    recipe = GPT1_TRAINING
    assert recipe.warmup_tokens == 2000 * 64 * 512
    assert (recipe.decay_tokens, recipe.min_lr_ratio) == (recipe.tokens, 0.0)
    assert (recipe.weight_decay, recipe.ramp_tokens, recipe.beta2) == (0.01, 0, 0.999)


def test_every_paper_has_a_recipe() -> None:
    assert {model.paper for model in MODELS} == set(TRAINING)


def test_printed_weights_add_up_to_101_per_cent() -> None:
    assert sum(part.weight for part in GPT3_MIXTURE.values()) == 101


@pytest.mark.parametrize("name", GPT3_MIXTURE)
def test_printed_epochs_follow_from_weight_and_size(name: str) -> None:
    """To the paper's rounding of both, except Books2 and Common Crawl, which round a little
    differently.
    """
    part = GPT3_MIXTURE[name]
    assert part.weight / 100 * GPT3_MIXTURE_TOKENS / part.tokens == pytest.approx(
        part.epochs, rel=0.2
    )
