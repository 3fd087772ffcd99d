from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from gptcli.cost.layout import Layout
from gptcli.cost.memory import RECOMPUTE
from gptcli.cost.rank_memory import (
    CHUNK_BYTES,
    PIECE,
    RankMemory,
    StepConfig,
    layer_parameters,
    loss_memory,
    megatron_stage,
    rank_memory,
    stage_memory,
    undivided_bytes,
)
from gptcli.cost.scoreboard import measured_runs
from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError
from gptcli.model import loss
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.transformer import GPT, mup_groups
from gptcli.trainer.optimizer import AUTOCAST_DTYPES
from gptcli.trainer.parallelize import checkpoint_forward
from gptcli.trainer.schedule import Rates
from gptcli.trainer.step import TrainStep

SMALL = ModelConfig(n_layer=4, n_head=4, d_model=256, n_ctx=256, vocab_size=5000)
WORK = StepConfig(micro_batch=4, micro_batches=8)


def measured_peak(config: ModelConfig, work: StepConfig) -> int:
    """Bytes of all tensors at the fullest moment of a step by the trainer, from the allocator's own
    events.
    """
    torch.set_num_threads(1)
    model = GPT(config)
    model.init_weights(0)
    for block in model.h:
        block.forward = checkpoint_forward(
            block.forward, work.recompute, preserve_rng=config.dropout > 0
        )
    optimizer = torch.optim.AdamW(mup_groups(model, 1.0, 0.0), lr=1e-4, fused=True)
    seed = 0 if config.dropout else None
    train_step = TrainStep(
        model,
        optimizer,
        RankContext(torch.device("cpu")),
        clip=1.0,
        compute_dtype=AUTOCAST_DTYPES[work.precision],
        dropout_seed=seed,
    )
    tokens = torch.randint(
        config.vocab_size,
        (work.micro_batch, config.n_ctx),
        generator=torch.Generator().manual_seed(0),
    )

    def step(number: int) -> None:
        train_step.forward_backward(
            [(tokens, tokens)] * work.micro_batches, tokens.numel() * work.micro_batches, number
        )
        train_step.update(Rates(1e-4))
        train_step.optimizer.zero_grad()

    step(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step(1)
    now = most = 0
    events = (
        event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"
    )
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    # weights and moments were there before
    return most + 3 * sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "work"),
    [
        ({}, StepConfig(micro_batch=4, precision="fp32")),
        ({}, StepConfig(micro_batch=4)),
        ({}, StepConfig(micro_batch=2, micro_batches=3)),
        ({"vocab_size": 512, "n_layer": 8}, StepConfig(micro_batch=4, precision="fp32")),
        ({"vocab_size": 512, "n_layer": 8, "d_model": 128}, StepConfig(micro_batch=4)),
        (
            {"vocab_size": 50257, "n_layer": 2, "d_model": 64, "n_ctx": 128},
            StepConfig(micro_batch=2),
        ),
        (
            {"vocab_size": 50257, "n_layer": 1, "n_head": 1, "d_model": 16, "n_ctx": 512},
            StepConfig(micro_batch=4, precision="fp32"),
        ),
        (
            {"vocab_size": 256, "d_model": 512, "n_ctx": 64},
            StepConfig(micro_batch=1, precision="fp32"),
        ),
        (
            {"vocab_size": 256, "d_model": 512, "n_ctx": 64},
            StepConfig(micro_batch=4, micro_batches=2),
        ),
        ({"attention": "banded", "band": 64}, StepConfig(micro_batch=2)),
        ({"dropout": 0.1}, StepConfig(micro_batch=2, precision="fp32", fused=False)),
        ({"dropout": 0.1, "n_head": 8}, StepConfig(micro_batch=2, fused=False)),
        ({"tied": False}, StepConfig(micro_batch=2)),
        ({"vocab_size": 512, "n_layer": 8}, StepConfig(micro_batch=4, recompute="selective")),
        (
            {"vocab_size": 512, "n_layer": 8},
            StepConfig(micro_batch=4, recompute="selective", precision="fp32"),
        ),
        (
            {"vocab_size": 512, "n_layer": 8, "attention": "banded", "band": 64},
            StepConfig(micro_batch=4, recompute="selective"),
        ),
        ({"vocab_size": 512, "n_layer": 8}, StepConfig(micro_batch=4, recompute="full")),
    ],
    ids=str,
)
def test_the_trainers_own_peak(changes: dict[str, Any], work: StepConfig) -> None:
    """Within 5 %, where the issue asks for 10; one process, uncompiled, without the CPU kernels,
    which take less.
    """
    config = replace(SMALL, **changes)
    work = replace(work, piece=loss.PIECES["cpu"])
    assert rank_memory(config, Layout(), replace(work, in_place=True)).total == pytest.approx(
        measured_peak(config, work), rel=0.05
    )


