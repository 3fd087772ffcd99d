"""Predicted speeds against published measurements (peers' tables, under GPT_TEST_DATA's neighbour
`cost`), and against counts by hand; the bytes of a step's collectives, counted by hand.
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from gptcli.cost.cluster import make_cluster
from gptcli.cost.flops import Shape, layer_matrices
from gptcli.cost.hardware import Gpu, Precision, find_gpu, gpus, read_table, usual_precision
from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.step_time import (
    TRAINERS,
    Constants,
    Overlap,
    StepTime,
    StepTraffic,
    Trainer,
    check_trainer,
    constants_for,
    step_time,
    step_traffic,
    uncertainty,
)
from gptcli.cost.target import batch_of
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

A100 = find_gpu("a100")
POWER = read_table("throughput.toml")["families"]["blackwell"]["power"]
CONFIG = ModelConfig.from_paper(find_size("1.3B"))
WORK = StepConfig(micro_batch=4, micro_batches=8)


def table(real_data: Path, name: str) -> Path:
    path = real_data.parent / "cost" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.mark.real_data
def test_published_runs(real_data: Path) -> None:
    """GPU-hours of runs that others published, from size, tokens, GPU and count: dense ones whose
    shape is known, by the trainer of their kind.
    """
    factors, inside = [], []
    with open(table(real_data, "published_runs.csv"), encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["n_layer"]]
    for row in rows:
        d_model, n_ctx = int(row["d_model"]), int(row["seq_len"])
        n_head = d_model // (128 if d_model % 128 == 0 and d_model >= 2048 else 64)
        config = ModelConfig(
            n_layer=int(row["n_layer"]), n_head=n_head, d_model=d_model, n_ctx=n_ctx
        )
        gpu, count = find_gpu(row["hardware"]), int(row["n_gpu"] or 512)
        flops = 6 * float(row["params"]) * float(row["tokens"])
        mfu = flops / (float(row["gpu_hours"]) * 3600 * gpu.peak_flops)
        if row["id"].startswith("TRAP"):
            assert mfu > 1, "impossible, as the row says"
            continue
        assert mfu < 0.65
        trainer: Trainer = "megatron" if float(row["params"]) > 3e9 else "fsdp"
        if "llm.c" in row["id"]:
            trainer = "fused"
        batch, _ = batch_of(config, None, None)
        cluster, _ = make_cluster(
            gpu, count, model=config, sequences=batch // n_ctx, flops=flops, trainer=trainer
        )
        hours = flops / cluster.flops / 3600
        factors.append(max(hours / float(row["gpu_hours"]), float(row["gpu_hours"]) / hours))
        inside.append(factors[-1] <= cluster.uncertainty_factor)
    assert len(factors) == 20
    assert statistics.median(factors) <= 1.2
    assert 0.75 <= statistics.fmean(inside) <= 0.9
    page = Path(__file__).parents[2] / "examples" / "docs" / "pages" / "how-to" / "cost.md"
    within = sum(factor <= 1.3 for factor in factors)
    assert (
        f"20 published ones, the median is off by a factor of {statistics.median(factors):.2f}, "
        f"{within} are within 1.3, and {sum(inside)} in the printed range."
    ) in " ".join(page.read_text(encoding="utf-8").split())


def test_parts_add_up_to_the_time() -> None:
    time = step_time(CONFIG, Layout(shard=8), WORK, A100)
    assert time.total == pytest.approx(sum(time._asdict().values()))
    assert time.bubble == time.tensor == time.replicas == 0


def test_the_cost_of_each_axis() -> None:
    alone = step_time(CONFIG, Layout(), WORK, A100)
    assert step_time(CONFIG, Layout(dp=8), WORK, A100).replicas > 0
    slices = step_time(CONFIG, Layout(tp=4), WORK, A100)
    assert slices.products == pytest.approx(alone.products / 4)
    assert slices.tensor > 0
    stages = step_time(CONFIG, Layout(pp=4), WORK, A100)
    busy = stages.total - stages.bubble
    assert stages.bubble < 3 / 8 * busy, "(pp - 1) of 8 micro-batches, of stages without the head"
    assert stages.bubble > 3 / 8 * busy / 2
    near, far = (step_time(CONFIG, Layout(shard=n), WORK, A100).shard for n in (8, 64))
    assert far > near, "between machines"


def test_recomputation_costs_a_third_of_the_products() -> None:
    none, selective, full = (
        step_time(CONFIG, Layout(), replace(WORK, recompute=kind), A100)
        for kind in ("none", "selective", "full")
    )
    head = 6 * CONFIG.vocab_size * CONFIG.d_model
    layers = 72 * CONFIG.n_layer * CONFIG.d_model**2
    assert full.products / none.products == pytest.approx((layers * 4 / 3 + head) / (layers + head))
    assert none.products == selective.products
    assert none.total < selective.total < full.total


def test_no_bf16_on_a_v100_and_no_fp8_on_an_a100() -> None:
    with pytest.raises(UsageError, match="v100 has no bf16") as caught:
        step_time(CONFIG, Layout(), WORK, find_gpu("v100"))
    assert "fp16" in str(caught.value.hint)
    with pytest.raises(UsageError, match="a100 has no fp8"):
        step_time(CONFIG, Layout(), replace(WORK, precision="fp8"), A100)


def test_the_range_is_wider_where_nothing_was_measured() -> None:
    wide = uncertainty(A100, "gpt")
    for trainer, gpu in (("fsdp", "a100"), ("fused", "h100"), ("megatron", "b200")):
        assert uncertainty(find_gpu(gpu), cast(Trainer, trainer)) < wide
    for trainer, gpu in (("fsdp", "b200"), ("megatron", "v100"), ("fused", "mi300x")):
        assert uncertainty(find_gpu(gpu), cast(Trainer, trainer)) == wide


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_on_every_gpu_has_positive_constants(trainer: Trainer) -> None:
    for gpu in gpus():
        assert all(value > 0 for value in constants_for(trainer, gpu)._asdict().values())
        assert step_time(CONFIG, Layout(), replace(WORK, precision=usual_precision(gpu)), gpu, trainer=trainer).total > 0  # fmt: skip


def test_an_unknown_trainer_is_refused() -> None:
    check_trainer("megatron")
    with pytest.raises(UsageError, match="unknown trainer 'megatrn'") as caught:
        check_trainer("megatrn")
    assert "megatron" in str(caught.value.hint)


def test_megatrons_optimizer_is_divided_over_replicas() -> None:
    ours, theirs = (
        step_time(FEW, Layout(dp=8), DO, GPU, ROUND, trainer=trainer)
        for trainer in ("gpt", "megatron")
    )
    update = 28 * (8 * LAYER + TABLE) / 1e10
    assert ours.memory - theirs.memory == pytest.approx(7 / 8 * update)


def test_interleaved_stages_wait_less() -> None:
    plain, twice = (step_time(FEW, Layout(pp=4), DO, GPU, ROUND, interleave=n) for n in (1, 2))
    assert twice.bubble == pytest.approx(plain.bubble / 2)
    assert (
        step_time(FEW, Layout(pp=4), replace(DO, schedule="interleaved1f1b"), GPU, ROUND) == twice
    )


def test_shapes_of_today_by_hand() -> None:
    """Llama 2 7B: 4·4096² and 3·4096·11008 weights a layer, its printed 6,738,415,616 parameters."""
    llama = Shape(
        n_layer=32, d_model=4096, n_head=32, n_kv_head=32, d_ff=11008, gated=True, tied=False,
        vocab_size=32000, n_ctx=4096,
    )  # fmt: skip
    assert llama.parameters == 6_738_415_616
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    time = step_time(llama, Layout(), DO, GPU, ROUND)
    tokens = 4 * 2 * 4096
    assert time.products == pytest.approx(tokens * 6 * (32 * layer + 32000 * 4096) / 0.5e12)
    grouped = replace(llama, n_head=64, n_kv_head=8, d_model=8192)
    assert layer_matrices(grouped) == 2 * 8192**2 * (1 + 1 / 8) + 3 * 8192 * 11008


# A GPU and constants of round numbers, so that every part of a step can be counted by hand.
GPU = Gpu(
    name="x", aliases=(), family="ampere", device_names=(), peak_flops=1e12, fp32_flops=1e11, bf16=True, memory_bytes=10**10,
    bandwidth=1e10, fp8_flops=4e12, link=1e9, network=1e7, watts=None, source="", url="", date="",
)  # fmt: skip
ROUND = Constants(
    products=0.5, attention=0.25, path=100.0, head=10.0, launch=0.001, step=0.01, exposed=0.5, tensor=1.0, spread=0.5, fp8=2.0,
    cast=0.0, latency=0.0, overlap=0.25, weights=0.0,
)  # fmt: skip
FEW = ModelConfig(n_layer=8, n_head=16, d_model=16, n_ctx=8, vocab_size=1000)
DO = StepConfig(micro_batch=2, micro_batches=4)  # 16 tokens four times
LAYER, TABLE = 12 * 256 + 13 * 16, 16_000


def seconds(
    layout: Layout, work: StepConfig = DO, gpu: Gpu = GPU, config: ModelConfig = FEW
) -> StepTime:
    return step_time(config, layout, work, gpu, ROUND)


def test_one_gpu_by_hand() -> None:
    """72·C² FLOPs a token and layer, 6·C an entry of the vocabulary, 12·C a key that is seen: 4 of
    8, its own counted as half. 100 bytes of a unit of width, 10 of an entry, 28 of a parameter once
    a step."""
    expected: dict[str, Any] = dict(  # noqa: C408
        products=pytest.approx(4 * 16 * (72 * 8 * 256 + 6 * 16_000) / 0.5e12),
        attention=pytest.approx(4 * 16 * 12 * 8 * 16 * 4 / 0.25e12),
        memory=pytest.approx(4 * 16 * (8 * 16 * 100 + 1000 * 10) / 1e10 + 28 * (8 * LAYER + TABLE) / 1e10),
        launch=pytest.approx(4 * 8 * 0.001 + 0.01),
        tensor=0.0, shard=0.0, replicas=0.0, bubble=0.0,
    )  # fmt: skip
    assert seconds(Layout()) == StepTime(**expected)


def test_banded_layers_see_less() -> None:
    """2 · (1 - 2/16) = 1.75 keys in every other layer."""
    banded = seconds(Layout(), config=replace(FEW, attention="banded", band=2))
    assert banded.attention / seconds(Layout()).attention == pytest.approx((4 + 1.75) / 8)


def test_fp8_and_fp32_products() -> None:
    plain, narrow = seconds(Layout()), seconds(Layout(), replace(DO, precision="fp8"))
    assert narrow.products == pytest.approx(plain.products / 2), (
        "by the constant, whatever the peak"
    )
    assert narrow.attention == plain.attention
    single = seconds(Layout(), replace(DO, precision="fp32"))
    assert single.products == pytest.approx(10 * plain.products)


def test_products_move_weights_and_casts_move_activations_by_hand() -> None:
    """A weight is read twice in 16 bits, and its fp32 gradient is read and written, or of a single
    micro-batch written; casts move 40 bytes of a unit of width."""
    moving = ROUND._replace(weights=0.5, cast=40.0)
    for work, each in (
        (DO, 12),
        (replace(DO, micro_batches=1), 8),
        (replace(DO, precision="fp32"), 16),
    ):
        more = step_time(FEW, Layout(), work, GPU, moving).memory - seconds(Layout(), work).memory
        assert more == pytest.approx(work.micro_batches * 8 * 12 * 256 * each * 0.5 / 1e10)
    cast = replace(DO, precision="fp8")
    more = step_time(FEW, Layout(), cast, GPU, moving).memory - seconds(Layout(), cast).memory
    assert more == pytest.approx(4 * 8 * (12 * 256 * 12 * 0.5 + 16 * 16 * 40) / 1e10)


def test_scores_that_are_written_by_hand() -> None:
    """16 heads of 8 keys for each of 16 tokens, 32 bytes each, or 45 with the forward pass again."""
    for kind, each in (("none", 32), ("selective", 45), ("full", 45)):
        work = replace(DO, recompute=cast("Any", kind))
        written = seconds(Layout(), replace(work, fused=False)).memory
        assert written - seconds(Layout(), work).memory == pytest.approx(
            4 * 8 * 16 * 16 * 8 * each / 1e10
        )


def test_collectives_that_are_overlapped_by_hand() -> None:
    """Eight collectives a layer of 1 ms each, a quarter of which is left; replicas' are hidden by
    half, or not at all."""
    slow = ROUND._replace(latency=0.001, tensor=1.5)

    def time(layout: Layout, overlap: Overlap) -> StepTime:
        return step_time(FEW, layout, DO, GPU, slow, overlap=overlap)

    sent = 1.5 * 2 * 3 / 4 * 16 * 16 * 2 / 1e9
    assert time(Layout(tp=4), "replicas").tensor == pytest.approx(4 * 4 * 8 * (sent + 0.002))
    assert time(Layout(tp=4), "all").tensor == pytest.approx(4 * 4 * 8 * (sent + 0.002) / 4)
    for part in ("replicas", "shard"):
        layout = Layout(dp=4) if part == "replicas" else Layout(shard=4)
        hidden, seen = (getattr(time(layout, name), part) for name in ("replicas", "none"))
        assert seen == pytest.approx(3 * hidden)


def test_power_limits_products_on_blackwell() -> None:
    """GB300 has GB200's peak and 1,400 W for its 1,200; on a Hopper only the peak counts."""
    slow, fast = (constants_for("megatron", find_gpu(name)) for name in ("gb200", "gb300"))
    assert fast.products / slow.products == pytest.approx((1400 / 1200) ** POWER, rel=1e-6)
    h100 = find_gpu("h100")
    assert constants_for("fsdp", replace(h100, watts=350.0)) == constants_for("fsdp", h100)


