"""Two commands on one output: the second is refused, whatever it says, and the first ends as if it
had been alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from shlex import split

import pytest

from gptcli import locks
from gptcli.cli import main
from gptcli.files import LOCK
from gptcli.locks import own_folder, own_part, read_chain
from gptcli.runs.record import shareable
from tests.fork_server import python
from tests.small_runs import make_shards

SIZE = (
    "--n-layer 1 --n-head 1 --d-model 8 --n-ctx 16 --batch-tokens 64 --compile off --precision fp32"
)
TRAIN = f"train --data shards {SIZE}"
COMMANDS = {  # what is typed, and a file of the result
    "train": (split(f"{TRAIN} --tokens 640 --out out"), "out/model.safetensors"),
    "build-shards": (
        split("build-shards text.txt -t shards -o out --documents line --val-fraction 0"),
        "out/train-000000.bin",
    ),
    "eval": (
        split("eval run --task lambada --data data -o out.json --device cpu"),
        "out.records/lambada.jsonl",
    ),
    "sample": (
        split("sample run --prompts prompts.jsonl -o out.jsonl --max-tokens 4 --device cpu"),
        "out.jsonl",
    ),
}
# The command, which stops once it holds its outputs, says so, and goes on when it is told to.
STOPS = """
import sys
from gptcli import locks
from gptcli.cli import main

last = sys.argv.pop(1).split()

class Held(locks.Lock):
    def acquire(self):
        super().acquire()
        if self.path.name in last:
            print("held", file=sys.stderr, flush=True)
            sys.stdin.readline()
        return self