def test_the_chunk_is_the_models() -> None:
    assert loss.CHUNK_BYTES == CHUNK_BYTES
    # fp32 logits and their exponentials, of one part of a chunk over the whole vocabulary
    assert 8 * 50304 / loss.EAGER_PARTS <= 12 * PIECE


@pytest.mark.parametrize("size", ["gpt2", "gpt3-xl", "gpt3"])
def test_state_is_sixteen_bytes_a_parameter_however_laid_out(size: str) -> None:
    """Summed over the stages of one pipeline, with the head's copy of the embedding where it stands
    on another stage.
    """
    config = ModelConfig.from_paper(find_size(size))
    for pp in (1, 2, 5):
        stages = [stage_memory(config, Layout(pp=pp), WORK, stage) for stage in range(pp)]
        parameters = config.parameters + (config.vocab_size * config.d_model if pp > 1 else 0)
        assert sum(memory.parameters for memory in stages) == 4 * parameters
        assert sum(memory.optimizer for memory in stages) == 8 * parameters


def test_layer_parameters_are_the_models() -> None:
    with torch.device("meta"):
        model = GPT(SMALL)
    assert layer_parameters(SMALL) == sum(
        parameter.numel() for parameter in model.h[0].parameters()
    )


layouts = st.builds(
    Layout,
    dp=st.sampled_from([1, 2]),
    shard=st.sampled_from([1, 2, 8]),
    tp=st.sampled_from([1, 2, 4]),
    pp=st.integers(1, 4),
)
step_configs = st.builds(
    StepConfig, micro_batch=st.integers(1, 4), micro_batches=st.integers(1, 8), recompute=st.sampled_from(RECOMPUTE),
    precision=st.sampled_from(["bf16", "fp32"]),
)  # fmt: skip


@given(layouts, step_configs)
@settings(max_examples=60)
def test_order(layout: Layout, work: StepConfig) -> None:
    """More tensor slices never need more, a larger micro-batch never less, and more replicas change
    nothing; the first two keep buckets of gradients, which a single process frees.
    """
    config = replace(SMALL, n_layer=7)
    total = rank_memory(config, layout, work).total
    if layout.tp < 4:
        assert rank_memory(config, replace(layout, tp=2 * layout.tp), work).total <= total
    assert (
        rank_memory(config, layout, replace(work, micro_batch=work.micro_batch + 1)).total >= total
    )
    more = rank_memory(config, replace(layout, dp=7), work).total
    # beside slices and stages replicas are FSDP's, with its copies
    if layout.dp > 1 or layout.shard > 1:
        assert more == total
    elif layout.processes == 1:
        assert total <= more <= total + 4 * config.parameters
    assert rank_memory(config, layout, work) == max(
        (stage_memory(config, layout, work, stage) for stage in range(layout.pp)),
        key=lambda memory: memory.total,
    )


def test_shards_divide_the_state() -> None:
    config = ModelConfig.from_paper(find_size("6.7B"))
    one, many = (rank_memory(config, Layout(shard=n), WORK) for n in (1, 64))
    assert many.parameters == pytest.approx(one.parameters / 64, rel=1e-3)
    assert many.optimizer == pytest.approx(one.optimizer / 64, rel=1e-3)
    assert many.copies < one.copies / 5, "two layers and the root are gathered at a time"


