"""`gpt cost` as a user types it."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.console import REPORT_COLUMNS
from gptcli.cli.cost import (
    ESTIMATE_OPTIONS,
    FLOPS_OF_RUN,
    MODES,
    OUTPUT_OPTIONS,
    select_mode,
)
from gptcli.cli.options import number
from gptcli.cost.scaling_fit import COVERAGE_OF_FEW, MIN_JOINT_RUNS
from gptcli.cost.target import OTHER_FAMILIES
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_config
from gptcli.papers.models import MODELS
from tests.runs.test_charts import check_picture

CONTRACT_KEYS = {
    "parameters", "flops", "pf_days", "gpu_years", "gpu_hours", "dollars", "days", "memory_bytes", "mfu", "assumptions",
}  # fmt: skip


@pytest.fixture
def gpt(gpt_here: Any) -> Any:
    """Run the command line in this process."""
    return gpt_here


def report(gpt: Any, *args: object) -> dict[str, Any]:
    done = gpt("cost", *args, "--json")
    assert done.stdout.count("\n") == 1, "one object on one line"
    assert done.stderr == ""
    return json.loads(done.stdout)


def figure(text: str, name: str) -> str:
    """The figure in the report's line that starts with `name`."""
    found = re.search(rf"^\s*{re.escape(name)}\s\s+(\S+)", text, re.MULTILINE)
    assert found, f"no {name!r} in\n{text}"
    return found[1]


def test_estimate_agrees_with_the_cost_article(gpt: Any) -> None:
    got = report(gpt, "--size", "175B", "--gpu", "v100", "--tflops", "28", "--price", "1.5")
    assert got["schema"] == "gpt.cost/1"
    assert set(got) >= CONTRACT_KEYS
    assert got["parameters"] == 174_604_259_328
    assert got["flops"] == pytest.approx(3.14e23, rel=0.005)
    assert got["gpu_years"] == pytest.approx(355, rel=0.005)
    assert got["dollars"] == pytest.approx(4.66e6, rel=0.005)
    assert got["mfu"] == pytest.approx(28 / 125)


@pytest.mark.parametrize(
    "args",
    [
        ["--flops"],
        ["--flops", "--gpu", "v100"],
        ["--size", "gpt3", "--flops"],
        ["--flops", "--size=175b"],
    ],
)
def test_flops_without_options_gives_the_articles_estimate(gpt: Any, args: list[str]) -> None:
    expected = report(gpt, "--size", "175B", "--gpu", "v100", "--tflops", "28", "--price", "1.5")
    got = report(gpt, *args)
    for key in CONTRACT_KEYS - {"assumptions"}:
        assert got[key] == expected[key]


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--size", "13B"],
        ["--size", "13B", "--flops"],
        ["--flops", "--tokens", "300B"],
        ["--flops", "1e20"],
    ],
)
def test_without_a_gpu_the_default_is_assumed(gpt: Any, args: list[str]) -> None:
    """The article's of 2020 prices the article's own question alone."""
    assert report(gpt, *args)["gpu"] == "h100"
    text = gpt("cost", *args).stdout
    assert re.search(r"^Time and money on h100 +assumed: --gpu names another$", text, re.MULTILINE)
    assert re.search(r"^price: median of .*\(2026-\d\d-\d\d\)$", text, re.MULTILINE)
    assert "assumed: --gpu" not in gpt("cost", *args, "--gpu", "h100").stdout


def test_tiny_runs_are_reported_in_small_units(gpt: Any, tmp_path: Path) -> None:
    for args in (
        [make_run(tmp_path / "run", 3, 12_345, 4.0)],
        ["--size", "gpt2", "--tokens", 1],
        ["--size", "gpt2", "--tokens", "1k"],
    ):
        for more in ([], ["--flops"], ["--explain"], ["--gpu", "v100"]):
            text = gpt("cost", *args, *more).stdout
            assert "$0.00" not in text.replace("$0.00 ", "$0.00")
            assert not re.search(r"e-\d+ (MWh|kWh|t|GPU|cents|days|h|d|s)\b", text), text
            assert not re.search(r"^  \S.* {2,}(0|0\.0+)(?: |$)(?!.*tied)", text, re.MULTILINE), (
                text
            )
            assert text.count("  outside  range ") == (0 if "--flops" in more else 5)
    table = gpt("cost", "--table", "--tokens", "1k").stdout
    assert "GPU-ms" in table
    assert not re.search(r"\de-\d| 0 | 0\.0+ |\$0\.00(?!\d)", table)


def test_flops_alone_prints_the_estimate_and_its_sources(gpt: Any) -> None:
    text = gpt("cost", "--flops").stdout
    assert "v100                 the cost article's, of 2020" in text
    assert "gpt cost --size 175B prices h100 of today" in " ".join(text.split())
    assert "of today" not in gpt("cost", "--flops", "--gpu", "v100").stdout
    assert figure(text, "FLOP, 6ND") == "3.14e23"
    assert figure(text, "GPU-years") == "355.9"
    assert figure(text, "dollars") == "$4.68M"
    assert "the cost article" in text
    assert "Memory" not in text


@pytest.mark.parametrize("spelling", ["3.14e23", "314000000000T"])
def test_flops_of_a_budget(gpt: Any, spelling: str) -> None:
    got = report(gpt, "--flops", spelling, "--gpu", "v100", "--tflops", "28", "--price", "1.5")
    assert set(got) >= CONTRACT_KEYS
    assert got["flops"] == pytest.approx(3.14e23)
    assert got["gpu_years"] == pytest.approx(355, rel=0.005)
    assert got["dollars"] == pytest.approx(4_664_700, rel=0.005)
    assert (got["parameters"], got["memory_bytes"]) == (None, None)


