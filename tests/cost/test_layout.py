from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.layout import Layout, check_layout, layers_of_stage, parse_layout
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

sizes = st.integers(1, 64)


@given(st.builds(Layout, dp=sizes, shard=sizes, tp=sizes, pp=sizes))
def test_written_and_read_back(layout: Layout) -> None:
    assert parse_layout(str(layout)) == layout
    assert layout.processes == layout.replicas * layout.tp * layout.pp


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tp", "'tp' is no part of a layout"),
        ("tp=0", "'tp=0' is no part of a layout"),
        ("tp=-2", "'tp=-2' is no part of a layout"),
        ("", "'' is no part of a layout"),
        ("tp=2,", "'' is no part of a layout"),
        ("tp=9999999999", "is no part of a layout"),
        ("tpp=2", "unknown axis 'tpp'"),
        ("tp=2,tp=2", "tp is given twice"),
    ],
)
def test_what_is_no_layout(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_layout(text)


@given(st.integers(1, 200), st.integers(1, 200))
def test_every_layer_has_one_stage(n_layer: int, pp: int) -> None:
    layers = [layers_of_stage(n_layer, pp, stage) for stage in range(pp)]
    assert sum(layers) == n_layer
    assert max(layers) - min(layers) <= 1


@pytest.mark.parametrize(
    ("layout", "message"),
    [(Layout(tp=5), "tp=5 does not divide 12 heads"), (Layout(pp=13), "pp=13 is more stages")],
)
def test_a_layout_the_model_cannot_have(layout: Layout, message: str) -> None:
    config = ModelConfig.from_paper(find_size("gpt2"))
    check_layout(Layout(tp=6, pp=12), config)
    with pytest.raises(UsageError, match=message) as caught:
        check_layout(layout, config)
    assert caught.value.hint