def test_a_rack_of_72_is_one_node() -> None:
    """All of them by NVLink; a B200 leaves its node of 8."""
    near, far = (
        step_time(CONFIG, Layout(dp=64), WORK, find_gpu(name)).replicas
        for name in ("gb200", "b200")
    )
    assert near < far / 2


def test_work_done_again() -> None:
    none, selective, full = (
        seconds(Layout(), replace(DO, recompute=kind)) for kind in ("none", "selective", "full")
    )
    head, path, update = 1000 * 10, 8 * 16 * 100, 28 * (8 * LAYER + TABLE) / 1e10
    assert (full.attention / none.attention, selective.attention / none.attention) == pytest.approx(
        (4 / 3, 1)
    )
    for again in (selective, full):
        assert (again.memory - update) / (none.memory - update) == pytest.approx(
            (path * 4 / 3 + head) / (path + head)
        )


def test_slices_exchange_by_hand() -> None:
    """Megatron's four all-reduces a layer, each of which moves 2·(t-1)/t of 16·16 bf16 numbers; six
    with the forward pass again.
    """
    alone, slices = seconds(Layout()), seconds(Layout(tp=4))
    once = 2 * 3 / 4 * 16 * 16 * 2 / 1e9
    assert slices.tensor == pytest.approx(4 * 4 * 8 * once)
    assert seconds(Layout(tp=4), replace(DO, recompute="full")).tensor == pytest.approx(
        4 * 6 * 8 * once
    )
    assert slices.products == pytest.approx(alone.products / 4)
    assert slices.attention == pytest.approx(alone.attention / 4)
    mine = 8 * ((12 * 256 + 7 * 16) / 4 + 6 * 16) + TABLE / 4
    assert slices.memory == pytest.approx(
        4 * 16 * (8 * 16 * 100 + 1000 * 10) / 4 / 1e10 + 28 * mine / 1e10
    )
    assert seconds(Layout(tp=16)).tensor == pytest.approx(
        4 * 4 * 8 * 2 * 15 / 16 * 16 * 16 * 2 / 8e7
    ), "eight cards of a machine"


