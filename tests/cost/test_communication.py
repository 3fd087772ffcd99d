"""What a step moves, counted by hand on a model of a few numbers; tests/trainer/test_preflight.py
holds the same against real processes.

3 layers, width 8, context 4, vocabulary 10, 2 sequences at a time: 8 positions, a stream of 64
elements, 872 parameters a layer (12·C² + 13·C), and outside of layers 80 of the table, 32 of
positions and 16 of the last norm.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptcli.cost.communication import StepTraffic, step_traffic
from gptcli.cost.hardware import Precision
from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import StepConfig
from gptcli.model.config import ModelConfig

TINY = ModelConfig(n_layer=3, n_head=4, d_model=8, n_ctx=4, vocab_size=10)
WORK = StepConfig(micro_batch=2, micro_batches=3)
LAYER, OUTSIDE = 872, 80 + 32 + 16


def test_one_process_moves_nothing() -> None:
    assert step_traffic(TINY, Layout(), WORK, 0) == StepTraffic()


@pytest.mark.parametrize(
    "work", [WORK, replace(WORK, micro_batches=1), replace(WORK, precision="fp32")], ids=str
)
def test_replicas_add_up_every_gradient_once(work: StepConfig) -> None:
    assert step_traffic(TINY, Layout(dp=2), work, 0) == StepTraffic(dp=4 * (3 * LAYER + OUTSIDE))
    assert step_traffic(TINY, Layout(dp=5), work, 0) == StepTraffic(dp=4 * TINY.parameters)


@pytest.mark.parametrize(("precision", "e"), [("bf16", 2), ("fp32", 4)])
def test_slices_gather_and_scatter_the_stream(precision: Precision, e: int) -> None:
    """Four times each a layer (Megatron's two all-reduces forwards and two backwards); the
    embedding's in fp32, the head's once each way, and three numbers a position for the loss. Norms
    (4·C a layer) and, outside, positions and the last norm add their gradients up."""
    each = 3 * 8 * e * 64 + 2 * 4 * 64 + 2 * e * 64 + 3 * 4 * 8
    norms = 4 * 3 * 32 + 4 * (32 + 16)
    for tp in (2, 4):
        assert step_traffic(
            TINY, Layout(tp=tp), replace(WORK, precision=precision), 0
        ) == StepTraffic(tp=3 * each + norms)


def test_shards_are_gathered_twice_and_their_gradients_added_up() -> None:
    """Two ways in bf16 and one in fp32, of each micro-batch: 8 bytes a parameter of a layer;
    outside of layers, twice fp32's 4.
    """
    assert step_traffic(TINY, Layout(shard=2), WORK, 0) == StepTraffic(
        shard=3 * (8 * 3 * LAYER + 8 * OUTSIDE)
    )
    wide = step_traffic(TINY, Layout(shard=2), replace(WORK, precision="fp32", micro_batches=1), 0)
    assert wide == StepTraffic(shard=12 * 3 * LAYER + 8 * OUTSIDE)


def test_uneven_shards_are_filled_up() -> None:
    """Thirds of 8 rows are 3, of 32 are 11, of 10 and of 4 are 4 and 2; 24 rows divide."""
    layer = 4 * 9 + (24 * 8 + 24) + (9 * 8 + 9) + (33 * 8 + 33) + (9 * 32 + 9)
    outside = 12 * 8 + 6 * 8 + 2 * 9
    assert step_traffic(TINY, Layout(shard=3), WORK, 0) == StepTraffic(
        shard=3 * (8 * 3 * layer + 8 * outside)
    )


def test_replicas_of_shards_add_up_a_shard() -> None:
    moved = step_traffic(TINY, Layout(dp=2, shard=2), WORK, 0)
    assert moved == replace(
        step_traffic(TINY, Layout(shard=2), WORK, 0), dp=4 * TINY.parameters // 2
    )


def test_shards_of_slices_add_up_norms_of_every_micro_batch() -> None:
    """In the products' precision, before FSDP adds them to those of others."""
    alone, sharded = (step_traffic(TINY, Layout(tp=2, shard=shard), WORK, 0).tp for shard in (1, 2))
    assert alone - (4 * 3 * 32 + 4 * 48) == sharded - 3 * (2 * 3 * 32 + 4 * 48)


def test_stages_send_what_they_made_and_what_came_back() -> None:
    """In fp32, of each micro-batch; first and last also the gradient of the table that they
    share.
    """
    ends = 3 * 4 * 64 + 4 * 10 * 8
    assert [step_traffic(TINY, Layout(pp=3), WORK, stage).pp for stage in range(3)] == [
        ends,
        3 * 2 * 4 * 64,
        ends,
    ]
    untied = replace(TINY, tied=False)
    assert [step_traffic(untied, Layout(pp=3), WORK, stage).pp for stage in range(3)] == [
        3 * 4 * 64,
        3 * 2 * 4 * 64,
        3 * 4 * 64,
    ]
    assert step_traffic(TINY, Layout(pp=3), WORK, 1) == StepTraffic(pp=3 * 2 * 4 * 64)


def test_slices_of_stages_send_a_slice() -> None:
    moved = step_traffic(TINY, Layout(pp=3, tp=4), WORK, 0)
    assert moved.pp == 3 * 4 * 64 // 4 + 4 * 3 * 8, "a quarter of 10 rows, rounded up"
    middle = step_traffic(TINY, Layout(pp=3, tp=4), WORK, 1)
    assert middle == StepTraffic(tp=3 * 8 * 2 * 64 + 4 * 32, pp=3 * 2 * 4 * 64 // 4), (
        "one layer, neither embedding nor head"
    )
    last = step_traffic(TINY, Layout(pp=3, tp=4), WORK, 2)
    assert last.tp == 3 * (8 * 2 * 64 + 2 * 2 * 64 + 3 * 4 * 8) + 4 * 32 + 4 * 16


def test_interleaved_stages_send_more_often() -> None:
    """Of four stages on two processes, the first process's two send three times: forwards, and
    forwards and back.
    """
    config = replace(TINY, n_layer=4, tied=False)
    assert [step_traffic(config, Layout(pp=2), WORK, stage, each=2) for stage in (0, 1)] == [
        StepTraffic(pp=3 * 3 * 4 * 64)
    ] * 2


def test_sharded_stages_exchange_gradients_once() -> None:
    """Kept whole until the last micro-batch; layers gathered twice for each of them."""
    outside = 80 + 32
    moved = step_traffic(TINY, Layout(shard=2, pp=3), WORK, 0)
    assert moved.shard == 3 * (4 * LAYER + 4 * outside) + 4 * (LAYER + outside)
    slices = step_traffic(TINY, Layout(shard=2, pp=3, tp=2), WORK, 0)
    assert slices.tp == step_traffic(TINY, Layout(pp=3, tp=2), WORK, 0).tp, "norms once, in fp32"
