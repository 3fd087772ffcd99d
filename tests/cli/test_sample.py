"""`gpt sample` as a user meets it: the stream, pipes, Ctrl-C, JSON, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptcli.cli.app import build_app
from gptcli.errors import GptError
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.model.weights import save_model
from gptcli.sampling.decode import decode, sample_generator
from gptcli.sampling.filters import Rules
from gptcli.tokenizer.training import train_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "run"
    tokenizer = train_tokenizer(["naïve café, 日本語 🙂 and some words of prose " * 9], 290)
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=16, vocab_size=tokenizer.vocab_size))
    model.init_weights(0)
    save_model(folder, model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def sample(*args: object, stdin: bytes | None = None) -> str:
    """What `gpt sample` prints on stdout, run in this process; its errors are raised."""
    argv = ["sample", *map(str, args)]
    done = CliRunner().invoke(build_app(argv), argv, input=stdin, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def report(*args: object, stdin: bytes | None = None) -> Any:
    return json.loads(sample(*args, "--json", stdin=stdin))


def test_prints_the_prompt_and_what_follows(run: Path) -> None:
    [made] = report(run, "some words", "--max-tokens", 12)["samples"]
    assert sample(run, "some words", "--max-tokens", 12) == f"some words{made['text']}\n"


def test_samples_stand_apart_and_do_not_depend_on_their_number(run: Path) -> None:
    texts = [made["text"] for made in report(run, "prose", "--max-tokens", 9, "--num-samples", 3)["samples"]]
    assert len(set(texts)) == 3
    assert (
        sample(run, "prose", "--max-tokens", 9, "--num-samples", 3) == "\n---------------\n".join(f"prose{text}" for text in texts) + "\n"
    )
    assert [made["text"] for made in report(run, "prose", "--max-tokens", 9, "--num-samples", 2)["samples"]] == texts[:2]


def test_the_seed_fixes_the_text(run: Path) -> None:
    assert sample(run, "a", "--seed", 5) == sample(run, "a", "--seed", 5) != sample(run, "a", "--seed", 6)


def test_json_says_everything(run: Path) -> None:
    made = report(run, "naïve", "--max-tokens", 5, "--top-p", 0.9, "--temperature", 0.8, "--seed", 3)
    assert made["schema"] == "gpt.sample/1"
    assert (made["prompt"], made["seed"], made["max_tokens"]) == ("naïve", 3, 5)
    assert (made["temperature"], made["top_k"], made["top_p"], made["greedy"]) == (0.8, None, 0.9, False)
    [one] = made["samples"]
    assert len(one["tokens"]) == 5
    assert one["finish_reason"] == "length"
    assert one["tokens_per_second"] > 0
    assert report(run, "a", "--max-tokens", 1)["top_k"] == 40  # GPT-2's release


def test_the_options_reach_the_model(run: Path) -> None:
    from gptcli.model.weights import load_model

    model = load_model(run)
    for options, rules in {
        ("--greedy",): Rules(greedy=True),
        ("--top-k", 3): Rules(top_k=3),
        ("--top-p", 0.5, "--temperature", 2): Rules(top_p=0.5, temperature=2.0),
    }.items():
        made = report(run, "words", "--max-tokens", 30, *options)
        tokens = list(decode(model, made["prompt_tokens"], rules, max_tokens=30, generator=sample_generator(0, 0), stop_id=289))
        assert made["samples"][0]["tokens"] == [token for token in tokens if token != 289]


def test_a_prompt_from_a_pipe(run: Path) -> None:
    assert report(run, stdin="café\n".encode())["prompt"] == "café"
    assert report(run, "-", stdin=b"two\n\n")["prompt"] == "two\n"


def test_no_prompt_starts_from_end_of_text(run: Path) -> None:
    for made in (report(run, ""), report(run, stdin=b"")):
        assert made["prompt"] == ""
        assert made["prompt_tokens"] == [289]


def test_a_prompt_longer_than_the_context(run: Path) -> None:
    argv = ["sample", str(run), "prose 🙂 " * 20, "--max-tokens", "30"]
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert "the model reads the last 16" in done.stderr
    assert done.stdout.startswith("prose 🙂 " * 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--greedy", "--temperature", "0.5"], "--greedy and --temperature contradict"),
        (["--greedy", "--top-k", "5"], "--greedy and --top-k contradict"),
        (["--greedy", "--top-p", "0.5"], "--greedy and --top-p contradict"),
        (["--greedy", "--num-samples", "2"], "contradict"),
        (["--top-k", "0"], "top-k is 0"),
        (["--top-k", "-1"], "top-k is -1"),
        (["--top-p", "0"], "top-p is 0"),
        (["--top-p", "1.1"], "top-p is 1.1"),
        (["--temperature", "0"], "--greedy always takes"),
        (["--max-tokens", "many"], "not a quantity"),
        (["--device", "tpu"], "unknown device"),
        (["--precision", "int4"], "unknown precision"),
    ],
)
def test_bad_options(run: Path, options: list[str], message: str) -> None:
    with pytest.raises(GptError, match=message) as caught:
        sample(run, "x", *options)
    assert caught.value.exit_code == 2


def test_bad_prompts(run: Path) -> None:
    with pytest.raises(GptError, match="stdin: not valid UTF-8 at byte 3"):
        sample(run, stdin=b"caf\xe9")
    with pytest.raises(GptError, match="not valid Unicode"):
        sample(run, "caf\udce9")


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(GptError, match="no such folder"):
        sample(tmp_path / "gone", "x")
    with pytest.raises(GptError, match=r"no config\.json"):
        sample(tmp_path, "x")


def start(run: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gptcli", "sample", str(run), "x", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_ctrl_c_ends_the_line_and_exits_130(run: Path) -> None:
    process = start(run, "--max-tokens", "1b")
    assert process.stdout is not None
    process.stdout.read(100)  # it streams: 100 bytes come long before a billion tokens
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_a_closed_pipe_ends_it_quietly(run: Path) -> None:
    process = start(run, "--max-tokens", "1b")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait(timeout=60)
    process.stderr.close()


def test_a_terminal_gets_no_control_characters(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte-level model can spell an escape sequence; only a pipe gets it as it is."""
    from gptcli.cli.sample import CONTROLS

    assert "\x1b[2J\t\x07é\x9b\n".translate(CONTROLS) == "␛[2J\t␇é\ufffd\n"
    text = sample(run, "\x1b[2J", "--max-tokens", 1)
    assert text.startswith("\x1b[2J")