def test_shards_are_gathered_by_hand() -> None:
    """Thrice 2 bytes a parameter, half of it hidden; over two machines the network's eight cards,
    and half as much again.
    """
    parameters = 8 * LAYER + TABLE
    near, far = seconds(Layout(shard=8)), seconds(Layout(shard=16))
    assert near.shard == pytest.approx(4 * 0.5 * 3 * 2 * parameters * 7 / 8 / 1e9)
    assert far.shard == pytest.approx(4 * 0.5 * 3 * 2 * parameters * 15 / 16 / 8e7 * 1.5)
    assert seconds(Layout(shard=32)).shard / far.shard == pytest.approx(
        31 / 32 / (15 / 16) * 2 / 1.5
    )
    assert near.memory - 28 * parameters / 8 / 1e10 == pytest.approx(
        seconds(Layout()).memory - 28 * parameters / 1e10
    )
    beside = seconds(Layout(shard=8, tp=2))
    mine = 8 * ((12 * 256 + 7 * 16) / 2 + 6 * 16) + TABLE / 2
    assert beside.shard == pytest.approx(4 * 0.5 * 3 * 2 * mine * 7 / 8 / 4e7 * 1.5), (
        "four cards: every other GPU is of another slice"
    )


def test_replicas_average_by_hand() -> None:
    """Twice 4 bytes a parameter, once a step."""
    parameters = 8 * LAYER + TABLE
    assert seconds(Layout(dp=4)).replicas == pytest.approx(0.5 * 2 * 4 * parameters * 3 / 4 / 1e9)
    assert seconds(Layout(dp=16)).replicas == pytest.approx(
        0.5 * 2 * 4 * parameters * 15 / 16 / 8e7 * 1.5
    )
    assert seconds(Layout(dp=4, shard=8)).replicas == pytest.approx(
        0.5 * 2 * 4 * parameters / 8 * 3 / 4 / 1e7 * 2
    ), "a card to each"
    assert seconds(Layout(dp=4, shard=2, tp=2)).replicas == pytest.approx(
        0.5 * 2 * 4 * (8 * ((12 * 256 + 7 * 16) / 2 + 6 * 16) + TABLE / 2) / 2 * 3 / 4 / 2e7 * 1.5
    )


