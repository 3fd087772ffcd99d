"""Models that can be priced: names, sizes, other families, and their batch."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.cost.hardware import USER
from gptcli.cost.options import HardwareOptions
from gptcli.cost.target import (
    OTHER_FAMILIES,
    all_targets,
    batch_of,
    estimate_target,
    find_target,
    target_names,
)
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.papers.models import MODELS, TABLE_D1


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


def test_the_batch_is_the_papers_or_that_of_the_nearest_size() -> None:
    for size, sequences in (
        ("125M", 256),
        ("1.3B", 512),
        ("175B", 1536),
        ("gpt2-xl", 512),
        ("gpt1", 64),
    ):
        target = find_target(size)
        assert batch_of(target.model, target.paper, None)[0] == sequences * target.model.n_ctx
    tiny = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=2**20)
    assert batch_of(tiny, None, None)[0] == 2**20, "never less than one sequence"
    tokens, source = batch_of(find_target("125M").model, None, 10_000)
    assert (tokens, source) == (5 * 2048, USER)


def test_notes_say_what_the_figures_hide() -> None:
    def notes(size: str, **options: Any) -> str:
        return " ".join(
            estimate_target(find_target(size), None, HardwareOptions(gpu="h100", **options)).notes
        )

    assert "at the speed of" in notes("175B")
    assert "fewest that hold it" not in notes("175B", gpus=1024)
    assert "GPUs are idle" in notes("125M", gpus=20_000)
    assert "critical batch" in notes("125M", gpus=8, batch_tokens=2**26)
    assert not notes("13B", gpus=64, mfu=0.4)