def test_report_of_a_size(gpt: Any) -> None:
    text = gpt("cost", "--size", "175B", "--gpu", "v100", "--gpus", "10_000").stdout
    assert figure(text, "Parameters") == "174,604,259,328"
    assert figure(text, "PF-days") == "3,638"
    assert figure(text, "FLOP, PaLM") == "3.23e23"
    assert figure(text, "on 10,000 v100") == "14.07", "Patterson et al. 2021 assume 14.8"
    assert figure(text, "inference in fp32") == "698"
    assert "fits 10,000 v100 of 32 GB" in text
    assert max(map(len, text.splitlines())) <= 80


def test_too_little_memory_shows_the_gpus_needed(gpt: Any) -> None:
    assert "needs 35 a100 of 80 GB" in gpt("cost", "--size", "175B", "--gpu", "a100").stdout
    assert report(gpt, "--size", "175B", "--gpu", "a100")["least_gpus"] == {
        "training": 35,
        "inference_16bit": 5,
    }


def test_days_depend_on_the_number_of_gpus_and_dollars_do_not(gpt: Any) -> None:
    one, many = (
        report(gpt, "--size", "6.7B", "--gpu", "a100", "--mfu", 0.4, "--gpus", n) for n in (1, 64)
    )
    assert one["days"] == pytest.approx(64 * many["days"])
    assert one["dollars"] == many["dollars"]


def test_tokens_and_mfu_determine_the_gpu_hours(gpt: Any) -> None:
    got = report(gpt, "--size", "125M", "--tokens", "2.5B", "--gpu", "mi300x", "--mfu", "0.4")
    assert got["flops"] == pytest.approx(6 * 125_226_240 * 2_500_000_000, rel=1e-12)
    assert got["gpu_hours"] == pytest.approx(got["flops"] / (0.4 * 1307.4e12) / 3600)
    assert (got["mfu"], got["dollars"]) == (0.4, None)


def test_custom_shape(gpt: Any) -> None:
    got = report(
        gpt, "--n-layer", 2, "--n-head", 2, "--d-model", 8, "--n-ctx", 16, "--vocab-size", 10
    )
    assert got["parameters"] == 12 * 2 * 64 + 13 * 2 * 8 + (10 + 16) * 8 + 2 * 8
    assert got["model"]["attention"] == "dense"


def test_changed_size_gets_another_name(gpt: Any) -> None:
    got = report(gpt, "--size", "125M", "--n-ctx", 1024, "--attention", "dense")
    assert got["parameters"] == 124_439_808, "that is gpt2"
    assert got["name"] != "gpt3-small"


def test_custom_gpu_is_described_by_its_speed_alone(gpt: Any) -> None:
    got = report(gpt, "--flops", "3.14e23", "--tflops", 15)
    assert got["gpu_years"] == pytest.approx(665, rel=0.005)
    assert (got["gpu"], got["mfu"], got["dollars"]) == (None, None, None), (
        "nothing is borrowed from a GPU nobody named"
    )
    assert "set one with --price" in gpt("cost", "--flops", "3.14e23", "--tflops", 15).stdout


def test_table_has_every_size(gpt: Any) -> None:
    rows = report(gpt, "--table", "--gpus", 64, "--gpu", "a100")["sizes"]
    assert [row["parameters"] for row in rows][: len(MODELS)] == [
        model.parameters for model in MODELS
    ]
    assert [row["name"] for row in rows][len(MODELS) :] == [row.name for row in OTHER_FAMILIES]
    assert all(set(row) >= CONTRACT_KEYS for row in rows)
    text = gpt("cost", "--table", "--gpus", 64, "--gpu", "a100").stdout
    assert [line.split()[0] for line in text.splitlines()[2 : 2 + len(MODELS)]] == [
        model.name for model in MODELS
    ]
    assert text.startswith("64 a100; ")
    assert max(map(len, text.splitlines())) <= 80