def test_stages_wait_by_hand() -> None:
    """The last stage has a quarter of the layers and the head, and is the slowest; a micro-batch
    passes the three before it once.
    """
    alone, stages = seconds(Layout()), seconds(Layout(pp=4))
    tokens = 16
    layer = {
        "products": tokens * 72 * 256 / 0.5e12,
        "attention": tokens * 12 * 16 * 4 / 0.25e12,
        "memory": tokens * 16 * 100 / 1e10,
        "launch": 0.001,
    }
    head = {"products": tokens * 6 * TABLE / 0.5e12, "memory": tokens * 1000 * 10 / 1e10}
    assert stages.products == pytest.approx(4 * (2 * layer["products"] + head["products"]))
    assert stages.launch == pytest.approx((alone.launch - 0.01) / 4 + 0.01)
    mine = 2 * LAYER + TABLE
    assert stages.memory == pytest.approx(
        4 * (2 * layer["memory"] + head["memory"]) + 28 * mine / 1e10
    )
    assert stages.bubble == pytest.approx(6 * sum(layer.values()))
    both = seconds(Layout(pp=4, tp=2, shard=2))
    assert both.waits == pytest.approx((both.tensor + both.shard + both.bubble) / both.total)


def test_the_first_of_uneven_stages_is_the_slowest_without_a_head_to_speak_of() -> None:
    """Three layers of eight, three, and two with the head."""
    few = replace(FEW, vocab_size=10)
    assert seconds(Layout(pp=3), config=few).launch == pytest.approx(4 * 3 * 0.001 + 0.01)
    large = replace(FEW, vocab_size=10**7)
    assert seconds(Layout(pp=3), config=large).launch == pytest.approx(4 * 2 * 0.001 + 0.01)


