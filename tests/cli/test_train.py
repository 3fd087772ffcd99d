"""`gpt train` as a user meets it."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gptcli.cli import main
from gptcli.cli.train import train
from gptcli.cli.train_modes import draw_report
from gptcli.errors import UsageError
from gptcli.files import read_toml
from gptcli.runs.metrics import read_metrics
from tests.fork_server import python
from tests.small_runs import make_shards
from tests.waiting import wait_until

SHAPE = [
    *("--n-layer", "1", "--n-head", "1", "--d-model", "8", "--n-ctx", "16"),
    *("--batch-tokens", "64"),
]
SMALL = [*SHAPE, "--tokens", "640"]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with `shards` in it."""
    folder = tmp_path_factory.mktemp("made")
    make_shards(folder / "shards")
    return folder


@pytest.fixture
def here(made, tmp_path) -> Path:
    shutil.copytree(made / "shards", tmp_path / "shards")
    return tmp_path


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def gpt_inside(here, monkeypatch, capsys):
    """As the fixture `gpt`, in this process, which has imported torch once; returns stdout and
    stderr.
    """
    monkeypatch.chdir(here)

    def run(*words: str, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["gpt", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err
        return out, err

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_as_typed_then_again_then_resumed(gpt, gpt_inside, here):
    done = gpt("train", "--size", "125M", *SMALL)
    assert done.stdout == "runs/125M\n"
    out = here / "runs" / "125M"
    text = (out / "run.toml").read_text()
    assert "tokens = 640" in text
    assert "# command: gpt train --size 125M" in text
    made = dict(re.findall(r"^# (\w+): (.+)$", text.partition("\n\n")[0], re.MULTILINE))
    assert {"date", "host", "device", "torch", "python", "data", "passes"} <= made.keys()
    assert made["data"].startswith(f"{here / 'shards'}, ")
    assert re.search(
        r"trained on 640 tokens in .*, loss \d\.\d{4} \(mean of the last 5 steps\)", done.stderr
    )
    assert f"| Date | {made['date']} |" in (out / "README.md").read_text()
    assert f"<dt>device</dt><dd>{made['device']}</dd>" in (out / "report.html").read_text()
    origins = {
        line.partition(" = ")[0]: line.rpartition("  # ")[2]
        for line in text.splitlines()
        if " = " in line
    }
    assert origins["d_model"] == "option"
    assert origins["attention"] == "gpt3-small"
    assert origins["beta2"] == "GPT-3, gpt3-small"
    assert origins["lr"].startswith("GPT-3, Table 2.1, continued to ")
    assert origins["decay_tokens"] == "GPT-3, gpt3-small, in proportion to tokens"
    assert (
        origins["warmup_tokens"]
        == "2 / (1 - beta2) steps (Ma and Yarats 2021), or a tenth of the run"
    )
    assert origins["precision"].startswith("auto: ")

    before = contents(out)
    _, refused = gpt_inside("train", "--size", "125M", *SMALL, code=2)
    assert "--resume" in refused
    assert "--force" in refused
    assert "is finished" in gpt_inside("train", "--size", "125M", *SMALL, "--resume")[1]
    # what is not said again is as before
    assert "is finished" in gpt_inside("train", "--out", "runs/125M", "--resume")[1]
    assert (
        "lr was 0.004, now 0.001"
        in gpt_inside("train", "--size", "125M", "--lr", "1e-3", "--resume", code=2)[1]
    )
    assert (
        "125M, not 350M"
        in gpt_inside("train", "--size", "350M", "--out", "runs/125M", "--resume", code=2)[1]
    )
    assert contents(out) == before
    report = json.loads(gpt_inside("train", "--size", "125M", *SMALL, "--force", "--json")[0])
    assert report["schema"] == "gpt.train/1"
    assert (report["step"], report["tokens"], report["smoothed_steps"]) == (10, 640, 5)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert report["loss"] == lines[-1]["loss"]
    assert report["smoothed_loss"] == pytest.approx(sum(line["loss"] for line in lines[-5:]) / 5)
    assert (out / "model.safetensors").read_bytes() == before["model.safetensors"]


STOPPED = """
import os, signal
from gptcli.__main__ import main
from gptcli.runs.metrics import MetricsLog
write, left = MetricsLog.write, [4]
def counted(log, line):
    write(log, line)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGTERM)
MetricsLog.write = counted
main()
"""


def test_sigterm_checkpoints_and_exits_130(gpt_inside, here):
    """The signal comes after the fourth step, however busy the machine is."""
    words = ["train", "--size", "gpt2", *SMALL]
    done = python("-c", STOPPED, *words, cwd=here)
    assert done.returncode == 130, done.stderr.decode()
    assert "--resume continues it" in done.stderr.decode()
    assert len(read_metrics(here / "runs" / "gpt2")) in (4, 5)
    gpt_inside(*words, "--resume")
    gpt_inside(*words, "--out", "whole")
    assert (here / "whole" / "model.safetensors").read_bytes() == (
        here / "runs" / "gpt2" / "model.safetensors"
    ).read_bytes()


def test_a_model_as_the_start_of_a_new_run(gpt_inside, here):
    gpt_inside(
        "train",
        "--size",
        "gpt2",
        *SMALL,
        "--tokens",
        "6400",
        "--eval-tokens",
        "128",
        "--out",
        "first",
    )
    words = [
        "train",
        "--init-from",
        "first",
        "--tokens",
        "640",
        "--batch-tokens",
        "64",
        "--eval-tokens",
        "128",
    ]
    gpt_inside(*words, "--lr", "1e-9", "--out", "second")
    last, first = (
        [json.loads(line) for line in (here / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("first", "second")
    )
    assert first[0]["step"] == 1
    assert first[-1]["val_loss"] == pytest.approx(last[-1]["val_loss"], abs=1e-4), (
        "it begins where the other ended"
    )
    assert last[-1]["val_loss"] < last[0]["loss"] - 0.01
    assert tomllib.loads((here / "second" / "run.toml").read_text())["n_layer"] == 1
    assert "n_layer is 1, this command says 2" in gpt_inside(*words, "--n-layer", "2", code=2)[1]
    assert "n_layer is 1, this command says 12" in gpt_inside(*words, "--size", "gpt2", code=2)[1]
    shutil.copytree(here / "first", here / "other")
    assert (
        "init_from was first, now other"
        in gpt_inside(*words, "--init-from", "other", "--out", "second", "--resume", code=2)[1]
    )
    assert (
        "contains token shards, not a model"
        in gpt_inside("train", "--init-from", "shards", code=2)[1]
    )


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")
def test_the_slurm_job_finishes_though_a_worker_is_killed(gpt_inside, here, free_port):
    words = [
        "--size",
        "gpt2",
        *SMALL,
        "--tokens",
        "3840",
        "--checkpoint-every",
        "10",
        "--precision",
        "fp32",
    ]
    gpt_inside("train", *words, "--out", "one")
    for name, body in {"srun": 'shift; exec "$@"', "scontrol": "echo localhost"}.items():
        (here / name).write_text(f"#!/bin/bash\n{body}\n")
        (here / name).chmod(0o755)
    job = f"test-{os.getpid()}"
    env = {
        "PATH": f"{here}:{Path(sys.executable).parent}:{os.environ['PATH']}", "PORT": free_port(), "PROCESSES": "2",
        "SLURM_JOB_ID": job, "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1",
    }  # fmt: skip
    script = Path(__file__).parents[2] / "examples" / "cluster" / "train.slurm"
    process = subprocess.Popen(
        ["bash", script, *words, "--out", "two"],
        cwd=here,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not list(here.glob("two/checkpoints/step-*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    os.kill(worker_of(job, rank=1), signal.SIGKILL)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    assert out == "two\n"
    assert "resuming after step" in errors
    one, two = (
        [
            json.loads(line)["loss"]
            for line in (here / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "two")
    )
    assert two == pytest.approx(one, abs=1e-4)


def worker_of(job: str, rank: int) -> int:
    wanted = {f"SLURM_JOB_ID={job}".encode(), f"RANK={rank}".encode()}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")):
                return int(folder.name)
    raise AssertionError("no such worker")


def test_dry_run_shows_and_writes_nothing(gpt_inside, here):
    before = contents(here)
    shown = gpt_inside("train", "--size", "350M", "--data", "shards", "--dry-run")[0]
    assert tomllib.loads(shown)["batch_tokens"] == 2**19
    assert "# steps: " in shown
    table = json.loads(
        gpt_inside("train", "--size", "350M", "--data", "none yet", "--dry-run", "--json")[0]
    )
    assert table["parameters"] == 355_871_744
    assert table["memory_bytes"] > 16 * 355_871_744, "the state, and what a step needs on top"
    assert table["fits"] == (table["memory_bytes"] <= table["memory_available_bytes"])
    assert table["passes"] is None
    assert 0 < table["seconds_low"] < table["seconds_high"]
    assert table["config"]["tokens"] == 300_000_000_000
    assert table["steps"] > 300e9 / 2**19
    assert contents(here) == before


def test_without_shards_a_dry_run_takes_the_papers_vocabulary(gpt_inside):
    for size, parameters in (("gpt1", "116,534,784"), ("gpt2", "124,439,808")):
        assert (
            f"# parameters: {parameters}\n"
            in gpt_inside("train", "--size", size, "--data", "none yet", "--dry-run")[0]
        )


def test_a_dry_run_says_where_the_vocabulary_is_from(gpt_inside, here):
    words = ("train", "--size", "gpt2", "--dry-run", "--data")
    assumed = "# vocabulary: 50,257 entries, assumed: there is no data in none yet\n"
    assert assumed in gpt_inside(*words, "none yet")[0]
    shown = gpt_inside(*words, "shards")[0]
    assert "entries, by the data\n" in shown
    others = here / "others"  # files of llm.c: the same shards without their manifest
    shutil.copytree(here / "shards", others)
    (others / "manifest.json").unlink()
    kept = [line for line in shown.splitlines() if line.startswith(("# vocabulary", "# tokens"))]
    assert len(kept) == 2
    assert set(kept) <= set(gpt_inside(*words, "others")[0].splitlines())


def test_dry_run_of_a_layout_tells_of_every_stage(gpt_inside):
    shown = gpt_inside("train", "--size", "gpt2", "--layout", "tp=2,pp=2", "--dry-run")[0]
    stages = [line for line in shown.splitlines() if line.startswith("# stage ")]
    assert ["2 processes" in line for line in stages] == [True, True]
    assert "B over tp" in stages[0]
    words = ("--size", "gpt2", "--layout", "shard=3", "--precision", "fp32", "--dry-run", "--json")
    table = json.loads(gpt_inside("train", *words)[0])
    low, high = table["roles"][0]["parameters"]
    assert 3 * low <= table["parameters"] <= 3 * high


def test_option_over_file_over_paper_and_an_earlier_run_as_a_file(gpt_inside, here):
    (here / "small.toml").write_text(
        'size = "gpt2"\nn-layer = 2\nlr = 1e-3\ntokens = "0.5M"\nbeta2 = 0.99\ncompile = "off"\n'
    )
    first = gpt_inside("train", "--config", "small.toml", "--lr", "2e-3", "--dry-run")[0]
    values = tomllib.loads(first)
    assert (
        values["n_layer"],
        values["lr"],
        values["tokens"],
        values["beta2"],
        values["n_head"],
    ) == (2, 2e-3, 500_000, 0.99, 12)
    (here / "run.toml").write_text(first)
    assert tomllib.loads(gpt_inside("train", "--config", "run.toml", "--dry-run")[0]) == values


BAD = {
    "no size": ([], "no size is given"),
    "unknown size": (["--size", "351M"], "the nearest are"),
    "heads": (["--size", "gpt2", "--n-head", "7"], "is not a multiple of n_head 7"),
    "slices": (["--size", "gpt2", "--layout", "tp=5"], "tp can be 1, 2, 3, 4, 6, 12"),
    "stages": (
        [*SMALL, "--layout", "pp=2", "--pipeline-schedule", "loopedbfs", "--n-layer", "3"],
        "1f1b makes half as many",
    ),
    "schedule": (["--size", "gpt2", "--pipeline-schedule", "2f2b"], "none of 1f1b"),
    "recomputation": (
        ["--size", "gpt2", "--recompute", "some"],
        "none of auto, none, selective, full",
    ),
    "no GPU for fp8": (
        ["--size", "gpt2", "--n-ctx", "128", "--precision", "fp8"],
        "this machine has no GPU with fp8",
    ),
    "no shards": (["--size", "gpt2", "--data", "nowhere"], "nowhere: no such shard folder"),
    "not shards": (["--size", "gpt2", "--data", "."], "not a shard folder"),
    "no number": (["--size", "gpt2", "--tokens", "many"], "--tokens: 'many' is not a number"),
    "no whole number": (
        ["--size", "gpt2", "--n-layer", "1.5"],
        "--n-layer: '1.5' is not a whole number",
    ),
    "negative": (["--size", "gpt2", "--lr", "0"], "--lr: 0 is out of range"),
    "precision": (["--size", "gpt2", "--precision", "fp64"], "none of auto, bf16, fp32, fp16, fp8"),
    "compile": (["--size", "gpt2", "--compile", "maybe"], "--compile: 'maybe' is none of"),
    "two rates": (
        ["--size", "gpt2", "--scale-lr", "--lr", "1e-3"],
        "--scale-lr and --lr: both set the learning rate",
    ),
    "two widths": (
        ["--size", "gpt2", "--scale-lr", "--mup", "64"],
        "muP keeps the learning rate of another width",
    ),
    "muP of no rate": (["--size", "gpt2", "--mup", "64"], "--lr X, as found at --d-model 64"),
    "muP of no width": (
        ["--size", "gpt2", "--mup", "0", "--lr", "1e-3"],
        "--mup: 0 is out of range",
    ),
    "muP of GPT-1": (["--size", "gpt1", "--mup", "64", "--lr", "1e-3"], "which GPT-1 lacks"),
    "axis": (["--size", "gpt2", "--layout", "pd=2"], "unknown axis 'pd'"),
    "processes": ([*SMALL, "--layout", "dp=999"], "999 processes"),
    "sequences": ([*SMALL, "--layout", "dp=5"], "a batch is 4 sequences"),
    "context": (["--size", "gpt2", "--n-ctx", "8192"], "too few for a context of 8,192"),
    "short": ([*SMALL, "--tokens", "15"], "less than one sequence"),
    "out holds data": ([*SMALL, "--out", ".", "--force"], "contains the shards"),
    "file": (["--config", "gone.toml"], "no such configuration file"),
    "contradiction": ([*SMALL, "--resume", "--force"], "contradict"),
    "nothing to resume": (["--resume", "--tokens", "512"], "runs/gpt: there is no run here"),
    "task without data": (
        ["--size", "gpt2", "--dry-run", "--eval-task", "hellaswag"],
        "--eval-task: hellaswag needs its data",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_message_and_writes_nothing(gpt_inside, here, case):
    words, message = BAD[case]
    before = contents(here)
    out, err = gpt_inside("train", *words, code=2)
    assert message in err
    said = [line for line in err.splitlines() if " is given 2 times: " not in line]
    assert said[0].startswith("gpt: ")
    assert out == ""
    assert contents(here) == before
    assert not (here / "runs").exists()


def test_a_resume_before_the_first_checkpoint_says_that_it_starts_again(gpt_inside, here):
    words = ("train", "--size", "gpt2", *SMALL, "--out", "run")
    gpt_inside(*words)
    for path in (here / "run").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "run.toml":
            path.unlink()
    _, err = gpt_inside(*words, "--resume")
    assert "run: nothing to resume there, so it starts from the beginning" in err
    assert (here / "run/model.safetensors").is_file()

    # damaged checkpoints are something
    (here / "run/model.safetensors").unlink()
    for folder in (here / "run/checkpoints").iterdir():
        (folder / "state.json").write_text("{")
    _, err = gpt_inside(*words, "--resume", code=2)
    assert "nothing to resume" not in err
    assert "no checkpoint here is intact" in err


def test_an_unknown_key_is_named_with_its_line(gpt_inside, here):
    (here / "c.toml").write_text('size = "gpt2"\n\nn-layers = 2\n')
    _, err = gpt_inside("train", "--config", "c.toml", code=2)
    assert "c.toml:3: unknown key 'n-layers'" in err
    assert "n_layer" in err


@pytest.mark.parametrize("folder", ["out\r", "out\x01", "out\x7f\x85\u2028", 'say "it\'s" \\ new'])
def test_a_folder_of_any_name_is_trained_in_and_resumed(gpt_inside, here, folder):
    (here / "shards").rename(here / folder)
    gpt_inside("train", "--size", "gpt2", *SMALL, "--data", folder, "--out", f"{folder} run")
    text = (here / f"{folder} run" / "run.toml").read_text(encoding="utf-8")
    assert read_toml(here / f"{folder} run" / "run.toml")["data"] == folder
    assert len([line for line in text.splitlines() if line.startswith("# command:")]) == 1
    assert "is finished" in gpt_inside("train", "--out", f"{folder} run", "--resume")[1]
    gpt_inside("train", "--report", f"{folder} run")
    assert gpt_inside("sample", f"{folder} run", "a", "--max-tokens", "2")[0].startswith("a")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 are Linux's")
def test_a_folder_whose_name_is_not_utf8(here):
    """Latin-1, as on an old disk: trained on, resumed, drawn and sampled from, and printed as it
    is.
    """
    shards, run = b"sh\xe9", b"r\xe9 run"
    (here / "shards").rename(here / os.fsdecode(shards))

    def gpt(*words: str | bytes) -> tuple[bytes, bytes]:
        done = python("-m", "gptcli", *map(os.fsdecode, words), cwd=here)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr

    assert gpt("train", "--size", "gpt2", *SMALL, "--data", shards, "--out", run)[0] == run + b"\n"
    assert read_toml(here / os.fsdecode(run) / "run.toml")["data"] == os.fsdecode(shards)
    assert b"is finished" in gpt("train", "--out", run, "--resume")[1]
    gpt("train", "--report", run)
    assert gpt("sample", run, "a", "--max-tokens", "2")[0].startswith(b"a")
    assert json.loads(gpt("eval", run, "--json")[0])["model"] == os.fsdecode(run)


def test_a_byte_order_mark_before_a_configuration(gpt_inside, here):
    (here / "c.toml").write_bytes(b"\xef\xbb\xbfseed = 3\n")
    assert (
        "seed = 3"
        in gpt_inside("train", "--size", "gpt2", *SMALL, "--config", "c.toml", "--dry-run")[0]
    )


def test_a_padded_vocabulary_as_the_start_of_a_run(gpt_inside, here):
    """Its padding is left behind: the new run has the shards' vocabulary."""
    import torch

    from gptcli.model.config import ModelConfig
    from gptcli.model.safetensors_io import load_model, save_model
    from gptcli.model.transformer import GPT
    from gptcli.shards.manifest import read_manifest

    entries = read_manifest(here / "shards").vocab_size
    padded = GPT(ModelConfig(n_layer=1, n_head=1, d_model=16, n_ctx=16, vocab_size=entries + 8))
    padded.init_weights(0)
    save_model(here / "padded", padded, padded.config)
    shutil.copy(here / "shards" / "tokenizer.json", here / "padded")
    words = [
        "--tokens",
        "64",
        "--batch-tokens",
        "64",
        "--lr",
        "1e-12",
        "--eval-tokens",
        "128",
        "--compile",
        "off",
    ]
    gpt_inside("train", "--init-from", "padded", *words, "--out", "run")
    trained = load_model(here / "run")
    assert trained.config.vocab_size == entries < padded.config.vocab_size
    torch.testing.assert_close(trained.wte.weight, padded.wte.weight[:entries], atol=1e-6, rtol=0)


@pytest.mark.skipif(os.name == "nt", reason="limits the size of files")
def test_a_disk_that_is_full_keeps_what_is_whole(here):
    """A limit on file size stands in for the disk: model.safetensors fits, the optimizer's state
    does not.
    """
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));from gptcli.cli import main; main()"
    done = python("-c", script, "train", "--size", "gpt2", *SMALL, "--out", "run", cwd=here)
    assert done.returncode == 1, done.stderr
    assert b"the checkpoint could not be written" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list((here / "run").rglob("*.safetensors"))


def test_a_batch_that_follows_the_noise_from_the_command_line(gpt_inside, here):
    small = ["train", "--size", "125M", *SMALL[:-4], "--tokens", "640"]
    (here / "c.toml").write_text('batch-tokens = "auto"\nramp-from = 32\n')
    values = tomllib.loads(gpt_inside(*small, "--config", "c.toml", "--dry-run")[0])
    assert (
        values["follow_noise"],
        values["batch_tokens"],
        values["ramp_tokens"],
        values["ramp_from"],
    ) == (True, 2**19, 0, 32)
    assert values["micro_batch"] == 1  # of two sequences
    values = tomllib.loads(gpt_inside(*small, "--batch-tokens", "auto", "--dry-run")[0])
    assert (values["follow_noise"], values["ramp_from"]) == (True, 32_000)
    assert (
        "no noise to measure"
        in gpt_inside(*small, "--config", "c.toml", "--micro-batch", "2", code=2)[1]
    )
    assert (
        "has no ramp"
        in gpt_inside(*small, "--batch-tokens", "auto", "--ramp-tokens", "1k", code=2)[1]
    )


def test_mup_is_resumed_to_the_bit_and_no_other_run(gpt_inside, here):
    """Its learning rates and its start are those of the width it names."""
    words = ["train", *SMALL, "--d-model", "16", "--lr", "1e-2", "--warmup-tokens", "64"]
    gpt_inside(*words, "--mup", "4", "--out", "whole")
    assert "\nmup = 4 " in (here / "whole" / "run.toml").read_text()
    shutil.copytree(here / "whole", here / "half")
    shutil.rmtree(here / "half" / "checkpoints" / "step-00000010")
    (here / "half" / "model.safetensors").unlink()
    assert "resuming after step 9" in gpt_inside("train", "--out", "half", "--resume")[1]
    assert (here / "half" / "model.safetensors").read_bytes() == (
        here / "whole" / "model.safetensors"
    ).read_bytes()
    assert (
        "mup was 4, now 8"
        in gpt_inside(*words, "--mup", "8", "--out", "half", "--resume", code=2)[1]
    )

    gpt_inside(*words, "--out", "standard")
    gpt_inside(*words, "--mup", "16", "--out", "its own width")
    same = (here / "standard" / "model.safetensors").read_bytes()
    assert same == (here / "its own width" / "model.safetensors").read_bytes()
    assert same != (here / "whole" / "model.safetensors").read_bytes()

    gpt_inside(
        "train", "--init-from", "whole", "--mup", "4", "--lr", "1e-9", *SMALL[-4:], "--out", "more"
    )
    more, whole = (load_file(here / name / "model.safetensors") for name in ("more", "whole"))
    assert all(torch.allclose(more[name], whole[name], atol=1e-6) for name in whole), (
        "weights to begin with are not rescaled"
    )


def test_a_rate_between_the_papers_sizes(gpt_inside):
    shown = gpt_inside(
        "train", "--size", "gpt2", "--d-model", "1024", "--n-head", "16", "--scale-lr", "--dry-run"
    )[0]
    assert 3e-4 < tomllib.loads(shown)["lr"] < 6e-4
    assert "  # GPT-3, Table 2.1, at 152," in shown  # with the vocabulary of the shards here
    assert "scale_lr" not in tomllib.loads(shown)


def test_the_range_test_prints_a_rate_and_leaves_a_picture(gpt_inside, here):
    words = ["train", "--size", "gpt2", *SMALL, "--tokens", "2k", "--lr-range"]
    out, err = gpt_inside(*words)
    assert 1e-6 < float(out) < 1
    assert "lr_range.html" in err
    assert {path.name for path in (here / "runs" / "gpt2-lr-range").iterdir()} == {
        "lr_range.html",
        "lr_range.jsonl",
        "run.toml",
    }
    report = json.loads(gpt_inside(*words, "--force", "--json")[0])
    assert report["schema"] == "gpt.train/1"
    assert report["suggested_lr"] == pytest.approx(float(out), rel=0.1)
    assert "cannot be resumed" in gpt_inside(*words, "--resume", code=2)[1]
    assert "unknown tracker" in gpt_inside(*words[:-1], "--track", "paper", code=2)[1]


# --- runs that are not finished: sampled, scored and started from while they go on, after kill -9
# and after SIGTERM ---
ENDLESS = [
    "train",
    *SHAPE,
    *("--samples", "0"),
    "--tokens",
    "100M",
    "--checkpoint-every",
    "20",
    "--compile",
    "off",
    "--precision",
    "fp32",
    "--out",
    "run",
]
NEXT = [
    "train",
    "--batch-tokens",
    "64",
    "--tokens",
    "128",
    "--eval-tokens",
    "32",
    "--compile",
    "off",
]


@pytest.fixture
def started(here: Path):
    """Start the long run, and end it with the test."""
    processes = []

    def start(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "gptcli", *ENDLESS, *words],
            cwd=here,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def steps(here: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (here / "run/checkpoints").glob("step-*"))


def read(gpt_inside) -> tuple[int, int]:
    """The steps that gpt sample and gpt eval read, as they say on stderr and in JSON."""
    found = []
    for words in (
        ["sample", "run", "a", "--max-tokens", "2", "--json"],
        ["eval", "run", "--json", "--limit", "2"],
    ):
        out, err = gpt_inside(*words)
        step = json.loads(out)["step"]
        assert f"reading step {step:,} of run, an unfinished run" in err
        found.append(step)
    return found[0], found[1]


def test_while_it_goes_on_after_a_kill_and_after_a_stop(gpt_inside, started, here) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    process = started()
    wait_until(lambda: (here / "run/run.toml").exists(), process)
    wait_until(lambda: (here / "run/model.safetensors.index.json").exists(), process)
    for _ in range(3):  # it goes on meanwhile, and removes what was the newest
        before = max(steps(here))
        sampled, scored = read(gpt_inside)
        assert before <= sampled <= scored <= max(steps(here))
    gpt_inside(*NEXT, "--init-from", "run", "--out", "next")
    assert (
        scored
        <= tomllib.loads((here / "next/run.toml").read_text())["checkpoint"]
        <= max(steps(here))
    )
    AutoTokenizer.from_pretrained(here / "run")
    AutoModelForCausalLM.from_pretrained(here / "run")
    assert process.poll() is None, "all this while it went on"
    process.kill()
    process.wait()

    newest = max(steps(here))
    assert read(gpt_inside) == (newest, newest)
    AutoModelForCausalLM.from_pretrained(here / "run")
    words = ["eval", "run", "--json", "--limit", "2", "--checkpoint"]
    assert [json.loads(gpt_inside(*words, str(step))[0])["step"] for step in steps(here)] == steps(
        here
    )
    refused = gpt_inside("sample", "run", "a", "--checkpoint", "1", code=2)[1]
    assert "run: no checkpoint of step 1" in refused
    assert f"{newest:,}" in refused

    process = started("--resume")
    wait_until(lambda: max(steps(here)) > newest, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    newest = max(steps(here))
    assert newest == read_metrics(here / "run")[-1]["step"]
    assert read(gpt_inside) == (newest, newest)
    AutoModelForCausalLM.from_pretrained(here / "run")


def test_a_run_that_starts_from_a_checkpoint_does_not_need_it_again(
    gpt_inside, here, started
) -> None:
    process = started()
    wait_until(lambda: len(steps(here)) == 2, process)
    process.kill()
    process.wait()
    first, newest = steps(here)
    words = [*NEXT, "--init-from", "run"]
    gpt_inside(*words, "--out", "whole", "--checkpoint", str(first))
    assert not (here / "whole/init").exists()
    assert tomllib.loads((here / "whole/run.toml").read_text())["checkpoint"] == first

    shutil.copytree(here / "run", here / "source")
    gpt_inside(*NEXT, "--init-from", "source", "--out", "other")
    assert f"checkpoint = {newest} " in (here / "other/run.toml").read_text()
    assert "the newest of init_from" in (here / "other/run.toml").read_text()
    for name in ("model.safetensors", "README.md"):
        (here / "other" / name).unlink()
    shutil.rmtree(here / "source")
    shutil.rmtree(here / "other/checkpoints/step-00000002")
    gpt_inside(*NEXT, "--init-from", "source", "--out", "other", "--resume")
    assert (here / "other/model.safetensors").exists()
    again = gpt_inside(
        *NEXT,
        "--init-from",
        "source",
        "--out",
        "other",
        "--resume",
        "--checkpoint",
        str(first),
        code=2,
    )[1]
    assert f"checkpoint was {newest}, now {first}" in again
    assert (
        "names a checkpoint of the run to start from"
        in gpt_inside(
            "train", *SHAPE, "--samples", "0", "--checkpoint", "3", "--out", "no", code=2
        )[1]
    )


# --- what a run will take, and how long a run of own dimensions is ---
def help_examples() -> list[list[str]]:
    """The examples of `gpt train --help`, each as words."""
    lines = (inspect.getdoc(train) or "").split("Examples:")[1].splitlines()
    return [shlex.split(line)[2:] for line in map(str.strip, lines) if line.startswith("gpt train")]


TRAINED = [words for words in help_examples() if not {"--report", "--export"} & {*words}]


@pytest.mark.parametrize("words", TRAINED, ids=" ".join)
def test_the_help_s_own_examples_have_enough_steps_and_no_cause_for_warnings(
    gpt_inside, here, words
):
    """On a machine with room and time: what is left depends on the recipe alone."""
    table = json.loads(gpt_inside("train", *words, "--data", "none yet", "--dry-run", "--json")[0])
    assert table["steps"] >= 100
    assert {caution["code"] for caution in table["warnings"]} <= {
        "over-a-week",
        "does-not-fit",
        "disk-space",
    }


def test_the_best_checkpoint_can_be_any(gpt_inside, here):
    """By default, and a dry run refuses what the run would."""
    words = ["train", "--size", "gpt2", "--data", "none yet", "--dry-run"]
    table = tomllib.loads(gpt_inside(*words, "--keep-best", "val_loss")[0])
    assert table["checkpoint_every"] % table["eval_every"] == 0
    for wrong, says in {
        "--keep-best foo": "foo is not measured in this run",
        "--keep-best hellaswag_accuracy --eval-task five_digit_addition": "hellaswag_accuracy is not measured",
        "--optimizer nosuch:make": "nosuch:make cannot be imported",
    }.items():
        assert says in gpt_inside(*words, *wrong.split(), code=2)[1]


def test_the_help_s_small_example_learns(gpt_inside, here):
    """As typed but for the width and the length, which are a hundredth: the same recipe, and so the
    same number of steps.
    """
    words = next(words for words in TRAINED if "runs/small" in words)
    tiny = [
        "--n-layer",
        "1",
        "--n-head",
        "2",
        "--d-model",
        "32",
        "--n-ctx",
        "32",
        "--compile",
        "off",
        "--precision",
        "fp32",
    ]
    out, err = gpt_inside(
        "train", *words, *tiny, "--tokens", "100k", "--samples", "0", "--eval-tokens", "350"
    )
    metrics = [
        json.loads(line)
        for line in (here / "runs" / "small" / "metrics.jsonl").read_text().splitlines()
    ]
    assert 400 < len(metrics) < 600
    ids = np.fromfile(here / "shards" / "train-000000.bin", np.uint16, offset=1024)
    shares = np.bincount(ids) / len(ids)
    unigram = -sum(share * math.log(share) for share in shares if share)
    assert metrics[-1]["val_loss"] < unigram - 0.5
    assert out == "runs/small\n"
    assert "warning: the run reads the training data 16.7 times" in err


def test_a_run_says_what_it_will_take_before_it_starts(gpt_inside, here):
    _, err = gpt_inside("train", "--size", "gpt2", *SMALL)
    lines = err.splitlines()
    names = ["steps", "tokens", "time", "memory", "disk"]
    assert [line.split()[0] for line in lines[:5]] == names
    assert lines[0] == "steps  10 of 64 tokens, warm-up 1"
    assert lines[1] == "tokens 640, 0.1067 passes over 6000 tokens"
    assert lines[5].startswith(
        "warning: 10 steps are too few to learn much; raise --tokens to 6400"
    )
    shown = gpt_inside("train", "--size", "gpt2", *SMALL, "--dry-run", "--out", "other")[0]
    assert {f"# {name}" for name in names} <= {
        line.partition(":")[0] for line in shown.splitlines()
    }


def test_strict_refuses_what_is_warned_of_and_nothing_else(gpt_inside, here):
    few = ["train", "--size", "gpt2", *SMALL, "--strict"]
    for words in (few, [*few, "--dry-run"]):
        out, err = gpt_inside(*words, code=2)
        assert "--strict: the run has warnings: few-steps" in err
        assert bool(out) == ("--dry-run" in words)
    assert not (here / "runs").exists()
    enough = ["train", "--size", "gpt2", *SMALL, "--tokens", "6400", "--strict"]
    gpt_inside(*enough, "--dry-run")
    gpt_inside(*enough)


def test_a_run_that_does_not_fit_is_advised_in_a_dry_run_and_refused_otherwise(
    gpt_inside, here, monkeypatch
):
    monkeypatch.setattr("gptcli.trainer.memory.host_memory", lambda: 24 * 10**9)
    words = [
        "train",
        "--size",
        "13B",
        "--n-ctx",
        "1024",
        "--tokens",
        "10M",
        "--precision",
        "fp32",
        "--compile",
        "off",
    ]
    out, err = gpt_inside(*words, "--dry-run", "--json")
    table = json.loads(out)
    assert table["fits"] is False
    assert table["memory_bytes"] > 16 * table["parameters"]
    assert table["memory_available_bytes"] == int(0.93 * 24e9)
    message = "does not fit: the run needs 281 GB of memory"
    assert f"warning: {message}" in err
    assert "the largest paper size that fits here is 1.3B" in err
    assert "does-not-fit" in gpt_inside(*words, "--dry-run", "--strict", code=2)[1]
    refused = gpt_inside(*words, code=2)[1]
    assert refused.startswith(f"gpt: {message}")
    assert "the largest paper size that fits here is 1.3B" in refused
    assert not (here / "runs").exists()


def test_own_dimensions_get_a_length_and_a_batch_of_their_own(gpt_inside, here):
    shape = ["--n-layer", "2", "--n-head", "2", "--d-model", "64", "--n-ctx", "64"]
    shown = gpt_inside("train", *shape, "--dry-run")[0]
    values = tomllib.loads(shown)
    assert (
        values["tokens"]
        == 20 * json.loads(gpt_inside("train", *shape, "--dry-run", "--json")[0])["parameters"]
    )
    assert "# 20 a parameter (Hoffmann et al. 2022)" in shown
    assert values["batch_tokens"] % 64 == 0
    assert 400 <= values["tokens"] / values["batch_tokens"] <= 600
    large = gpt_inside("train", "--size", "gpt2", "--tokens", "1B", "--dry-run")[0]
    line = next(line for line in large.splitlines() if line.startswith("batch_tokens"))
    assert line.endswith("# GPT-2, gpt2, scaled to 1B tokens by D^0.383 (Bergsma et al. 2025)")
    assert (
        tomllib.loads(gpt_inside("train", *shape, "--batch-tokens", "6400", "--dry-run")[0])[
            "batch_tokens"
        ]
        == 6400
    )
    assert (
        tomllib.loads(gpt_inside("train", "--size", "gpt2", "--dry-run")[0])["batch_tokens"]
        == 2**19
    )


def test_a_run_of_before_keeps_the_values_in_its_run_toml(gpt_inside, here):
    """Written when the batch was the paper's at any length."""
    (here / "old").mkdir()
    (here / "old" / "run.toml").write_text(
        'size = "gpt2"\nn_layer = 4\ntokens = 10000000\nbatch_tokens = 524288\nwarmup_tokens = 12500\ndecay_tokens = 10000000\n'
        "ramp_tokens = 0\nramp_from = 0\nlr = 0.0006\n"
    )
    values = tomllib.loads(gpt_inside("train", "--out", "old", "--resume", "--dry-run")[0])
    assert (values["tokens"], values["batch_tokens"], values["warmup_tokens"]) == (
        10**7,
        2**19,
        12_500,
    )
    again = tomllib.loads(
        gpt_inside(
            "train",
            "--size",
            "gpt2",
            "--n-layer",
            "4",
            "--tokens",
            "10M",
            "--out",
            "old",
            "--resume",
            "--dry-run",
        )[0]
    )
    assert again == values


LINE = {
    "step": 1,
    "tokens": 64,
    "loss": 5.0,
    "lr": 1e-4,
    "grad_norm": 1.0,
    "batch_tokens": 64,
    "tokens_per_second": 100.0,
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder = Path(name)
        folder.mkdir()
        (folder / "run.toml").write_text("# parameters: 10\nlr = 1.0\n")
        (folder / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    return [Path("a"), Path("b")]


def test_one_run_is_drawn_where_its_report_is_and_several_where_one_says(runs, capsys):
    draw_report(runs[:1], None, force=False, as_json=False)
    draw_report(runs[:1], None, force=False, as_json=False)  # over itself
    draw_report(runs, "two.html", force=False, as_json=True)
    one, again, two = capsys.readouterr().out.splitlines()
    assert one == again == "a/report.html"
    assert json.loads(two) == {"schema": "gpt.train/1", "report": "two.html", "runs": ["a", "b"]}
    assert "<h1>GPT: a</h1>" in Path("a/report.html").read_text()
    assert "<h1>2 runs</h1>" in Path("two.html").read_text()
    draw_report(runs, "-", force=False, as_json=False)
    assert capsys.readouterr().out == Path("two.html").read_text()


def test_the_losses_alone_are_a_picture(runs):
    for chosen, names in ((runs[:1], ["training, running mean"]), (runs, ["a", "b"])):
        draw_report(chosen, "run.svg", force=True, as_json=False)
        root = ElementTree.parse("run.svg").getroot()
        words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert all(name in words for name in ["nats per token", "tokens", *names])


@pytest.mark.parametrize(
    ("several", "out", "says"),
    [(0, None, "RUN is missing"), (2, None, "needs a name"), (2, "a/run.toml", "exists")],
)
def test_impossible_reports_are_refused(runs, several, out, says):
    before = sorted(Path().rglob("*"))
    with pytest.raises(UsageError, match=says):
        draw_report(runs[:several], out, force=False, as_json=False)
    assert sorted(Path().rglob("*")) == before


def test_from_the_command_line_without_torch(runs, gpt, tmp_path):
    # found first, in the current folder
    (tmp_path / "torch.py").write_text("raise ImportError('a report needs no torch')")
    assert gpt("train", "--report", "a", "b", "-o", "c.html").stdout == "c.html\n"
    stray = gpt("train", "a", code=2)
    assert "a: unexpected run folder" in stray.stderr
    both = gpt("train", "--report", "a", "--lr", "1e-3", code=2)
    assert "--lr has no effect with --report, which only draws runs" in both.stderr