def test_parameters_gathered_by_fsdp() -> None:
    """Two layers in bf16, what is outside of the layers as it is, and the head's copy: at the
    head's moment, by hand.
    """
    config = ModelConfig(n_layer=4, n_head=4, d_model=64, n_ctx=16, vocab_size=50_000)
    memory = rank_memory(config, Layout(shard=8), StepConfig(micro_batch=1))
    layer, table = layer_parameters(config), 50_000 * 64
    assert memory.logits > 0, "the fullest moment is the head's"
    assert memory.copies == 2 * 2 * layer + 4 * (table + 64 * (16 + 2)) + 2 * table
    assert (
        memory.logits
        == loss_memory(50_000, 16, StepConfig(micro_batch=1), sliced=False)
        + 4 * table
        + 2 * 16 * 64
    )


def test_whole_logits_are_larger() -> None:
    config = ModelConfig.from_paper(find_size("gpt2"))
    work = StepConfig(micro_batch=16)
    chunked, whole = (
        rank_memory(config, Layout(), replace(work, whole_logits=flag)) for flag in (False, True)
    )
    rows = CHUNK_BYTES // (2 * 50257)
    assert whole.logits - chunked.logits == pytest.approx(
        12 * 50257 * 16 * 1024 - rows * 12 * PIECE, rel=0.01
    )