def test_table_takes_tokens(gpt: Any) -> None:
    assert {row["tokens"] for row in report(gpt, "--table", "--tokens", "20B")["sizes"]} == {
        20 * 10**9
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpu", "v1000"], ["unknown GPU 'v1000'", "v100", "--tflops"]),
        (["--size", "17B"], ["unknown size '17B'", "13B"]),
        (["--mfu", "1.2"], ["--mfu: 1.2 is out of range"]),
        (["--mfu", "0"], ["--mfu", "0"]),
        (["--mfu", "0.4", "--tflops", "20"], ["--tflops and --mfu contradict"]),
        (["--gpu", "h100", "--tflops", "1979"], ["impossible on h100", "989.5", "sparsity"]),
        (["--tokens", "0"], ["--tokens: 0"]),
        (["--tokens", "-5"], ["--tokens: -5"]),
        (["--tokens", "1e400"], ["--tokens: 1e400"]),
        (["--tokens", "0.5"], ["--tokens", "not a whole number"]),
        (["--tokens", "many"], ["--tokens", "'many' is not a number"]),
        (["--gpus", "0"], ["--gpus: 0"]),
        (["--gpus", "1.5"], ["--gpus", "not a whole number"]),
        (["--price", "0"], ["--price: 0"]),
        (["--flops", "-3"], ["--flops: -3"]),
        (["--flops", "much"], ["--flops", "'much' is not a number"]),
        (["--flops", "1e23", "--size", "1.3B"], ["--flops 1.00e23", "--size"]),
        (["--flops", "1e23", "--tokens", "3B"], ["--flops 1.00e23", "--tokens"]),
        (["--flops", "1e23", "--n-ctx", "16"], ["--flops 1.00e23", "--n-ctx"]),
        (["--gpu", "v100", "--precision", "bf16"], ["v100 has no bf16", "fp16"]),
        (
            ["--gpu", "a100", "--layout", "tp=2", "--precision", "fp64"],
            ["unknown precision 'fp64'"],
        ),
        (
            ["--size", "gpt2", "--gpu", "a100", "--layout", "tp=5"],
            ["tp=5 does not divide 12 heads", "1, 2, 3, 4, 6, 12"],
        ),
        (["--size", "gpt2", "--gpu", "a100", "--layout", "pp=13"], ["pp=13 is more stages"]),
        (["--gpu", "a100", "--layout", "xp=2"], ["unknown axis 'xp'"]),
        (
            ["--gpu", "a100", "--layout", "dp=4", "--gpus", "2"],
            ["--layout dp=4 needs 4 GPUs, but --gpus is 2"],
        ),
        (
            ["--gpu", "a100", "--layout", "dp=4", "--micro-batch", "0"],
            ["--micro-batch: 0 is out of range"],
        ),
        (["--tflops", "20", "--layout", "dp=4"], ["--layout needs a GPU"]),
        (["--size", "1.3B", "--layout", "dp=4096"], ["reads 4,096 sequences", "--batch-tokens"]),
        (["--size", "175B", "--gpu", "b200", "--gpus", "8"], ["no layout of 8 b200", "--gpus 16"]),
        (["--size", ""], ["--size: the value is empty"]),
        (["--trainer", "megatrn"], ["unknown trainer 'megatrn'", "megatron"]),
        (["--size", "1.3B", "--tokens", "1e300"], ["--tokens: 1e300 is out of range"]),
        (["--flops", "1e55"], ["--flops: 1e55 is out of range"]),
        (["--size", "gpt2", "--price", "1e14"], ["--price: 1e14 is out of range"]),
        (
            ["--n-layer", "10M", "--n-head", "1", "--d-model", "8"],
            ["--n-layer: 10M is out of range"],
        ),
        (["--check", "--size", "gpt2"], ["--check cannot be combined with --size"]),
        (["--hours", "1e-9"], ["--hours: 1e-9 is out of range", "at least 0.001"]),
        (["--budget", "1e-9"], ["--budget buys less than one step of any size", "a step of gpt"]),
        (["--hours", "0.001", "--tflops", "1e-6"], ["--hours buys less than one step"]),
        (["--gpus", "1e9"], ["--gpus: 1e9 is out of range", "at most 1,000,000\n"]),
        (["--goodput", "1.2"], ["--goodput: 1.2 is out of range"]),
        (
            ["--size", "175B", "--gpu", "a100", "--gpus", "4", "--plan"],
            ["no layout of 4 a100 has enough memory"],
        ),
        (["--plan", "--table"], ["--plan cannot be combined with --table"]),
        (["--optimal", "-1"], ["--optimal: -1"]),
        (["--optimal", "1e23", "--size", "13B"], ["--optimal cannot be combined with --size"]),
        (["--budget", "0", "--gpu", "a100"], ["--budget: 0"]),
        (["--budget", "100", "--gpu", "mi300x"], ["--price"]),
        (
            ["--size", "125M", "--gpu", "a100", "--gpus", "8", "--hours", "23.8"],
            ["impossible: an MFU of 10", "--hours"],
        ),
        (["--hours", "0", "--gpu", "a100"], ["--hours: 0"]),
        (["--gpu", "a100", "--memory", "80"], ["--memory is the memory of a custom GPU"]),
        (["--size", "T5-11B", "--gpu", "a100", "--plan"], ["T5-11B is not a GPT"]),
        (["--table", "--plot", "x.png"], ["--plot: x.png does not end in .svg"]),
        (
            ["--budget", "5", "--gpu", "a100", "--plot", "x.svg"],
            ["--budget cannot be combined with --plot"],
        ),
        (["--fit"], ["three or more runs"]),
        (["--size", "125M", "--predict", "x"], ["--predict needs --fit"]),
        (["--table", "--size", "13B"], ["--table", "--size"]),
        (["--table", "--flops"], ["--table", "--flops"]),
        (["--n-layer", "3"], ["--n-head, --d-model"]),
        (["--size", "125M", "--n-head", "7"], ["is not a multiple of n_head 7"]),
        (["--size", "125M", "--attention", "sparse"], ["unknown attention 'sparse'"]),
    ],
)
def test_bad_input_is_one_message(gpt: Any, args: list[str], message: list[str]) -> None:
    done = gpt("cost", *args, code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("gpt: ")
    assert "Traceback" not in done.stderr
    for part in message:
        assert part in done.stderr


def test_layout_reports_the_memory_of_a_rank(gpt: Any) -> None:
    args = ["--size", "6.7B", "--gpu", "a100", "--layout", "shard=8,tp=2", "--micro-batch", 4]
    got = report(gpt, *args)
    assert (got["gpus"], got["layout"]["layout"]) == (16, "shard=8,tp=2")
    parts = dict(got["layout"]["memory_bytes"])
    assert parts.pop("total") == sum(parts.values())
    assert 0.733 < got["goodput"] < 0.95
    assert got["gpu_hours_range"][0] < got["gpu_hours"] < got["gpu_hours_range"][1]
    text = gpt("cost", *args).stdout
    assert "to spare" in text
    assert max(map(len, text.splitlines())) <= 80
    text = gpt("cost", *args[:-1], 64).stdout
    assert "exceeds a100 by" in text
    assert "note: this layout does not fit: a GPU needs" in text
    assert "nearest that fits" in text
    assert max(map(len, text.splitlines())) <= 80


def test_plans_are_sorted_by_speed(gpt: Any) -> None:
    args = ["--size", "13B", "--gpu", "h100", "--gpus", 16, "--plan"]
    found = report(gpt, *args)["plans"]
    speeds = [plan["tokens_per_second"] for plan in found]
    assert speeds == sorted(speeds, reverse=True)
    text = gpt("cost", *args).stdout
    command = f"gpt train --size 13B --batch-tokens 2097152 --layout {found[0]['layout']} "
    assert command in " ".join(text.split())
    lines = [line for line in text.splitlines() if not line.startswith("gpt train")]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("args", "model"),
    [
        (["--size", "13B", "--n-ctx", 1024], "--size 13B --n-ctx 1024"),
        (["--size", "gpt2", "--vocab-size", 50304], "--size gpt2"),
        (
            ["--n-layer", 12, "--n-head", 12, "--d-model", 768],
            "--n-layer 12 --n-head 12 --d-model 768 --n-ctx 1024 --attention dense",
        ),
        (["RUN"], "--n-layer 3 --n-head 2 --d-model 16 --n-ctx 32 --attention dense"),
    ],
    ids=str,
)
def test_plan_commands_name_the_whole_model(
    gpt: Any, tmp_path: Path, args: list[object], model: str
) -> None:
    """As `gpt train` takes it, with nothing missing."""
    run = make_run(tmp_path / "run", 3, 12_345, 4.0)
    words = [run if word == "RUN" else word for word in args]
    found = report(gpt, *words, "--gpu", "h100", "--gpus", 8, "--plan")["plans"][0]
    work = f"--micro-batch {found['micro_batch']} --recompute {found['recompute']}"
    batch = report(gpt, *words, "--gpu", "h100", "--gpus", 8, "--plan")["batch_tokens"]
    assert batch % (model.count("--n-ctx 1024") * 1024 or 32) == 0
    options = f"--batch-tokens {batch} --layout {found['layout']} {work}"
    assert found["command"] == f"gpt train {model} {options}"


