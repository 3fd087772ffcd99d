from __future__ import annotations

from typing import Any

import pytest

from gptcli.cli.cost_options import Terms
from gptcli.cli.cost_subject import OTHERS, estimate, every_name, named, subject, subjects
from gptcli.errors import UsageError
from gptcli.papers.compute import TABLE_D1
from gptcli.papers.models import MODELS


@pytest.mark.parametrize("row", TABLE_D1, ids=lambda row: row.name)
def test_every_row_of_table_d1_has_a_size(row: Any) -> None:
    """Within 0.5 % of the print, from the size's name alone."""
    found = estimate(named(row.size or row.name), None, Terms({"gpu": "a100"}))
    assert found.flops == pytest.approx(row.flops, rel=0.005)
    assert found.pf_days == pytest.approx(row.pf_days, rel=0.005)
    assert found.tokens == row.tokens
    assert found.parameters == pytest.approx(row.parameters, rel=0.005)


def test_gpt1_is_what_its_authors_say() -> None:
    found = estimate(named("gpt-1"), None, Terms({}))
    assert found.pf_days == pytest.approx(0.96, rel=0.005)
    assert (
        found.parameters == 12 * 12 * 768**2 + 13 * 12 * 768 + (40_478 + 512) * 768 == 116_534_784
    )


def test_all_of_them_once() -> None:
    names = [one.name for one in subjects()]
    assert names == [model.name for model in MODELS] + [row.name for row in OTHERS]
    assert len(names) == len(set(names))
    assert {row.name for row in OTHERS} >= {row.name for row in TABLE_D1 if not row.size}
    assert {"T5-11B", "BERT-Large", "175B"} <= set(every_name())
    assert named("bert-LARGE").name == named("bertlarge").name == "BERT-Large"
    assert named("GPT2XL").name == "gpt2-xl"


def test_unknown_sizes_name_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown size 'T5-12B'") as caught:
        named("T5-12B")
    assert "T5-11B" in str(caught.value.hint)


def test_a_shape_is_laid_over_a_size() -> None:
    one = subject({"size": "125M", "n_ctx": 1024, "attention": "dense"})
    assert one.model.parameters == 124_439_808
    assert one.name == "gpt3-small, changed"
    assert subject({}).name == "gpt3"
    own = subject({"n_layer": 2, "n_head": 2, "d_model": 8})
    assert (own.name, own.model.n_ctx, own.model.vocab_size) == ("custom", 1024, 50257)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"size": "T5-11B", "n_ctx": 16}, "T5-11B is not of GPT's shape"),
        ({"n_layer": 2}, "needs --n-head and --d-model too"),
        ({"n_layer": 2, "n_head": 2}, "needs --d-model too"),
        ({"runs": ["a", "b"]}, "a run folder is a model of its own"),
        ({"runs": ["a"], "size": "13B"}, "a run folder is a model of its own"),
    ],
)
def test_what_is_no_model(said: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        subject(said)
    assert caught.value.hint


def test_layouts_are_for_shapes_that_are_known() -> None:
    with pytest.raises(UsageError, match="not of GPT's shape"):
        estimate(named("T5-11B"), None, Terms({"gpu": "a100", "layout": "shard=8"}))


def test_tokens_are_those_said() -> None:
    found = estimate(named("T5-3B"), "2B", Terms({}))
    assert found.flops == 3 * 3e9 * 2e9
    assert estimate(named("gpt2"), "2B", Terms({})).tokens == 2_000_000_000
