"""Targets: every model of the papers that can be priced, by its name."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.cost.hardware_options import HardwareOptions
from gptcli.cost.target import (
    OTHER_FAMILIES,
    all_targets,
    estimate_target,
    find_target,
    target_names,
)
from gptcli.errors import UsageError
from gptcli.papers.compute import TABLE_D1
from gptcli.papers.models import MODELS


@pytest.mark.parametrize("row", TABLE_D1, ids=lambda row: row.name)
def test_estimates_agree_with_table_d1(row: Any) -> None:
    """Within 0.5 % of the printed values, from the size's name alone."""
    target = find_target(row.size or row.name)
    found = estimate_target(target, None, HardwareOptions(gpu="a100"))
    assert found.flops == pytest.approx(row.flops, rel=0.005)
    assert found.pf_days == pytest.approx(row.pf_days, rel=0.005)
    assert found.tokens == row.tokens
    assert found.parameters == pytest.approx(row.parameters, rel=0.005)


def test_estimate_of_gpt1_agrees_with_its_authors() -> None:
    found = estimate_target(find_target("gpt-1"), None, HardwareOptions())
    assert found.pf_days == pytest.approx(0.96, rel=0.005)
    assert (
        found.parameters == 12 * 12 * 768**2 + 13 * 12 * 768 + (40_478 + 512) * 768 == 116_534_784
    )


def test_every_model_of_the_papers_is_a_target_once() -> None:
    names = [target.name for target in all_targets()]
    assert names == [model.name for model in MODELS] + [row.name for row in OTHER_FAMILIES]
    assert len(names) == len(set(names))
    assert {row.name for row in OTHER_FAMILIES} >= {row.name for row in TABLE_D1 if not row.size}
    assert {"T5-11B", "BERT-Large", "175B"} <= set(target_names())


def test_names_match_whatever_their_case_and_hyphens() -> None:
    assert find_target("bert-LARGE").name == find_target("bertlarge").name == "BERT-Large"
    assert find_target("GPT2XL").name == "gpt2-xl"


def test_unknown_size_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown size 'T5-12B'") as caught:
        find_target("T5-12B")
    assert "T5-11B" in str(caught.value.hint)


def test_layouts_need_a_gpt_shape() -> None:
    options = HardwareOptions(gpu="a100", layout="shard=8")
    with pytest.raises(UsageError, match="is not a GPT"):
        estimate_target(find_target("T5-11B"), None, options)


def test_given_tokens_replace_the_usual_ones() -> None:
    found = estimate_target(find_target("T5-3B"), 2 * 10**9, HardwareOptions())
    assert found.flops == 3 * 3e9 * 2e9
    found = estimate_target(find_target("gpt2"), 2 * 10**9, HardwareOptions())
    assert found.tokens == 2 * 10**9