@pytest.mark.parametrize(
    "args",
    [
        ["--size", "gpt2", "--tokens", "1e18", "--gpu", "t4"],
        ["--size", "175B", "--tokens", "1e18", "--gpu", "m1-max", "--price", "1e6"],
        ["--n-layer", "10000", "--n-head", "8", "--d-model", "64", "--gpus", "1000000"],
        ["--size", "gpt1", "--tokens", "1", "--batch-tokens", "1"],
        ["--flops", "1e36", "--gpu", "h100"],
    ],
    ids=str,
)
def test_json_has_finite_numbers_only(gpt: Any, args: list[str]) -> None:
    def numbers(value: Any) -> list[float]:
        if isinstance(value, dict):
            return [x for v in value.values() for x in numbers(v)]
        if isinstance(value, list):
            return [x for v in value for x in numbers(v)]
        return [value] if isinstance(value, int | float) else []

    found = numbers(report(gpt, *args))
    assert found
    assert all(math.isfinite(x) for x in found)


def test_the_batch_is_an_option_and_printed(gpt: Any) -> None:
    usual, large = (
        report(gpt, "--size", "1.3B", "--gpu", "h100", "--gpus", 512, *more)
        for more in ([], ["--batch-tokens", "16M"])
    )
    assert (usual["batch_tokens"], large["batch_tokens"]) == (2**20, 7812 * 2048)
    assert usual["critical_batch_tokens"] == large["critical_batch_tokens"]
    assert usual["days"] > large["days"], "fewer synchronisations, no idle GPU"
    assert any("critical batch" in note for note in large["notes"])
    text = gpt("cost", "--size", "1.3B", "--gpu", "h100", "--gpus", 512).stdout
    assert re.search(r"^  batch +1.049M +tokens; critical batch", text, re.MULTILINE)


def test_trainers_have_their_own_speeds_and_ranges(gpt: Any) -> None:
    args = ["--size", "gpt2", "--gpu", "h100", "--gpus", 8]
    hours = {name: report(gpt, *args, "--trainer", name) for name in ("fused", "fsdp", "gpt")}
    assert hours["fused"]["gpu_hours"] < hours["fsdp"]["gpu_hours"]
    assert {name: row["trainer"] for name, row in hours.items()} == {name: name for name in hours}
    low, high = hours["fused"]["gpu_hours_range"]
    assert high / low < 1.5
    low, high = hours["gpt"]["gpu_hours_range"]
    assert high / low > 1.5**2, "not measured"


def test_the_run_of_llm_c_is_in_a_narrow_range(gpt: Any) -> None:
    """GPT-2 124M on 10B tokens in 45 minutes of 8 H100, as its readers measure."""
    found = report(gpt, "--size", "gpt2", "--tokens", "9.89B", "--gpu", "h100", "--gpus", 8, "--trainer", "fused")  # fmt: skip
    low, high = (hours / 8 * 60 for hours in found["gpu_hours_range"])
    assert low < 45 < high
    assert high / low < 1.5


def test_more_gpus_never_take_longer_and_idle_ones_are_said(gpt: Any) -> None:
    args = ["--size", "175B", "--gpu", "h100", "--gpus"]
    days = [report(gpt, *args, n)["days"] for n in (960, 992, 1024)]
    assert all(later <= now * (1 + 1e-12) for now, later in itertools.pairwise(days)), "to rounding"
    wide = [report(gpt, "--size", "1.3B", "--gpus", n) for n in (32_768, 32_776)]
    assert wide[1]["dollars"] == pytest.approx(wide[0]["dollars"], rel=0.001)
    assert wide[0]["idle_gpus"] > 0
    assert "GPUs are idle" in gpt("cost", "--size", "1.3B", "--gpus", 32_768).stdout


