"""Layouts as text, and what each process holds, counted by hand; tests/trainer/test_preflight.py
holds the same against real processes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.layout import (
    Layout,
    ShardedTensor,
    check_division,
    check_layout,
    chunk_size,
    layer_tensors,
    layers_of,
    layers_of_stage,
    outer_tensors,
    parse_layout,
    rank_parameters,
)
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
        ("tp", "'tp' is not an axis with its size"),
        ("tp=0", "'tp=0' is not an axis with its size"),
        ("tp=-2", "'tp=-2' is not an axis with its size"),
        ("", "'' is not an axis with its size"),
        ("tp=2,", "'' is not an axis with its size"),
        ("tp=9999999999", "is not an axis with its size"),
        ("tpp=2", "unknown axis 'tpp'"),
        ("tp=2,tp=2", "tp is given twice"),
    ],
)
def test_invalid_layouts_are_refused(text: str, message: str) -> None:
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


TINY = ModelConfig(n_layer=3, n_head=4, d_model=8, n_ctx=4, vocab_size=10)
LAYER = 12 * 64 + 13 * 8


@given(st.integers(1, 200), st.integers(1, 40))
def test_parts_are_those_of_torch(n: int, parts: int) -> None:
    """torch.chunk makes fewer parts where the last ones would be empty."""
    sizes = [len(part) for part in torch.arange(n).chunk(parts)]
    assert [chunk_size(n, parts, index) for index in range(parts)] == sizes + [0] * (
        parts - len(sizes)
    )


@given(st.integers(1, 9), st.booleans())
def test_shards_are_the_whole_model(shard: int, tied: bool) -> None:
    config = replace(TINY, tied=tied)
    assert (
        sum(rank_parameters(config, Layout(shard=shard), 0, 0, index) for index in range(shard))
        == config.parameters
    )


def test_tensors_are_the_models() -> None:
    assert sum(tensor.rows * tensor.columns for tensor in layer_tensors(TINY)) == LAYER
    for tied, tables in ((True, 1), (False, 2)):
        config = replace(TINY, tied=tied)
        assert (
            sum(tensor.rows * tensor.columns for tensor in outer_tensors(config, 1, 0))
            == tables * 80 + 32 + 16
        )
        stages = [
            sum(tensor.rows * tensor.columns for tensor in outer_tensors(config, 3, stage))
            for stage in range(3)
        ]
        assert stages == [80 + 32, 0, 16 + 80], "the head stands on the last stage, tied or not"
    assert [tensor.rows for tensor in layer_tensors(TINY) if tensor.partial_grad] == [8] * 4, (
        "gain and bias of both norms"
    )
    assert [tensor.rows for tensor in outer_tensors(TINY, 1, 0) if tensor.partial_grad] == [4, 8, 8]


def test_slices_by_hand() -> None:
    """Half of q, k, v, of the projections and of the feed-forward layer; norms and the outputs'
    biases whole; rows of the table by torch's parts."""
    layer = 4 * 8 + (96 + 12) + (32 + 8) + (128 + 16) + (128 + 8)
    assert (
        rank_parameters(TINY, Layout(tp=2), 0, 0, 0)
        == rank_parameters(TINY, Layout(tp=2), 0, 1, 0)
        == 3 * layer + 5 * 8 + 32 + 16
    )
    tables = [rank_parameters(TINY, Layout(tp=4), 0, slice_, 0) for slice_ in range(4)]
    assert [tables[0] - each for each in tables] == [0, 0, 0, 2 * 8], "10 rows are 3, 3, 3 and 1"


