"""What options mean together, without a process for each."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.cli.cost_options import (
    ASSUMED,
    DEFAULT_GPU,
    NO_VALUE,
    OF_ONE_MODEL,
    QUESTIONS,
    SHOWN,
    Terms,
    positive,
    question,
    whole,
)
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import read_table
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

MODEL = ModelConfig.from_paper(find_size("1.3B"))
FLOPS = flops_per_token(MODEL, "6N") * 300e9


@pytest.mark.parametrize(
    ("said", "asked"),
    [
        ({}, "model"),
        ({"size": "13B"}, "model"),
        ({"flops": NO_VALUE}, "model"),
        ({"flops": NO_VALUE, "size": "13B", "hours": "5"}, "model"),
        ({"flops": "1e23"}, "flops"),
        ({"flops": "1e23", "hours": "5", "gpus": "8"}, "flops"),
        ({"hours": "5"}, "hours"),
        ({"hours": "5", "gpu": "a100"}, "hours"),
        ({"hours": "5", "size": "13B"}, "model"),
        ({"hours": "5", "tokens": "1B"}, "model"),
        ({"budget": "5", "hours": "5"}, "budget"),
        ({"plan": True, "size": "13B"}, "plan"),
        ({"table": True, "tokens": "1B"}, "table"),
        ({"optimal": "1e20", "json": True}, "optimal"),
        ({"fit": True, "runs": [1], "predict": 2}, "fit"),
    ],
)
def test_questions(said: dict[str, Any], asked: str) -> None:
    assert question(said) == asked


@pytest.mark.parametrize("asked", QUESTIONS)
def test_what_does_not_belong_is_refused_and_what_does_is_not(asked: str) -> None:
    value = "1e20" if asked == "flops" else True
    every = (
        {name for names in QUESTIONS.values() for name in names}
        | set(QUESTIONS)
        | set(OF_ONE_MODEL)
    )
    for name in every - {asked}:
        said = {asked: value, name: "x"}
        if name in QUESTIONS[asked]:
            assert question(said) == asked
        elif question_of(said) == asked:
            raise AssertionError(f"{asked} took {name}")
    for name in SHOWN:
        assert question({asked: value, name: True}) == asked


def question_of(said: dict[str, Any]) -> str | None:
    try:
        return question(said)
    except UsageError:
        return None


@pytest.mark.parametrize("text", ["0", "-5", "1e400", "-0", "nan", "", "five"])
def test_numbers_above_zero(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        positive("price", text)
    assert caught.value.field == "price"
    assert caught.value.hint


def test_numbers() -> None:
    assert positive("price", "1.5") == 1.5
    assert positive("price", None) is None
    assert whole("micro_batch", "2k") == 2000
    with pytest.raises(UsageError, match="not a whole number") as caught:
        whole("micro_batch", "1.5")
    assert caught.value.field == "micro_batch"


def test_todays_gpu_unless_another_is_named_or_described() -> None:
    """The one whose price is the newest; and it is told that nobody named it."""
    gpu = Terms({}).gpu
    assert gpu is not None
    assert gpu.name == DEFAULT_GPU == "h100"
    assert "h100" in max(read_table("prices.toml")["price"], key=lambda row: row["date"])["gpus"]
    assert Terms({}).assumed == ASSUMED
    assert not any(Terms(said).assumed for said in ({"gpu": "h100"}, {"tflops": "20"}))
    assert Terms({"tflops": "20"}).gpu is None
    assert (Terms({"gpu": "v100"}).precision, Terms({"gpu": "a100"}).precision) == ("fp16", "bf16")


def test_hours_and_gpus_say_the_speed() -> None:
    cluster, _ = Terms({"gpu": "a100", "gpus": "64", "hours": "1000"}).cluster(MODEL, FLOPS)
    assert cluster.count == 64
    assert cluster.flops == pytest.approx(FLOPS / (64 * 1000 * 3600))
    for name in ("tflops", "mfu", "goodput"):
        with pytest.raises(UsageError, match=f"--{name} too"):
            Terms({"gpu": "a100", "gpus": "64", "hours": "1000", name: "0.4"}).cluster(MODEL, FLOPS)
    with pytest.raises(UsageError, match="impossible: an MFU of"):
        Terms({"gpu": "a100", "gpus": "64", "hours": "1"}).cluster(MODEL, FLOPS)


@pytest.mark.parametrize(
    "said", [{"gpu": "a100"}, {"gpu": "h100", "mfu": "0.4"}, {"tflops": "100"}, {"gpu": "v100"}]
)
def test_hours_and_a_speed_say_how_many(said: dict[str, str]) -> None:
    cluster, _ = Terms({**said, "hours": "100"}).cluster(MODEL, FLOPS)
    assert FLOPS / cluster.flops / cluster.count / 3600 <= 100
    assert FLOPS / cluster.flops / (cluster.count - 8) / 3600 > 80, "and few more than needed"


def test_hours_and_a_layout_say_the_speed_too() -> None:
    cluster, plan = Terms({"gpu": "a100", "layout": "shard=64", "hours": "1000"}).cluster(
        MODEL, FLOPS
    )
    assert plan is not None
    assert (cluster.count, plan.layout.shard) == (64, 64)
    assert cluster.flops == pytest.approx(FLOPS / (64 * 1000 * 3600))


def test_memory_describes_a_gpu_of_ones_own() -> None:
    cluster, _ = Terms({"tflops": "20", "memory": "48"}).cluster(None, 1e20)
    assert cluster.memory_bytes == 48 * 10**9
    assert Terms({"tflops": "20"}).cluster(None, 1e20)[0].memory_bytes is None
    assert Terms({"gpu": "a100"}).cluster(None, 1e20)[0].memory_bytes == 80 * 10**9
    with pytest.raises(UsageError, match="--memory describes a GPU of your own"):
        Terms({"gpu": "a100", "memory": "48"})


def test_a_batch_is_the_papers_in_whole_rounds() -> None:
    _, plan = Terms({"gpu": "a100", "layout": "shard=8", "micro_batch": 3}).cluster(MODEL, FLOPS)
    assert plan is not None
    assert (plan.work.micro_batch, plan.work.micro_batches) == (3, 22), (
        "512 sequences: 8 ranks, 3 at a time"
    )