locks.Lock = Held
main()
"""
LAST = ".lock .out.jsonl.lock .learned.json.lock"  # of the locks of each command


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("owned")
    make_shards(folder / "shards")
    (folder / "text.txt").write_text("a small text\nfor a small vocabulary\n" * 20)
    (folder / "prompts.jsonl").write_text('{"prompt": "a small"}\n{"prompt": "text"}\n')
    (folder / "data").mkdir()
    (folder / "data" / "lambada_test.jsonl").write_text(
        '{"text": "a small text"}\n{"text": "for a small vocabulary"}\n'
    )
    return folder


@pytest.fixture
def here(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The inputs, in a folder to stand in; no holder of this machine may have to be watched."""
    shutil.copytree(inputs, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(locks, "_is_silent", lambda *_: pytest.fail("watched for signs of life"))
    return tmp_path / "here"


@pytest.fixture
def gpt_inside(here, monkeypatch, capsys):
    def run(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["gpt", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == code, err
        return out + err

    return run


@pytest.fixture(scope="module")
def trained(inputs: Path) -> Path:
    words = split(f"{TRAIN} --tokens 128 --out run")
    assert python("-m", "gptcli", *words, cwd=inputs).returncode == 0
    return inputs / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def started(here: Path, words: list[str]) -> subprocess.Popen[str]:
    """A process that runs the command up to where it holds its outputs."""
    process = subprocess.Popen(
        [sys.executable, "-c", STOPS, LAST, *words],
        cwd=here,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    ("command", "end"),
    [
        ("train", "done"),
        ("train", "killed"),
        ("build-shards", "done"),
        ("eval", "killed"),
        ("sample", "killed"),
    ],
)
def test_the_second_is_refused_and_the_first_ends_as_if_alone(
    here, gpt_inside, trained, command, end
):
    words, result = COMMANDS[command]
    if not (here / "run").exists():
        shutil.copytree(trained, here / "run")
    gpt_inside(*words)
    wanted = (here / result).read_bytes()
    for path in here.glob("out*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    process = started(here, words)
    before = contents(here)
    for how in ([], ["--resume"], ["--force"]):
        told = gpt_inside(*words, *how, code=2)
        assert f": in use by process {process.pid} on host " in told
        assert contents(here) == before
    if end == "done":
        _, errors = process.communicate("go on\n")
        assert process.returncode == 0, errors
    else:
        process.kill()
        # dead, and its parent has not noticed
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        gpt_inside(*words, "--resume")
        process.communicate()
    assert (here / result).read_bytes() == wanted
    assert not [path for path in here.rglob("*") if LOCK in path.name]


def test_a_tokenizer_has_one_writer(here, gpt_inside):
    words = split("tokenize train text.txt --vocab-size 262 -o learned.json")
    process = started(here, words)
    for how in ([], ["--force"]):
        assert f": in use by process {process.pid} on host " in gpt_inside(*words, *how, code=2)
    _, errors = process.communicate("go on\n")
    assert process.returncode == 0, errors
    assert "already" in gpt_inside(*words, code=2)
    assert [path.name for path in here.glob(".*")] == []


def test_a_failed_command_holds_no_lock(here, gpt_inside):
    assert "in use" not in gpt_inside(*COMMANDS["build-shards"][0], "--seed", "x", code=2)
    (here / "text.txt").write_bytes(b"\xff\n")
    assert "text.txt" in gpt_inside(*COMMANDS["build-shards"][0], code=2)
    assert not (here / "out").exists()
    with own_folder(here / "out"):
        (here / "text.txt").write_text("a text\n")
        gpt_inside(*COMMANDS["build-shards"][0], code=2)
    gpt_inside(*COMMANDS["build-shards"][0])
    assert not list((here / "out").glob("*lock*"))


def test_parts_and_the_whole(here, gpt_inside):
    words = COMMANDS["build-shards"][0]
    gpt_inside(*words)
    wanted = contents(here / "out")["train-000000.bin"]
    shutil.rmtree(here / "out")
    with own_part(here / "out", "1-of-2"):
        assert "in use by process" in gpt_inside(*words, "--part", "1/2", code=2)
        gpt_inside(*words, "--part", "2/2")
        assert "in use by process" in gpt_inside(*words, "--resume", code=2)
    gpt_inside(*words, "--part", "1/2")
    with own_folder(here / "out"):
        assert "in use by process" in gpt_inside(*words, "--part", "2/2", code=2)
    gpt_inside(*words, "--resume")
    assert contents(here / "out")["train-000000.bin"] == wanted


def test_a_range_test_and_fine_tuning_own_their_folders_too(here, gpt_inside, trained):
    (here / "task.toml").write_text(
        'kind = "classification"\nlabels = ["a", "b"]\ntrain = "t.jsonl"\nvalidation = "t.jsonl"\nepochs = 1\nbatch = 2\nlr = 1e-3\n'
    )
    (here / "t.jsonl").write_text(
        '{"text": "a small", "label": "a"}\n{"text": "text", "label": "b"}\n'
    )
    with own_folder(here / "out"):
        for line in (
            f"{TRAIN} --lr-range --tokens 640 --out out",
            f"train --finetune task.toml --init-from {trained} --out out",
        ):
            assert "in use by process" in gpt_inside(*split(line), code=2)
        assert len(read_chain(here / "out" / LOCK)) == 1


def test_run_toml_and_the_card_speak_of_the_run_as_it_goes_on(here, gpt_inside):
    words, _ = COMMANDS["train"]
    out = here / "out"
    out.mkdir()
    # killed before its first checkpoint, a run can go on as another
    (out / "run.toml").write_text("")
    gpt_inside(*words, "--lr", "1e-3", "--resume")
    text = (out / "run.toml").read_text()
    assert tomllib.loads(text)["lr"] == 1e-3
    assert shareable(text) in (out / "README.md").read_text()
    shutil.rmtree(out)

    gpt_inside(*words, "--checkpoint-every", "5")
    alone = contents(out)
    assert shareable(alone["run.toml"].decode()).encode() in alone["README.md"]
    for finished in ("model.safetensors", "README.md", "checkpoints/step-00000010/state.json"):
        (out / finished).unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000010")
    gpt_inside("train", "--out", "out", "--resume")  # with nothing else said: the same bytes
    assert {
        name: data for name, data in contents(out).items() if name in ("run.toml", "README.md")
    } == {name: alone[name] for name in ("run.toml", "README.md")}
    for finished in ("model.safetensors", "README.md"):
        (out / finished).unlink()
    shutil.rmtree(out / "checkpoints" / "step-00000010")
    gpt_inside("train", "--out", "out", "--resume", "--keep", "7")
    text = (out / "run.toml").read_text()
    assert tomllib.loads(text) == tomllib.loads(alone["run.toml"].decode()) | {"keep": 7}
    assert "# resumed by: gpt train --out out --resume --keep 7" in text
    assert shareable(text) in (out / "README.md").read_text()


def test_a_finished_model_without_checkpoints_is_not_trained_again(here, gpt_inside):
    words, result = COMMANDS["train"]
    gpt_inside(*words)
    shutil.rmtree(here / "out" / "checkpoints")
    before = contents(here / "out")
    assert "is finished" in gpt_inside(*words, "--resume")
    assert "no checkpoint is left to go on from" in gpt_inside(
        *words, "--lr", "1e-3", "--resume", code=2
    )
    assert contents(here / "out") == before
    assert result.removeprefix("out/") in before


def test_rank_of_another_program_changes_nothing(here, gpt_inside, trained, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    shutil.copytree(trained, here / "finished")
    before = contents(here / "finished")
    assert "the output folder is not empty" in gpt_inside(
        *split(f"{TRAIN} --tokens 640 --out finished"), code=2
    )
    assert contents(here / "finished") == before
    told = gpt_inside(*split("eval finished --data shards -o report.json"))
    assert "RANK is set without WORLD_SIZE: this process works alone" in told
    assert json.loads((here / "report.json").read_text())["schema"] == "gpt.eval/1"
    monkeypatch.setenv("WORLD_SIZE", "")
    gpt_inside(*split("eval finished --data shards"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for line in ("eval finished --data shards", f"{TRAIN} --tokens 640 --out new"):
        told = gpt_inside(*split(line), code=2)
        assert (
            "(RANK=1, WORLD_SIZE=2), but LOCAL_RANK, MASTER_ADDR, MASTER_PORT are not set" in told
        )
    assert not (here / "new").exists()