def test_two_of_each() -> None:
    """Half of an exchange is every process's own."""
    parameters = 8 * LAYER + TABLE
    assert seconds(Layout(tp=2)).tensor == pytest.approx(4 * 4 * 8 * 2 / 2 * 16 * 16 * 2 / 1e9)
    assert seconds(Layout(shard=2)).shard == pytest.approx(4 * 0.5 * 3 * 2 * parameters / 2 / 1e9)
    time = seconds(Layout(dp=2))
    assert time.replicas == pytest.approx(0.5 * 2 * 4 * parameters / 2 / 1e9)
    assert time.waits == pytest.approx(time.replicas / time.total)


def test_links_that_nobody_knows_cost_nothing() -> None:
    assert seconds(Layout(shard=8), gpu=replace(GPU, link=None)).shard == 0
    unknown = replace(GPU, network=None)
    assert seconds(Layout(shard=16), gpu=unknown).shard == pytest.approx(
        seconds(Layout(shard=16), gpu=replace(GPU, network=1e9)).shard
    )
    assert seconds(Layout(shard=16), gpu=replace(GPU, network=2e8)).shard == pytest.approx(
        seconds(Layout(shard=16), gpu=unknown).shard
    ), "no faster than the link"


TINY = ModelConfig(n_layer=3, n_head=4, d_model=8, n_ctx=4, vocab_size=10)
THRICE = StepConfig(micro_batch=2, micro_batches=3)
TINY_LAYER, OUTSIDE = 872, 80 + 32 + 16


