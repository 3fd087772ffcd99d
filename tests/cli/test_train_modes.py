"""Several seeds are one measurement, a sweep is a Makefile, and a model becomes another program's."""

# ruff: noqa: F811
from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.cli.train_modes import parse_sweep, write_sweep
from gptcli.errors import GptError, InputError, UsageError
from gptcli.model.safetensors_io import load_model
from gptcli.tokenizer.load import load_tokenizer
from tests.cli.test_train import _one_thread, gpt_inside, here, made  # noqa: F401
from tests.model.test_external import NanoGPT, save_llmc, save_nanogpt
from tests.small_runs import make_shards

Gpt = Callable[..., tuple[str, str]]
OPTIONS = [
    "train", "--n-layer", "1", "--n-head", "1", "--d-model", "8", "--n-ctx", "16", "--tokens", "640",
    "--batch-tokens", "64", "--lr", "3e-3", "--compile", "off", "--precision", "fp32",
    "--samples", "0", "--eval-every", "5",
]  # fmt: skip
ROWS = 264
"""Vocabulary of the shards' 260 entries, padded to a multiple of 8."""


def test_seeds_are_trained_continued_and_averaged(gpt_inside: Gpt, here: Path) -> None:
    one = json.loads(gpt_inside(*OPTIONS, "--seeds", "2", "-o", "many", "--json")[0])
    report = json.loads((here / "many/seeds.json").read_text())
    assert report == {"schema": "gpt.train.seeds/1", **{k: one[k] for k in one if k != "schema"}}
    assert one["runs"] == ["many/seed-0", "many/seed-1"]
    assert one["losses"][0] != one["losses"][1]
    assert one["low"] < one["mean"] < one["high"]
    before = (here / "many/seed-0/model.safetensors").stat().st_mtime_ns
    out, err = gpt_inside(*OPTIONS, "--seeds", "3", "-o", "many", "--json", "--resume")
    three = json.loads(out)
    assert three["losses"][:2] == one["losses"]
    assert len(three["losses"]) == 3
    assert "many/seed-1 is finished" in err
    assert (here / "many/seed-0/model.safetensors").stat().st_mtime_ns == before
    gpt_inside("train", "--report", "many", "-o", "page.html")
    page = (here / "page.html").read_text()
    assert "above the lowest" in page
    assert f"{three['mean']:.4f} ±" in page


def test_a_lost_run_of_several_seeds_comes_back_from_the_store(gpt_inside: Gpt, here: Path) -> None:
    again = [*OPTIONS, "--seeds", "2", "-o", "many", "--checkpoint-to", str(here / "store")]
    one = json.loads(gpt_inside(*again, "--json")[0])
    assert sorted(path.name for path in (here / "store").iterdir()) == ["seed-0", "seed-1"]
    err = gpt_inside(*again, "--force", code=2)[1]
    assert "--checkpoint-to" in err
    assert "has checkpoints already" in err
    shutil.rmtree(here / "many" / "seed-1")
    out, err = gpt_inside(*again, "--resume", "--json")
    assert "fetching that of step 10" in err
    assert json.loads(out)["losses"] == one["losses"]


def test_a_sweep_is_written_and_its_mistakes_are_refused(gpt_inside: Gpt, here: Path) -> None:
    wanted = [*OPTIONS[:-2], "--sweep", "ema=0,0.9", "--sweep", "seed=1", "-o", "sweep"]
    gpt_inside(*wanted, "--force", "--checkpoint-to", "memory://b")
    stored = (here / "sweep/commands.txt").read_text().splitlines()
    assert [line.split("--checkpoint-to ")[1].split()[0] for line in stored] == [
        "memory://b/ema-0,seed-1",
        "memory://b/ema-0.9,seed-1",
    ]
    (here / "sweep/Makefile").unlink()
    assert gpt_inside(*wanted)[0] == "sweep/Makefile\n"
    commands = (here / "sweep/commands.txt").read_text().splitlines()
    assert [line.split(" -o ")[1] for line in commands] == [
        "sweep/ema-0,seed-1 --resume",
        "sweep/ema-0.9,seed-1 --resume",
    ]
    assert not (here / "sweep/ema-0,seed-1").exists()
    for items, words in (
        (["--sweep", "lr=1"], "is given and swept"),
        (["--sweep", "emma=1"], "did you mean ema"),
        (["--sweep", "learning_rate=1"], "it is called lr here"),
        (["--sweep", "ema=2"], "2 is out of range"),
        (["--seeds", "2", "--dry-run"], "--dry-run has no effect with --seeds"),
    ):
        assert words in gpt_inside(*OPTIONS, *items, "-o", "other", code=2)[1]