@pytest.mark.parametrize(
    ("tensor", "layout", "pieces"),
    [
        (
            ShardedTensor(10, 8, 0),
            Layout(tp=2, shard=2),
            [[5 * 4, 5 * 4], [5 * 4, 5 * 4]],
        ),  # 10 rows are no four parts: columns are divided
        (ShardedTensor(12, 8, 0), Layout(tp=2, shard=2), [[3 * 8, 3 * 8], [3 * 8, 3 * 8]]),
        (ShardedTensor(10, 3, 0), Layout(tp=2, shard=2), [[5 * 2, 5 * 1], [5 * 2, 5 * 1]]),
        (ShardedTensor(9, 8, 0), Layout(tp=2, shard=2), [[5 * 4, 5 * 4], [4 * 4, 4 * 4]]),
        (ShardedTensor(10, 8, 0), Layout(shard=4), [[24, 24, 24, 8]]),
        (ShardedTensor(6, 8, 1), Layout(tp=2, shard=4), [[2 * 4, 2 * 4, 2 * 4, 0]] * 2),
        (ShardedTensor(6, 8, None), Layout(tp=2, shard=2), [[24, 24]] * 2),
        (ShardedTensor(10, 8, 0), Layout(tp=2), [[40], [40]]),
    ],
    ids=str,
)
def test_pieces_by_hand(tensor: ShardedTensor, layout: Layout, pieces: list[list[int]]) -> None:
    assert [
        [tensor.local_numel(layout, slice_, shard) for shard in range(layout.shard)]
        for slice_ in range(layout.tp)
    ] == pieces


def test_stages_by_hand() -> None:
    """Seven layers on two processes of two stages each: 2, 2, 2 and 1, dealt out in turn."""
    config = replace(TINY, n_layer=7)
    assert [layers_of(config, 2, stage, 1) for stage in range(2)] == [4, 3]
    assert [layers_of(config, 2, stage, 2) for stage in range(2)] == [4, 3]
    assert [layers_of(replace(TINY, n_layer=5), 2, stage, 2) for stage in range(2)] == [3, 2]
    assert [layers_of(replace(TINY, n_layer=6), 2, stage, 2) for stage in range(2)] == [3, 3]
    assert rank_parameters(config, Layout(pp=2), 0, 0, 0) == 4 * LAYER + 80 + 32
    assert rank_parameters(config, Layout(pp=2), 1, 0, 0) == 3 * LAYER + 80 + 16
    assert (
        rank_parameters(replace(TINY, n_layer=6), Layout(pp=2), 1, 0, 0, each=2)
        == 3 * LAYER + 80 + 16
    )


@pytest.mark.parametrize("pp", [1, 2, 3])
@pytest.mark.parametrize("size", ["gpt1", "gpt2"])
def test_processes_of_a_model_without_a_final_norm(size: str, pp: int) -> None:
    """Post-norm models have none: all stages together hold the model, a tied table once more."""
    config = ModelConfig.from_paper(find_size(size))
    layout = Layout(dp=2, pp=pp)
    together = sum(rank_parameters(config, layout, stage, 0, 0) for stage in range(pp))
    again = config.vocab_size * config.d_model if pp > 1 else 0
    assert together == config.parameters + again


@pytest.mark.parametrize(
    ("layout", "sequences", "options", "message"),
    [
        (Layout(tp=3), 8, {}, "tp=3 does not divide a context of 1024"),
        (Layout(tp=2, shard=5), 8, {}, "does not divide a width of 768"),
        (Layout(pp=8), 8, {"schedule": "loopedbfs"}, "loopedbfs makes 16 stages"),
        (Layout(dp=9), 8, {}, "reads 9 sequences at a time, but a batch is 8 sequences"),
        (Layout(dp=4, pp=4), 8, {}, "keeps 4 micro-batches of 4 replicas at work"),
        (Layout(tp=2), 8, {"precision": "fp8"}, "fp8 does not work with tp"),
    ],
)
def test_refusals_of_the_trainer(
    layout: Layout, sequences: int, options: dict[str, Any], message: str
) -> None:
    config = ModelConfig.from_paper(find_size("gpt2"))
    with pytest.raises(UsageError, match=message) as caught:
        check_division(layout, config, sequences, **options)
    assert caught.value.hint
    check_division(Layout(dp=2, shard=2, pp=2), config, 8)