def test_one_process_moves_nothing() -> None:
    assert step_traffic(TINY, Layout(), THRICE, 0) == StepTraffic()


@pytest.mark.parametrize(
    "work", [THRICE, replace(THRICE, micro_batches=1), replace(THRICE, precision="fp32")], ids=str
)
def test_replicas_add_up_every_gradient_once(work: StepConfig) -> None:
    assert step_traffic(TINY, Layout(dp=2), work, 0) == StepTraffic(
        dp=4 * (3 * TINY_LAYER + OUTSIDE)
    )
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
            TINY, Layout(tp=tp), replace(THRICE, precision=precision), 0
        ) == StepTraffic(tp=3 * each + norms)


def test_shards_are_gathered_twice_and_their_gradients_added_up() -> None:
    """Two ways in bf16 and one in fp32, of each micro-batch: 8 bytes a parameter of a layer;
    outside of layers, twice fp32's 4.
    """
    assert step_traffic(TINY, Layout(shard=2), THRICE, 0) == StepTraffic(
        shard=3 * (8 * 3 * TINY_LAYER + 8 * OUTSIDE)
    )
    wide = step_traffic(
        TINY, Layout(shard=2), replace(THRICE, precision="fp32", micro_batches=1), 0
    )
    assert wide == StepTraffic(shard=12 * 3 * TINY_LAYER + 8 * OUTSIDE)