@pytest.mark.parametrize(
    "wrong",
    [{"micro_batch": 0}, {"micro_batches": 0}, {"precision": "fp64"}, {"recompute": "some"}],
)
def test_impossible_work(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        StepConfig(**wrong)  # type: ignore[arg-type]


# By hand, on layers of 3,432 parameters (12·C² + 13·C) at width 16, 4 at context 8, 2 heads: in
# bf16 each keeps for a token 12·C of the stream (norms' inputs in fp32, products' in bf16), 24·C of
# what is divided among slices, and 4 a head.
HAND = ModelConfig(n_layer=4, n_head=2, d_model=16, n_ctx=8, vocab_size=1000)
LAYER, TABLE, OUTSIDE = 12 * 256 + 13 * 16, 1000 * 16, 16 * (8 + 2)
KEPT = (12 + 24) * 16 + 4 * 2


def test_the_heads_moment() -> None:
    """The peak with 3 sequences of 8 tokens holds all layers' activations and the stream in both
    widths; of the loss the exponentials in bf16, and 10 bytes more of each entry of its last piece;
    the table's gradient and that of the stream; every weight in bf16.
    """
    parameters = 4 * LAYER + TABLE + OUTSIDE
    memory = rank_memory(HAND, Layout(), StepConfig(micro_batch=3))
    assert memory == RankMemory(
        parameters=4 * parameters,
        optimizer=8 * parameters,
        gradients=0,
        activations=24 * (4 * KEPT + 6 * 16),
        logits=24 * 12 * 1000 + 4 * TABLE + 2 * 24 * 16,
        copies=2 * (4 * LAYER + TABLE),
        workspace=0,
    )
    assert memory.total == sum(asdict(memory).values())
    more = rank_memory(HAND, Layout(), StepConfig(micro_batch=3, micro_batches=2))
    assert more == replace(memory, gradients=4 * parameters), "of the micro-batch before"


def test_the_heads_moment_in_fp32() -> None:
    """16·C and 48·C a token; exponentials and 8 bytes more; no copies."""
    memory = rank_memory(HAND, Layout(), StepConfig(micro_batch=3, precision="fp32"))
    assert memory.activations == 24 * (4 * ((16 + 48) * 16 + 8) + 8 * 16)
    assert memory.logits == 24 * 12 * 1000 + 4 * TABLE + 4 * 24 * 16
    assert memory.copies == 0


def test_the_first_layers_moment() -> None:
    """A small vocabulary and many tokens: nine widths of GELU's gradients in bf16 and one of the
    stream in fp32.
    """
    config = replace(HAND, vocab_size=20)
    memory = rank_memory(config, Layout(), StepConfig(micro_batch=16))
    assert memory.workspace == 128 * (9 * 2 + 4) * 16
    assert (memory.gradients, memory.logits) == (4 * 20 * 16, 0)
    assert memory.activations == 128 * (4 * KEPT + 6 * 16)
    again = rank_memory(config, Layout(), StepConfig(micro_batch=16, recompute="full"))
    assert again.activations == 128 * (4 * 4 * 16 + 6 * 16), "its input alone"
    assert again.workspace == memory.workspace + 128 * (KEPT - 4 * 16), (
        "and one layer's, computed again"
    )


def test_the_last_moment() -> None:
    """Few tokens, and a head whose pieces take little: every gradient, and the embedding's
    twice.
    """
    memory = rank_memory(HAND, Layout(), StepConfig(precision="fp32", piece=1))
    parameters = 4 * LAYER + TABLE + OUTSIDE
    assert memory == RankMemory(
        parameters=4 * parameters,
        optimizer=8 * parameters,
        gradients=4 * parameters,
        workspace=4 * TABLE,
    )


def test_stages_keep_what_is_in_flight() -> None:
    """The first of two under one-forward-one-backward: two micro-batches of its layers, and no
    head; a table on either.
    """
    work = StepConfig(micro_batch=16, micro_batches=8)
    config = replace(HAND, vocab_size=20)
    first, last = (stage_memory(config, Layout(pp=2), work, stage) for stage in (0, 1))
    assert first.activations == 128 * 2 * 2 * KEPT
    assert last.activations == 128 * (2 * KEPT + 6 * 16)
    assert first.parameters == 4 * (2 * LAYER + 20 * 16 + 8 * 16)
    assert last.parameters == 4 * (2 * LAYER + 20 * 16 + 2 * 16)
    assert first.copies == 2 * 2 * LAYER
    assert last.copies == 2 * (2 * LAYER + 20 * 16)
    assert first.gradients == first.parameters
    assert last.gradients == last.parameters + 4 * 20 * 16
    assert rank_memory(config, Layout(pp=2), work) == max(
        first, last, key=lambda memory: memory.total
    )
    all_of_them = stage_memory(config, Layout(pp=2), replace(work, schedule="gpipe"), 0)
    assert all_of_them.activations == 4 * first.activations


def test_slices_divide_a_layer_and_the_stream() -> None:
    """The loss of a slice by 12 bytes an entry; norms and the outputs' biases, 6·C, are whole."""
    memory = rank_memory(HAND, Layout(tp=2), StepConfig(micro_batch=3))
    layer = (12 * 256 + 7 * 16) // 2 + 6 * 16
    assert memory.activations == 24 * (4 * KEPT + 6 * 16) // 2
    assert memory.logits == 12 * 24 * 500 + 4 * TABLE // 2 + 2 * 24 * 16
    assert memory.copies == 2 * (4 * layer + TABLE // 2)
    assert layer_parameters(HAND, 2) == layer


def test_stages_of_shards_keep_what_they_gathered() -> None:
    """All their layers in bf16, and gradients that are whole until the last micro-batch."""
    work = StepConfig(micro_batch=16, micro_batches=2)
    config = replace(HAND, n_layer=6, vocab_size=20)
    first, last = (stage_memory(config, Layout(shard=2, pp=2), work, stage) for stage in (0, 1))
    assert first.copies == 2 * 3 * LAYER + 4 * (20 * 16 + 8 * 16)
    assert first.gradients == 4 * (3 * LAYER + 20 * 16 + 8 * 16)
    assert first.parameters == first.gradients // 2
    assert first.workspace == 128 * (9 * 2 + 4) * 16 + 4 * LAYER, (
        "and the gradient of the layer at work, whole"
    )
    assert last.copies == 2 * 3 * LAYER + 4 * (20 * 16 + 2 * 16) + 2 * 20 * 16


def test_what_is_kept_undivided_where_there_is_room() -> None:
    """6 bytes of each weight with shards, 2 if there is room for no more or for replicas of slices;
    nothing without FSDP.
    """
    config = ModelConfig(n_layer=2, n_head=4, d_model=64, n_ctx=32)
    n = config.parameters
    for layout, room, wanted in (
        (Layout(shard=8), 6 * n, 6 * n),
        (Layout(shard=8), 6 * n - 1, 2 * n),
        (Layout(shard=8), 2 * n - 1, 0),
        (Layout(shard=4, tp=2, pp=2), n, 2 * n // 4),
        (Layout(dp=4, tp=2), 6 * n, n),
        (Layout(dp=8), 6 * n, 0),
        (Layout(tp=8), 6 * n, 0),
        (Layout(), 6 * n, 0),
    ):
        assert undivided_bytes(config, layout, 1000, 1000 + room) == wanted, layout


def test_a_loss_in_chunks() -> None:
    """Half a GiB of logits at a time, of a slice with what becomes of them; never less than one
    row.
    """
    chunk = StepConfig(micro_batch=1)
    assert CHUNK_BYTES == 2**29
    entries = 25_128
    rows = 2**29 // (2 * entries)
    assert loss_memory(entries, 10**6, chunk, sliced=False) == rows * max(
        2 * entries + 10 * (entries - PIECE), 12 * PIECE
    )
    assert loss_memory(entries, 100, chunk, sliced=False) == 100 * 12 * PIECE
    assert loss_memory(2 * PIECE, 100, chunk, sliced=False) == 100 * (4 * PIECE + 10 * PIECE), (
        "a last piece that is whole"
    )
    wide = replace(chunk, precision="fp32")
    assert loss_memory(2 * PIECE, 10**6, wide, sliced=False) == 2**29 // (8 * PIECE) * (
        8 * PIECE + 8 * PIECE
    )
    assert (
        loss_memory(entries, 10**6, chunk, sliced=True) == 12 * (2**29 // (12 * entries)) * entries
    )
    assert loss_memory(entries, 100, chunk, sliced=True) == 12 * 100 * entries
    assert loss_memory(2**29, 100, chunk, sliced=True) == 12 * 2**29, "one row at the least"
    assert loss_memory(2**29, 100, chunk, sliced=False) == 2 * 2**29 + 10 * PIECE
    assert (
        loss_memory(entries, 10**6, replace(chunk, whole_logits=True), sliced=False)
        == 12 * 10**6 * entries
    )


def test_small_parts_of_the_memory_by_hand() -> None:
    assert RankMemory(parameters=1, optimizer=2).total == 3
    assert rank_memory(HAND, Layout(), StepConfig(micro_batch=3)) == rank_memory(
        HAND, Layout(), StepConfig(micro_batch=3, precision="fp16")
    )
    assert rank_memory(HAND, Layout(), StepConfig(micro_batch=3)) == rank_memory(
        HAND, Layout(), StepConfig(micro_batch=3, precision="fp8")
    )
    wide = rank_memory(
        replace(HAND, n_head=4, vocab_size=50_000), Layout(tp=2), StepConfig(micro_batch=3)
    )
    assert wide.logits == 12 * 24 * 25_000 + 4 * 25_000 * 16 + 2 * 24 * 16, (
        "a slice is in one piece, however large"
    )
    with pytest.raises(UsageError, match="pp=5 is more stages"):
        rank_memory(HAND, Layout(pp=5), WORK)


def test_masks_of_dropout_by_hand() -> None:
    """One byte an element where attention is fused; on a CPU, which writes scores, each is as wide
    as a float: 8 of 24·C in the stream, and with softmax and what dropout leaves 12 a score, of
    which each token has 8 a head."""
    drops = replace(HAND, dropout=0.1)
    fused, written = (
        rank_memory(drops, Layout(), StepConfig(micro_batch=3, precision="fp32", fused=fused))
        for fused in (True, False)
    )
    assert fused.activations == 24 * (4 * ((18 + 48) * 16 + 8) + 8 * 16)
    assert written.activations == 24 * (4 * ((24 + 48) * 16 + 12 * 2 * 8) + 8 * 16)


def test_a_head_of_its_own() -> None:
    untied = replace(HAND, tied=False)
    parameters = 4 * LAYER + 2 * TABLE + OUTSIDE
    assert rank_memory(untied, Layout(), StepConfig(micro_batch=3)).parameters == 4 * parameters
    sharded = rank_memory(untied, Layout(shard=2), StepConfig(micro_batch=3))
    assert sharded.copies == 2 * 2 * LAYER + 4 * (2 * TABLE + OUTSIDE) + 2 * TABLE
    single = rank_memory(untied, Layout(shard=2), StepConfig(micro_batch=3, precision="fp32"))
    assert single.copies == 4 * 2 * LAYER + 4 * (2 * TABLE + OUTSIDE), (
        "the head needs no other width"
    )
    assert sharded.workspace == 0


def test_the_last_moment_of_autocast_has_no_copies() -> None:
    memory = rank_memory(HAND, Layout(), StepConfig(piece=1))
    assert (memory.activations, memory.copies, memory.workspace) == (0, 0, 4 * TABLE)


def test_the_last_stage_is_the_fullest_where_the_head_is_large() -> None:
    config = replace(HAND, vocab_size=10**5)
    fullest = rank_memory(config, Layout(pp=4), StepConfig(micro_batch=8, micro_batches=4))
    assert fullest == stage_memory(
        config, Layout(pp=4), StepConfig(micro_batch=8, micro_batches=4), 3
    )
    assert fullest.logits > 0


MEGATRON_RUNS = {
    f"{run.model}, {run.layout}": run for run in measured_runs() if run.memory_bytes is not None
}


@pytest.mark.parametrize("name", MEGATRON_RUNS)
def test_measured_memory_by_megatrons_recipe(name: str) -> None:
    """SimuMax's runs of Llama 3 on B200: allocated memory, within 2 %."""
    run = MEGATRON_RUNS[name]
    found = rank_memory(run.config, run.layout, run.work, "megatron")
    assert found.total == pytest.approx(run.memory_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("layout", "micro_batches", "sequence_parallel", "measured"),
    [  # no distributed optimizer in the last three: one replica counts
        (Layout(dp=8), 1, True, 4_607_767_040),
        (Layout(pp=2), 2, True, 3_637_371_904),
        (Layout(pp=4), 4, True, 2_744_478_720),
        (Layout(tp=4), 4, False, 1_597_092_352),
    ],
)
def test_golden_values_of_megatron(
    layout: Layout, micro_batches: int, sequence_parallel: bool, measured: int
) -> None:
    """Megatron-LM's functional tests of 12 layers of 512 (gpt3_345m_nightly_dgx_a100_1N8G_mcore),
    mem-max-allocated-bytes of the last rank: attention of their own, without fusion.
    """
    padded = -(-50257 // (128 * layout.tp)) * 128 * layout.tp
    config = ModelConfig(
        n_layer=12, n_head=8, d_model=512, n_ctx=1024, vocab_size=padded, dropout=0.1
    )
    work = StepConfig(micro_batch=4, micro_batches=micro_batches, fused=False)
    found = megatron_stage(config, layout, work, layout.pp - 1, sequence_parallel=sequence_parallel)
    assert found.total == pytest.approx(measured, rel=0.05)


def test_megatrons_selective_recomputation_frees_norms_and_gelu() -> None:
    """Outputs of two norms and of GELU, of 16 bits; of unfused attention only the scores."""
    some, none = (
        rank_memory(SMALL, Layout(), replace(WORK, recompute=kind), "megatron").activations
        for kind in ("selective", "none")
    )
    tokens = WORK.micro_batch * SMALL.n_ctx
    in_flight = SMALL.n_layer * min(1, WORK.micro_batches)
    assert none - some == 2 * tokens * (2 * SMALL.d_model + SMALL.d_ff) * in_flight


def test_megatrons_state_is_eighteen_bytes_a_parameter() -> None:
    found = rank_memory(SMALL, Layout(), WORK, "megatron")
    assert found.parameters + found.gradients + found.optimizer == 9 * found.parameters
    divided = rank_memory(SMALL, Layout(dp=4), WORK, "megatron")
    assert 4 * divided.optimizer == found.optimizer
    full, none = (
        rank_memory(SMALL, Layout(), replace(WORK, recompute=kind), "megatron")
        for kind in ("full", "none")
    )
    assert full.activations < none.activations
