"""All seventeen rows of GPT-3's Table D.1, as printed and as our formulas give them.

The table prints three digits, and counts to the nearest million of a rounded size, so 0.5 % is the
print's own precision: the farthest row, GPT-3 XL, stands 0.49 % off its print when computed from
the exact 1,315,723,264.
"""

from __future__ import annotations

import pytest

from gptcli.cost.estimate import FLOPS_PER_PF_DAY
from gptcli.cost.flops import flops_per_token
from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.compute import TABLE_D1, PaperCompute
from gptcli.papers.training import GPT2_TRAINING, GPT3_TRAINING

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