def test_uneven_shards_are_filled_up() -> None:
    """Thirds of 8 rows are 3, of 32 are 11, of 10 and of 4 are 4 and 2; 24 rows divide."""
    layer = 4 * 9 + (24 * 8 + 24) + (9 * 8 + 9) + (33 * 8 + 33) + (9 * 32 + 9)
    outside = 12 * 8 + 6 * 8 + 2 * 9
    assert step_traffic(TINY, Layout(shard=3), THRICE, 0) == StepTraffic(
        shard=3 * (8 * 3 * layer + 8 * outside)
    )


def test_replicas_of_shards_add_up_a_shard() -> None:
    moved = step_traffic(TINY, Layout(dp=2, shard=2), THRICE, 0)
    one = step_traffic(TINY, Layout(shard=2), THRICE, 0)
    assert moved == replace(one, dp=4 * TINY.parameters // 2)


def test_shards_of_slices_add_up_norms_of_every_micro_batch() -> None:
    """In the products' precision, before FSDP adds them to those of others."""
    alone, sharded = (
        step_traffic(TINY, Layout(tp=2, shard=shard), THRICE, 0).tp for shard in (1, 2)
    )
    assert alone - (4 * 3 * 32 + 4 * 48) == sharded - 3 * (2 * 3 * 32 + 4 * 48)


def test_stages_send_what_they_made_and_what_came_back() -> None:
    """In fp32, of each micro-batch; first and last also the gradient of the table that they
    share.
    """
    ends = 3 * 4 * 64 + 4 * 10 * 8
    assert [step_traffic(TINY, Layout(pp=3), THRICE, stage).pp for stage in range(3)] == [
        ends,
        3 * 2 * 4 * 64,
        ends,
    ]
    untied = replace(TINY, tied=False)
    assert [step_traffic(untied, Layout(pp=3), THRICE, stage).pp for stage in range(3)] == [
        3 * 4 * 64,
        3 * 2 * 4 * 64,
        3 * 4 * 64,
    ]
    assert step_traffic(TINY, Layout(pp=3), THRICE, 1) == StepTraffic(pp=3 * 2 * 4 * 64)


def test_slices_of_stages_send_a_slice() -> None:
    moved = step_traffic(TINY, Layout(pp=3, tp=4), THRICE, 0)
    assert moved.pp == 3 * 4 * 64 // 4 + 4 * 3 * 8, "a quarter of 10 rows, rounded up"
    middle = step_traffic(TINY, Layout(pp=3, tp=4), THRICE, 1)
    assert middle == StepTraffic(tp=3 * 8 * 2 * 64 + 4 * 32, pp=3 * 2 * 4 * 64 // 4), (
        "one layer, neither embedding nor head"
    )
    last = step_traffic(TINY, Layout(pp=3, tp=4), THRICE, 2)
    assert last.tp == 3 * (8 * 2 * 64 + 2 * 2 * 64 + 3 * 4 * 8) + 4 * 32 + 4 * 16


def test_interleaved_stages_send_more_often() -> None:
    """The first of two processes sends three times with its two of four stages: forwards, and
    forwards and back.
    """
    config = replace(TINY, n_layer=4, tied=False)
    assert [step_traffic(config, Layout(pp=2), THRICE, stage, each=2) for stage in (0, 1)] == [
        StepTraffic(pp=3 * 3 * 4 * 64)
    ] * 2


def test_sharded_stages_exchange_gradients_once() -> None:
    """Kept whole until the last micro-batch; layers gathered twice for each of them."""
    outside = 80 + 32
    moved = step_traffic(TINY, Layout(shard=2, pp=3), THRICE, 0)
    assert moved.shard == 3 * (4 * TINY_LAYER + 4 * outside) + 4 * (TINY_LAYER + outside)
    slices = step_traffic(TINY, Layout(shard=2, pp=3, tp=2), THRICE, 0)
    assert slices.tp == step_traffic(TINY, Layout(pp=3, tp=2), THRICE, 0).tp, "norms once, in fp32"
