"""Modes of `gpt cost`: the model they resolve and the commands they name."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shlex
from typing import Any

import pytest
import typer

from gptcli.cli import build_app
from gptcli.cli.cost_modes import check_not_a_size, requested_target, train_command
from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.planner import make_plan
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.target import find_target
from gptcli.errors import UsageError
from gptcli.papers.models import MODELS


@pytest.fixture
def gpt(gpt_here: Any) -> Any:
    """Run the command line in this process."""
    return gpt_here


def test_shape_options_change_a_size() -> None:
    one = requested_target({"size": "125M", "n_ctx": 1024, "attention": "dense"})
    assert one.model.parameters == 124_439_808
    assert one.name == "gpt3-small, changed"
    assert requested_target({}).name == "gpt3"
    own = requested_target({"n_layer": 2, "n_head": 2, "d_model": 8})
    assert (own.name, own.model.n_ctx, own.model.vocab_size) == ("custom", 1024, 50257)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "T5-11B", "n_ctx": 16}, "T5-11B is not a GPT"),
        ({"n_layer": 2}, "needs --n-head, --d-model"),
        ({"n_layer": 2, "n_head": 2}, "needs --d-model"),
        ({"runs": ["a", "b"]}, "2 runs at once"),
        ({"runs": ["a"], "size": "13B"}, "a run folder cannot be combined"),
    ],
)
def test_incomplete_and_contradictory_models_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        requested_target(options)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("step", "options"),
    [
        (
            StepConfig(micro_batch=4, recompute="full"),
            "--layout dp=2,shard=4 --micro-batch 4 --recompute full",
        ),
        (
            StepConfig(precision="fp8"),
            "--layout dp=2,shard=4 --micro-batch 1 --recompute none --precision fp8",
        ),
    ],
)
def test_train_command_names_the_plan(step: StepConfig, options: str) -> None:
    plan = make_plan(find_target("6.7B").model, Layout(dp=2, shard=4), step, find_gpu("h100"))
    assert train_command(plan, "--size 6.7B") == f"gpt train --size 6.7B {options}"


def drawn_plan(draw: random.Random, built: int) -> dict[str, Any]:
    """Return a plan that `gpt cost --plan` lists for a question drawn at random.

    The trainer's dry run builds at most `built` processes of it.
    """
    for _ in range(1000):
        words = ["--size", draw.choice([model.name for model in MODELS])]
        words += ["--gpu", draw.choice(["a100", "h100", "b200", "v100", "l40s", "mi300x"])]
        words += ["--gpus", str(draw.choice([1, 2, 3, 4, 7, 8, 12, 64, 992, 1024, 20_000]))]
        if draw.random() < 0.3:
            words += ["--n-ctx", str(draw.choice([512, 1000, 1024]))]
        if draw.random() < 0.6:
            words += ["--batch-tokens", str(draw.choice([2048, 50_000, 524_288, 3_200_000]))]
        if draw.random() < 0.3 and "v100" not in words:
            words += ["--precision", draw.choice(["fp16", "bf16", "fp32"])]
        try:
            listed = run("cost", *words, "--plan", "--json")["plans"]
        except UsageError:  # nothing fits
            continue
        layouts = [(plan, parse_layout(plan["layout"])) for plan in listed]
        if few := [plan for plan, layout in layouts if layout.processes // layout.dp <= built]:
            return draw.choice(few)
    raise AssertionError("no question has such a plan")


def run(*words: str) -> dict[str, Any]:
    """Return the report of a command line, run in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        typer.main.get_command(build_app([*words])).main([*words], standalone_mode=False)
    return json.loads(out.getvalue())


@pytest.mark.parametrize("seed", range(3))
def test_the_trainers_dry_run_passes_every_command(gpt: Any, seed: int) -> None:
    """It builds the processes of the layout, and plans the step that the command names."""
    plan = drawn_plan(random.Random(seed), built=2)
    words = shlex.split(plan["command"].removeprefix("gpt "))
    # in a process of its own: one that has computed with threads must not fork the layout's
    report = json.loads(gpt(*words, "--data", "none yet", "--dry-run", "--json").stdout)
    assert report["config"]["layout"] == plan["layout"]
    assert report["config"]["micro_batch"] == plan["micro_batch"]
    assert report["config"]["recompute"] == plan["recompute"]


def test_this_machines_processor(gpt: Any) -> None:
    report = json.loads(gpt("cost", "--size", "gpt2-small", "--gpu", "cpu", "--json").stdout)
    assert (report["gpu"], report["gpus"], report["trainer"]) == ("cpu", 1, None)
    low, high = report["gpu_hours_range"]
    assert 0 < low < report["gpu_hours"] < high
    text = gpt("cost", "--size", "gpt2-small", "--gpu", "cpu").stdout
    assert "CPU-hours" in text
    assert "GPU-" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--plan", "--plan cannot be combined with --gpu cpu"),
        ("--layout dp=2", "--layout is for GPUs"),
        ("--precision fp8", "fp8 is for GPUs"),
        ("--gpus 2", "--gpu cpu is this machine, once"),
    ],
)
def test_what_only_gpus_have_is_refused_on_a_processor(gpt: Any, words: str, message: str) -> None:
    done = gpt("cost", "--gpu", "cpu", *words.split(), code=2)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_llama(gpt: Any) -> None:
    words = "--shape llama --n-layer 32 --n-head 32 --d-model 4096 --n-kv-head 8 --d-ff 14336"
    report = json.loads(gpt("cost", *words.split(), "--gpus", "64", "--json").stdout)
    assert report["parameters"] == 8_030_261_248
    assert report["flops"] == 6 * 8_030_261_248 * 300e9
    assert any("8 of keys and values" in row["source"] for row in report["assumptions"])
    text = gpt("cost", *words.split(), "--gpus", "64").stdout
    assert all(len(line) <= 80 for line in text.splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--shape lama", "unknown shape 'lama'"),
        ("--shape llama --n-layer 2 --n-head 2", "--shape llama also needs --d-model"),
        ("--shape llama --size 13B", "--shape llama cannot be combined with --size"),
        ("--size 13B --d-ff 512", "--d-ff needs --shape llama"),
    ],
)
def test_what_is_no_llama_is_refused(gpt: Any, words: str, message: str) -> None:
    assert message in gpt("cost", *words.split(), code=2).stderr


def test_the_plans_of_megatron_have_no_command_of_ours(gpt: Any) -> None:
    words = "--size 13B --gpu a100 --gpus 8 --plan --trainer megatron"
    report = json.loads(gpt("cost", *words.split(), "--json").stdout)
    assert {plan["command"] for plan in report["plans"]} == {None}
    assert "gpt train" not in gpt("cost", *words.split()).stdout


@pytest.mark.parametrize(
    ("argument", "hint"),
    [("7B", "the nearest are 2.7B, 6.7B, 13B"), ("gpt3", "gpt cost --size gpt3")],
)
def test_a_size_as_argument_is_told_as_such(argument: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_not_a_size(argument)
    assert str(caught.value.hint).startswith(hint)