def gpt(*args: object) -> str:
    """Run a command in this process and return its stdout; its errors are raised."""
    argv = list(map(str, args))
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", train=2000, val=100)


@pytest.fixture
def nano(tmp_path: Path, shards: Path) -> Path:
    """Return nanoGPT's out/, with a checkpoint and the tokenizer of its data."""
    folder = tmp_path / "nano"
    folder.mkdir()
    save_nanogpt(folder / "ckpt.pt", NanoGPT(False, ROWS), False)
    load_tokenizer(shards).save(folder / "tokenizer.json")
    return folder


def test_nanogpt_checkpoint_becomes_a_folder_of_transformers(nano: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert gpt("train", "--export", nano, "-o", tmp_path / "out").strip() == str(tmp_path / "out")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    idx = torch.tensor([tokenizer.encode("a small text")])
    with torch.no_grad():
        ours = load_model(nano / "ckpt.pt")(idx)[..., :260]
        assert (theirs.eval()(idx).logits - ours).abs().max() < 1e-5
    text = gpt("sample", tmp_path / "out", "a small", "--greedy", "--max-tokens", 5)
    assert gpt("sample", nano, "a small", "--greedy", "--max-tokens", 5) == text


def test_gguf_file_is_written_once(nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    gpt("train", "--export", nano, "-o", path, "--precision", "fp16")
    assert path.read_bytes().startswith(b"GGUF\x03")
    before = path.stat().st_size
    with pytest.raises(UsageError, match="exists already"):
        gpt("train", "--export", nano, "-o", path)
    gpt("train", "--export", nano, "-o", path, "--force")
    assert path.stat().st_size > before


def test_training_starts_from_the_weights_of_another_program(
    nano: Path, shards: Path, tmp_path: Path
) -> None:
    gpt(
        "train", "--init-from", nano, "--data", shards, "-o", tmp_path / "run", "--tokens", 64,
        "--batch-tokens", 32, "--lr", "1e-9", "--compile", "off", "--precision", "fp32",
        "--samples", 0,
    )  # fmt: skip
    first, last = load_model(nano / "ckpt.pt"), load_model(tmp_path / "run")
    assert last.config.gelu == "exact"
    for name, tensor in last.state_dict().items():
        assert torch.allclose(tensor, first.state_dict()[name][: len(tensor)], atol=1e-6)


def test_evaluation_reads_the_checkpoint_of_llm_c(tmp_path: Path, shards: Path) -> None:
    model, folder = tmp_path / "model.bin", tmp_path / "as-folder"
    save_llmc(model, NanoGPT(True, 384))
    load_tokenizer(shards).save(tmp_path / "tokenizer.json")
    gpt("train", "--export", model, "-o", folder)
    (tmp_path / "a.txt").write_text("a small text " * 9)
    one, other = (
        json.loads(gpt("eval", path, "--text", tmp_path / "a.txt", "--json"))["losses"][0]["loss"]
        for path in (model, folder)
    )
    assert one == pytest.approx(other, rel=1e-6)


def test_vocabulary_of_another_tokenizer_is_refused(tmp_path: Path, shards: Path) -> None:
    save_nanogpt(tmp_path / "ckpt.pt", NanoGPT(True, 500), True)
    load_tokenizer(shards).save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="the model's vocabulary has 500"):
        gpt("train", "--export", tmp_path / "ckpt.pt", "-o", tmp_path / "out")


def refused(case: str, nano: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("x")
    cases: dict[str, list[object]] = {
        "a folder with files": [nano, "-o", tmp_path / "full"],
        "its own folder": [nano, "-o", nano, "--force"],
        "a folder above it": [nano / "ckpt.pt", "-o", tmp_path, "--force"],
        "a precision of a folder": [nano, "-o", tmp_path / "out", "--precision", "fp16"],
        "an unknown precision": [nano, "-o", tmp_path / "x.gguf", "--precision", "fp8"],
        "nothing": [tmp_path / "none", "-o", tmp_path / "out"],
        "a checkpoint of a file": [nano, "-o", tmp_path / "out", "--checkpoint", "3"],
        "two models": [nano, nano, "-o", tmp_path / "out"],
        "no model": ["-o", tmp_path / "out"],
        "no output": [nano],
        "an option of training": [nano, "-o", tmp_path / "out", "--lr", "1"],
        "another mode": [nano, "--report", "-o", tmp_path / "out"],
    }
    return cases[case]


MESSAGES = {
    "a folder with files": "the output folder is not empty",
    "its own folder": "contains the model that is to be exported",
    "a folder above it": "contains the model that is to be exported",
    "a precision of a folder": "is written in fp32, not fp16",
    "an unknown precision": "unknown precision 'fp8'",
    "nothing": "no such folder",
    "a checkpoint of a file": "no checkpoint of step 3",
    "two models": "takes one model, not 2",
    "no model": "the model is missing",
    "no output": "the output is missing",
    "an option of training": "--lr has no effect with --export, which only writes",
    "another mode": "--export has no effect with --report, which only draws",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_what_cannot_be_exported_is_refused(case: str, nano: Path, tmp_path: Path) -> None:
    with pytest.raises(GptError, match=MESSAGES[case]):
        gpt("train", "--export", *refused(case, nano, tmp_path))
    load_model(nano)  # untouched
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))


def test_values_are_read_whether_their_commas_were_split_or_not() -> None:
    wanted = {"lr": ["1e-3", "2e-3"], "batch_tokens": ["8k"]}
    assert parse_sweep(["lr=1e-3,2e-3", "batch-tokens=8k"]) == wanted
    assert parse_sweep(["lr=1e-3", "2e-3", "--batch-tokens = 8k"]) == wanted
    for wrong in (["1e-3"], ["lr="], ["lr=1", "lr=2"], ["lr=1,,2"], ["=3"]):
        with pytest.raises(UsageError):
            parse_sweep(wrong)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_each_command_once_and_then_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/gpt"
    fake.write_text(
        '#!/bin/sh\necho "$*" >> asked\n'
        'while [ $# -gt 0 ]; do case "$1" in -o) out=$2;; esac; shift; done\n'
        'case "$out" in *.html) touch "$out";; *) mkdir -p "$out"; touch "$out/seeds.json";; esac\n'
    )
    fake.chmod(0o755)
    out = Path("sweep")
    runs = write_sweep(
        out, {"lr": ["1e-3", "2e-3"], "ema": ["0", "0.9"]}, ["--data", "a $b"], seeds=3
    )
    assert [run.name for run in runs][:2] == ["lr-1e-3,ema-0", "lr-1e-3,ema-0.9"]
    make = ["make", "-s", "-j2", "-f", "sweep/Makefile"]
    for _ in range(2):  # the second time there is nothing to do
        subprocess.run(make, check=True, env={"PATH": f"{tmp_path}/bin:/usr/bin:/bin"})
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) == 5
    assert asked[-1].startswith("train --report sweep/lr-1e-3,ema-0 ")
    assert sorted(asked[:4])[0] == (
        "train --data a $b --lr 1e-3 --ema 0 --seeds 3 -o sweep/lr-1e-3,ema-0 --resume"
    )
    assert len((out / "commands.txt").read_text().splitlines()) == 4


def test_names_that_make_cannot_have_are_refused(tmp_path: Path) -> None:
    for folder in ("two words", "a:b", "x=y"):
        with pytest.raises(UsageError, match="make cannot"):
            write_sweep(tmp_path / folder, {"lr": ["1"]}, [])
    with pytest.raises(UsageError, match="same values"):
        write_sweep(tmp_path / "x", {"lr": ["1", "1"]}, [])