def test_mfu_is_of_the_precision_that_is_used(gpt: Any) -> None:
    found = report(gpt, "--size", "13B", "--gpu", "h100", "--gpus", 8, "--precision", "fp8")
    assert (found["mfu_peak_flops"], found["mfu_convention"]) == (1979e12, "6N")
    text = gpt("cost", "--size", "13B", "--gpu", "h100", "--precision", "fp8").stdout
    assert "of 1979 fp8, dense" in text


def test_check_lists_every_source(gpt: Any) -> None:
    text = gpt("cost", "--check").stdout
    for source in ("llm-foundry", "Megatron 2021", "MLPerf", "SimuMax", "llm.c", "all"):
        assert re.search(rf"^{re.escape(source)} ", text, re.MULTILINE)
    found = report(gpt, "--check")
    assert len(found["runs"]) == found["sources"][-1]["runs"]
    assert "MLPerf: GPT-3 175B" in gpt("cost", "--check", "--explain").stdout


def test_optimal_reports_each_law(gpt: Any) -> None:
    rows = {row["law"]: row for row in report(gpt, "--optimal", "5.76e23")["optimal"]}
    assert rows["chinchilla"]["tokens_per_parameter"] == pytest.approx(92, abs=1)
    assert rows["chinchilla-refit"]["tokens_per_parameter"] == pytest.approx(18.4, abs=0.05)
    assert "kaplan" in gpt("cost", "--optimal", "5.76e23").stdout


def test_budget_in_dollars_and_hours(gpt: Any) -> None:
    got = report(gpt, "--budget", 500, "--gpu", "a100", "--gpus", 8)
    assert got["gpu_hours"] == pytest.approx(500 / 1.79)
    losses = [row["loss"] for row in got["sizes"]]
    known = [loss for loss in losses if loss is not None]
    assert known == sorted(known)
    assert losses == known + [None] * (len(losses) - len(known)), (
        "those outside the law's range come last"
    )
    assert report(gpt, "--budget", 500, "--hours", 2, "--gpu", "a100", "--gpus", 8)[
        "gpu_hours"
    ] == pytest.approx(16)
    assert report(gpt, "--hours", 3, "--gpu", "h100")["gpu_hours"] == pytest.approx(3)


def test_a_size_of_which_the_time_buys_no_step_is_left_out_with_a_word(gpt: Any) -> None:
    """3.6 seconds of an H100 are enough for a step of the small sizes alone."""
    got = report(gpt, "--hours", "0.001", "--gpu", "h100")
    listed = {row["name"] for row in got["sizes"]}
    assert "gpt2" in listed
    assert "gpt3" in got["under_one_step"]
    assert not listed & {*got["under_one_step"]}
    assert min(row["tokens"] for row in got["sizes"]) >= 100_000
    text = " ".join(gpt("cost", "--hours", "0.001", "--gpu", "h100").stdout.split())
    assert f"less than one step: {', '.join(got['under_one_step'])}" in text
    assert report(gpt, "--hours", 100, "--gpu", "h100")["under_one_step"] == []


def test_energy_of_gpt3_agrees_with_patterson_et_al(gpt: Any) -> None:
    """Patterson et al. 2021, Table 4: 14.8 days of 10,000 V100 at 24.6 TFLOP/s drew 1,287 MWh and
    emitted 552 t.
    """
    got = report(gpt, "--flops", "3.14e23", "--gpu", "v100", "--tflops", "24.6", "--gpus", 10_000)
    assert got["days"] == pytest.approx(14.8, rel=0.005)
    assert got["energy_kwh"] == pytest.approx(1_287_000, rel=0.005)
    assert got["co2_kg"] == pytest.approx(552_000, rel=0.005)


def make_run(folder: Path, n_layer: int, tokens: int, loss: float) -> Path:
    folder.mkdir()
    config = {
        "model_type": "gpt2",
        "n_layer": n_layer,
        "n_head": 2,
        "n_embd": 16,
        "n_positions": 32,
        "vocab_size": 100,
    }
    (folder / "config.json").write_text(json.dumps({**config, "activation_function": "gelu_new"}))
    (folder / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "tokens": tokens, "loss": 9.0, "val_loss": loss}) + "\n"
    )
    return folder


def test_run_folder_is_a_model(gpt: Any, tmp_path: Path) -> None:
    got = report(gpt, make_run(tmp_path / "run", 3, 12_345, 4.0))
    assert (got["model"]["n_layer"], got["tokens"]) == (3, 12_345)
    assert got["parameters"] == 12 * 3 * 256 + 13 * 3 * 16 + 132 * 16 + 32


def test_a_run_is_priced_at_its_own_batch(gpt: Any, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3, 12_345, 4.0)
    assert "the run is shorter than one step" in gpt("cost", run).stdout  # of GPT-3's batch
    line = {**json.loads((run / "metrics.jsonl").read_text()), "batch_tokens": 2048}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = gpt("cost", run).stdout
    assert figure(text, "batch") == "2048"
    assert "the run is shorter" not in text
    assert "batch: the run's, by its metrics.jsonl" in text
    assert report(gpt, run)["batch_tokens"] == 2048
    assert report(gpt, run, "--batch-tokens", 4096)["batch_tokens"] == 4096


def test_fit_reads_run_folders(gpt: Any, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n}", n, 10_000 * n, 5.0 * n**-0.1) for n in (1, 2, 4, 8)]
    got = report(gpt, "--fit", *runs)
    assert (got["law"], len(got["runs"])) == ("compute", 4)
    assert got["intervals"]["b"][0] <= got["values"]["b"] <= got["intervals"]["b"][1]
    assert "95 %" in gpt("cost", "--fit", *runs).stdout
    (runs[2] / "metrics.jsonl").write_text('{"tokens": 5}\n')
    assert "metrics.jsonl:1: not a line of metrics" in gpt("cost", "--fit", *runs, code=2).stderr
    assert "three or more runs" in gpt("cost", "--fit", *runs[:2], code=2).stderr
    assert "nowhere: no such folder" in gpt("cost", tmp_path / "nowhere", code=2).stderr


def test_fit_predicts_a_run_and_a_planned_model(gpt: Any, tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run{n}", n, 10_000 * n, 5.0 * n**-0.1) for n in (1, 2, 4, 8)]
    more = make_run(tmp_path / "more", 16, 160_000, 3.9)
    planned = [
        "--n-layer",
        32,
        "--n-head",
        2,
        "--d-model",
        16,
        "--n-ctx",
        32,
        "--vocab-size",
        100,
        "--tokens",
        "320k",
    ]
    got = report(gpt, "--fit", *runs, "--predict", more, *planned)
    held_out, own = got["predicted"]
    assert held_out["measured"] == 3.9
    assert held_out["error"] == pytest.approx(held_out["loss"] / 3.9 - 1)
    assert (own["measured"], own["tokens"]) == (None, 320_000)
    assert own["loss"] < held_out["loss"]
    text = gpt("cost", "--fit", *runs, "--predict", more, "--plot", "law.svg").stdout
    assert "measured 3.9000" in text
    assert (tmp_path / "law.svg").read_text().startswith("<svg")
    assert (
        "the loss of a model depends on its training tokens"
        in gpt("cost", "--fit", *runs, "--size", "125M", code=2).stderr
    )
    assert "--tokens needs a model" in gpt("cost", "--fit", *runs, "--tokens", "1M", code=2).stderr


def test_a_fit_names_rows_by_file_and_counts_those_that_repeat(gpt: Any, tmp_path: Path) -> None:
    rows = ["1e6,2e7,4.5", "2e6,4e7,4.25", "4e6,8e7,4.02"]
    (tmp_path / "one.csv").write_text("\n".join(["N,D,loss", *rows]))
    (tmp_path / "two.csv").write_text("\n".join(["N,D,loss", *rows[:2], "8e6,16e7,3.8"]))
    got = report(gpt, "--fit", "one.csv", "two.csv")
    assert [run["name"] for run in got["runs"]] == [
        *("one.csv:2", "one.csv:3", "one.csv:4", "two.csv:2", "two.csv:3", "two.csv:4"),
    ]
    assert any("2 runs of 6 repeat the size, tokens and loss" in text for text in got["warnings"])
    assert "warning: 2 runs of 6 repeat" in gpt("cost", "--fit", "one.csv", "two.csv").stdout
    missing = gpt("cost", "--fit", "nosuch.csv", code=2).stderr
    assert missing.startswith("gpt: nosuch.csv: no such table of runs\n")
    assert "neither a run folder nor a table of runs" in gpt("cost", "--fit", "-", code=2).stderr


@pytest.mark.parametrize(
    "args",
    [
        ["--table"],
        ["--flops"],
        ["--flops", "1e24", "--gpu", "h100"],
        ["--optimal", "1e22"],
        ["--size", "13B", "--gpu", "a100"],
        ["--size", "13B", "--gpu", "a100", "--layout", "shard=16"],
        ["--size", "13B", "--gpu", "a100", "--gpus", 16, "--plan"],
    ],
    ids=lambda args: " ".join(map(str, args)),
)
def test_every_mode_can_be_plotted(gpt: Any, tmp_path: Path, args: list[str]) -> None:
    done = gpt("cost", *args, "--plot", "out.svg")
    assert done.stdout, "the report is there too"
    check_picture((tmp_path / "out.svg").read_text(encoding="utf-8"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.svg"]


def test_hours_determine_gpus_or_speed(gpt: Any) -> None:
    got = report(gpt, "--size", "1.3B", "--gpu", "a100", "--gpus", 64, "--hours", 200)
    assert got["days"] == pytest.approx(200 / 24)
    assert got["mfu"] == pytest.approx(got["flops"] / (64 * 200 * 3600 * 312e12))
    got = report(gpt, "--flops", "1e22", "--gpu", "h100", "--hours", 100)
    assert got["days"] <= 100 / 24
    assert got["gpus"] == 8 * -(-1e22 / (0.32 * 989.5e12 * 100 * 3600) // 8)


def test_other_families_are_found_by_name(gpt: Any) -> None:
    got = report(gpt, "--size", "t5-11b")
    assert (got["flops"], got["model"], got["inference"]) == (3.3e22, None, None)
    assert got["memory_bytes"]["training"] == 16 * 11_000_000_000


def test_seconds_of_a_run_are_rounded_as_its_gpu_seconds(gpt: Any, tmp_path: Path) -> None:
    text = gpt("cost", "--flops", "1.08e15", "--gpu", "h100", "--tflops", "361").stdout
    assert figure(text, "GPU-seconds") == "2.992"
    assert re.search(r"on 1 h100 +3 s$", text, re.MULTILINE)


def test_inference_is_in_the_report(gpt: Any) -> None:
    got = report(gpt, "--size", "175B", "--gpu", "a100")["inference"]
    assert got["decode_bytes"] == 2 * 174_604_259_328 + 2048 * 4_718_592
    assert got["tokens_per_second"] == pytest.approx(got["gpus"] * 2039e9 / got["decode_bytes"])


def test_a_model_is_served_on_gpus_that_divide_its_heads(gpt: Any) -> None:
    text = gpt("cost", "--size", "175B", "--serve", 16, "--gpu", "h100").stdout
    assert re.search(r"KV cache +155 GB +on 8 h100$", text, re.MULTILINE)
    text = gpt("cost", "--size", "175B", "--serve", 1000, "--gpu", "h100").stdout
    assert re.search(r"KV cache +9.66 TB +on 144 h100, 3 replicas of 48$", text, re.MULTILINE)
    got = report(gpt, "--size", "175B", "--serve", 1000, "--gpu", "h100")
    assert (got["gpus"], got["replicas"]) == (144, 3)
    text = gpt("cost", "--size", "175B", "--gpu", "a100", "--explain").stdout
    assert "decoding, at most = GPUs x bandwidth / bytes = 6 x" in text


def test_explain_fills_numbers_into_formulas(gpt: Any) -> None:
    text = gpt("cost", "--size", "175B", "--explain").stdout
    for part in (
        "FLOP = 6·N·D = 6 x 174,604,259,328 x 300,000,000,000 = 3.14e23",
        "GPU-years = GPU-hours / 8,760",
        "price = 3.99 $",
        "kaplan holds for N 768 to 1.5B",
    ):
        assert part in text


def test_tables_as_markdown(gpt: Any) -> None:
    lines = gpt("cost", "--table", "--markdown").stdout.splitlines()
    assert sum(line.startswith("| ") for line in lines) == 1 + len(MODELS) + len(OTHER_FAMILIES)
    assert "|---|---:|" in "\n".join(lines)


def test_help_has_defaults_and_an_optional_number(gpt: Any) -> None:
    text = gpt("cost", "--flops", "-h").stdout
    for expected in ("175B", "h100", "[N]", "gpt cost --flops 3.14e23"):
        assert expected in text


@pytest.mark.parametrize(
    "line",
    ["--size 175B", "RUN", "--table --plot out.svg", "--size 13B --gpu h100 --layout shard=8"],
)
def test_imports_nothing_heavy(line: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 3, 12_345, 4.0)
    words = [str(run) if word == "RUN" else word for word in line.split()]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "gptcli", "cost", *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    imported = {
        line.rsplit("|", 1)[-1].strip().split(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "gptcli" in imported
    assert not imported & {"torch", "numpy", "tokenizers", "safetensors", "rich", "pydantic"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("--size gpt2-", {"gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl"}),
        ("--gpu h1", {"h100"}),
    ],
)
def test_sizes_and_gpus_are_completed(gpt: Any, typed: str, offered: set[str]) -> None:
    done = gpt(_GPT_COMPLETE="complete_bash", COMP_WORDS=f"gpt cost {typed}", COMP_CWORD="3")
    assert offered <= set(done.stdout.split())
    assert "v100" not in done.stdout


@pytest.mark.skipif(os.name != "posix", reason="pseudo-terminals")
def test_terminal_output_is_styled_unless_no_color_is_set() -> None:
    import pty

    def run(**env: str) -> bytes:
        master, slave = pty.openpty()
        words = [sys.executable, "-m", "gptcli", "cost", "--flops", "1e20"]
        subprocess.run(words, stdout=slave, env={**os.environ, **env}, check=True)
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # which ends the output of a terminal
            while piece := os.read(master, 65536):  # the kernel hands it over in pieces
                shown += piece
        os.close(master)
        return shown

    assert b"\x1b[1m" in run(NO_COLOR="")
    assert b"\x1b[" not in run(NO_COLOR="1")


@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "model"),
        ({"size": "13B"}, "model"),
        ({"flops": FLOPS_OF_RUN}, "model"),
        ({"flops": FLOPS_OF_RUN, "size": "13B", "hours": "5"}, "model"),
        ({"flops": 1e23}, "flops"),
        ({"flops": 1e23, "hours": "5", "gpus": "8"}, "flops"),
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
def test_options_select_a_mode(options: dict[str, Any], mode: str) -> None:
    assert select_mode(options) == mode


@pytest.mark.parametrize("mode", MODES)
def test_options_of_other_modes_are_refused(mode: str) -> None:
    value: Any = 1e20 if mode == "flops" else True
    names = {name for allowed in MODES.values() for name in allowed}
    for name in (names | set(MODES) | set(ESTIMATE_OPTIONS)) - {mode}:
        options = {mode: value, name: "x"}
        if name in MODES[mode]:
            assert select_mode(options) == mode
        else:
            assert mode_of(options) != mode, f"{mode} accepts {name}"
    for name in OUTPUT_OPTIONS:
        assert select_mode({mode: value, name: True}) == mode


def mode_of(options: dict[str, Any]) -> str | None:
    try:
        return select_mode(options)
    except UsageError:
        return None


def test_predict_needs_fit() -> None:
    with pytest.raises(UsageError, match="--predict needs --fit"):
        select_mode({"predict": Path("run"), "size": "13B"})


@pytest.mark.parametrize("text", ["0", "-5", "1e400", "-0", "nan", "", "five"])
def test_prices_are_positive_numbers(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        number("price")(text)
    assert caught.value.field == "price"
    assert caught.value.hint


def test_a_model_without_metrics_is_priced(gpt: Any, tmp_path: Path) -> None:
    """Such as one of transformers: it has no record of its training."""
    (tmp_path / "model").mkdir()
    save_config(
        tmp_path / "model", ModelConfig(n_layer=2, n_head=2, d_model=16, n_ctx=16, vocab_size=257)
    )
    got = report(gpt, "model")
    assert got["tokens"] == 300_000_000_000
    assert "no such" in gpt("cost", "nothing", code=2).stderr


@pytest.mark.parametrize(
    "words",
    [
        ["--table", "--tokens", "1e18"],
        ["--table", "--tokens", "1"],
        ["--table", "--tokens", "1", "--tflops", "1e6", "--price", "1e-6"],
        ["--table", "--tokens", "1e18", "--tflops", "1e-6", "--price", "1e6"],
        ["--size", "175B", "--tokens", "1e18"],
        ["--size", "gpt2", "--tokens", "1"],
        ["--flops", "1e36"],
        ["--flops", "1"],
        ["--budget", "1e15"],
        ["--hours", "1e7"],
        ["--hours", "0.001"],
        ["--serve", "1e9", "--size", "175B"],
        ["--optimal", "1e36"],
        ["--optimal", "1"],
        ["--check", "--explain"],
        ["--gpu", "list"],
    ],
    ids=" ".join,
)
def test_reports_fit_80_columns_at_any_scale(words: list[str], gpt: Any) -> None:
    lines = gpt("cost", *words).stdout.splitlines()
    assert lines
    assert max(len(line) for line in lines if not line.startswith("gpt train ")) <= REPORT_COLUMNS


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "175B"],
        ["--table"],
        ["--table", "--gpus", "8", "--gpu", "v100"],
        ["--hours", "24"],
        ["--optimal", "1e22"],
        ["--serve", "1000", "--size", "175B"],
        ["--check"],
        ["--gpu", "list"],
    ],
    ids=" ".join,
)
def test_reports_fit_a_narrow_terminal(
    words: list[str], gpt: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = gpt("cost", *words).stdout
    monkeypatch.setattr("gptcli.cli.console.columns", lambda stream: 40)
    narrow = gpt("cost", *words).stdout
    assert max(map(len, narrow.splitlines())) <= 40
    assert {*wide.split()} <= {*narrow.split()}, "nothing is lost"
    if words[0] == "--size":
        assert narrow.count("\n\n") == wide.count("\n\n")
    monkeypatch.setattr("gptcli.cli.console.columns", lambda stream: 300)
    assert gpt("cost", *words).stdout == wide


def test_the_list_of_gpus_marks_whose_speed_is_measured(gpt: Any) -> None:
    """In words and in JSON, by the same evidence as an estimate's; a table of sizes says it too."""
    rows = {row["name"]: row for row in report(gpt, "--gpu", "list")["gpus"]}
    kinds = {name: row["speed_evidence"] for name, row in rows.items()}
    assert (kinds["h100"], kinds["h20"], kinds["tpu-v4"]) == ("measured", "family", "none")
    lines = gpt("cost", "--gpu", "list").stdout.splitlines()
    words = {line.split()[0]: line for line in lines}
    assert " measured " in words["h100"]
    assert " family's " in words["h20"]
    assert " assumed " in words["tpu-v4"]
    assert all(len(line) <= 80 for line in lines)
    assert "note:" not in gpt("cost", "--table", "--gpu", "h100").stdout
    table = " ".join(gpt("cost", "--table", "--gpu", "h20").stdout.split())
    assert "no published run on h20 was compared" in table
    sizes = report(gpt, "--table", "--gpu", "h20")["sizes"]
    assert {row["speed_evidence"] for row in sizes} == {"family"}


PAGE = Path(__file__).parents[2] / "examples" / "docs" / "pages" / "how-to" / "cost.md"
LLAMA_8B = (
    "--shape llama --n-layer 32 --n-head 32 --d-model 4096 --n-kv-head 8 --d-ff 14336 "
    "--vocab-size 128256 --n-ctx 8192 --tokens 15T --gpu h100 --trainer megatron"
)


def test_the_page_on_costs_has_the_figures_of_the_command(gpt: Any) -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    article = re.search(r"gpt cost (--flops 3\.14e23 .*?) ```", page)
    assert article
    text = gpt("cost", *article[1].split()).stdout
    assert f"{figure(text, 'GPU-years')} GPU-years and {figure(text, 'dollars')}" in page
    hours = [
        report(gpt, *LLAMA_8B.split(), "--gpus", gpus, "--batch-tokens", batch)["gpu_hours"]
        for gpus, batch in ((1024, "4M"), (4096, "4M"), (4096, "16M"))
    ]
    few, many, large = (f"{value / 1e6:.2f}M" for value in hours)
    assert f"at {few} on 1,024 H100 and {many} on 4,096, with 16M at {large} on 4,096" in page


def test_the_page_on_costs_has_the_errors_of_the_check(gpt: Any) -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    found = report(gpt, "--check")
    (whole,) = (row for row in found["sources"] if row["source"] == "all")
    (on_cpu,) = (row for row in found["memory_sources"] if row["source"].endswith("on a CPU"))
    worst = {
        row["source"]: f"{row['unseen_worst']:.0%}".replace("%", " %") for row in found["sources"]
    }
    for claim in (
        f"fitted to {whole['runs']} published ones",
        f"a median error of {whole['unseen_median']:.0%}".replace("%", " %"),
        f"of {on_cpu['runs']} runs on a CPU",
        f"MLPerf's worst by {worst['MLPerf']}",
        f"a shape of llm-foundry by {worst['llm-foundry']}",
        f"SimuMax's smallest batches by {worst['SimuMax']}",
    ):
        assert claim in page


def test_the_page_on_costs_says_when_a_fit_warns_of_its_intervals() -> None:
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    low, high = (f"{share(COVERAGE_OF_FEW.values()):.0%}" for share in (min, max))
    assert [*COVERAGE_OF_FEW] == [*range(MIN_JOINT_RUNS, 10)] == [6, 7, 8, 9]
    assert f"of six to nine runs in {low[:-1]} to {high[:-1]} %, and a warning says so" in page
