"""`gpt sample` as a user meets it: the stream, pipes, Ctrl-C, JSON, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.errors import GptError, RunError
from gptcli.model.safetensors_io import load_model, save_model
from gptcli.sampling.generate import Completion, TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.sampler import Sampler
from tests.small_runs import save_small_model
from tests.waiting import HANG_S

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample") / "run"
    return save_small_model(folder, "naïve café, 日本語 🙂 and some words of prose " * 9, 290)


def sample(*args: object, stdin: bytes | None = None) -> str:
    """Return the text that `gpt sample` prints on stdout, run in this process; its errors are
    raised.
    """
    argv = ["sample", *map(str, args)]
    done = CliRunner().invoke(build_app(argv), argv, input=stdin, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def report(*args: object, stdin: bytes | None = None) -> Any:
    return json.loads(sample(*args, "--json", stdin=stdin))


def test_prompt_and_continuation_are_printed(run: Path) -> None:
    [made] = report(run, "some words", "--max-tokens", 12)["samples"]
    assert sample(run, "some words", "--max-tokens", 12) == f"some words{made['text']}\n"


def test_samples_are_separated_and_do_not_depend_on_their_number(run: Path) -> None:
    texts = [
        made["text"]
        for made in report(run, "prose", "--max-tokens", 9, "--num-samples", 3)["samples"]
    ]
    assert len(set(texts)) == 3
    assert (
        sample(run, "prose", "--max-tokens", 9, "--num-samples", 3)
        == "\n---------------\n".join(f"prose{text}" for text in texts) + "\n"
    )
    assert [
        made["text"]
        for made in report(run, "prose", "--max-tokens", 9, "--num-samples", 2)["samples"]
    ] == texts[:2]


@pytest.mark.parametrize(
    ("tokens", "options", "is_said"),
    [
        ([4, 5], (), True),
        ([], (), True),
        ([4] * 40, (), False),
        ([4, 5], ("--stop", "x"), False),
        ([4, 5], ("--max-tokens", 2), False),
    ],
)
def test_a_sample_that_ends_early_says_why(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokens: list[int],
    options: tuple[object, ...],
    is_said: bool,
) -> None:
    one = Completion(text="", tokens=tokens, log_probs=[], finish_reason="stop", seconds=1.0)
    monkeypatch.setattr(Sampler, "sample", lambda self, text, **_: [one])
    argv = ["sample", str(run), "a", *map(str, options)]
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    line = f"ended after {len(tokens)} tokens: the model predicted end-of-text"
    assert (line in done.stderr) == is_said


def test_seed_determines_the_text(run: Path) -> None:
    assert (
        sample(run, "a", "--seed", 5)
        == sample(run, "a", "--seed", 5)
        != sample(run, "a", "--seed", 6)
    )


def test_json_report_has_all_settings_and_samples(run: Path) -> None:
    made = report(
        run, "naïve", "--max-tokens", 5, "--top-p", 0.9, "--temperature", 0.8, "--seed", 3
    )
    assert made["schema"] == "gpt.sample/1"
    assert (made["prompt"], made["seed"], made["max_tokens"]) == ("naïve", 3, 5)
    assert (made["temperature"], made["top_k"], made["top_p"], made["greedy"]) == (
        0.8,
        None,
        0.9,
        False,
    )
    [one] = made["samples"]
    assert len(one["tokens"]) == 5
    assert one["finish_reason"] == "length"
    assert one["tokens_per_second"] > 0
    assert len(one["log_probs"]) == 5
    assert one["mean_log_prob"] == pytest.approx(sum(one["log_probs"]) / 5)
    assert report(run, "a", "--max-tokens", 1)["top_k"] == 40  # GPT-2's release


def test_options_reach_the_model(run: Path) -> None:
    from gptcli.model.safetensors_io import load_model

    model = load_model(run)
    for options, rules in {
        ("--greedy",): SamplingParams(greedy=True),
        ("--top-k", 3): SamplingParams(top_k=3),
        ("--top-p", 0.5, "--temperature", 2): SamplingParams(top_p=0.5, temperature=2.0),
        ("--temperature", 0): SamplingParams(greedy=True),
        ("--temperature", 0, "--top-k", 9, "--top-p", 0.5): SamplingParams(greedy=True),
    }.items():
        made = report(run, "words", "--max-tokens", 30, *options)
        row = TokenSequence(
            made["prompt_tokens"], max_tokens=30, generator=sample_generator(0, 0), stop_id=289
        )
        list(generate_sequences(model, [row], rules, batch_size=1))
        assert made["samples"][0]["tokens"] == row.tokens


def test_prompt_is_read_from_a_pipe(run: Path) -> None:
    assert report(run, stdin="café\n".encode())["prompt"] == "café"
    assert report(run, "-", stdin=b"two\n\n")["prompt"] == "two\n"


def test_empty_prompt_is_end_of_text(run: Path) -> None:
    for made in (report(run, ""), report(run, stdin=b"")):
        assert made["prompt"] == ""
        assert made["prompt_tokens"] == [289]


def test_prompt_longer_than_the_context_is_a_warning(run: Path) -> None:
    argv = ["sample", str(run), "prose 🙂 " * 20, "--max-tokens", "30"]
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert "the model reads the last 16" in done.stderr
    assert done.stdout.startswith("prose 🙂 " * 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--greedy", "--temperature", "0.5"], "--greedy cannot be combined with --temperature"),
        (["--greedy", "--top-k", "5"], "--greedy cannot be combined with --top-k"),
        (["--greedy", "--top-p", "0.5"], "--greedy cannot be combined with --top-p"),
        (["--greedy", "--num-samples", "2"], "--greedy cannot be combined with --num-samples 2"),
        (["--top-k", "0"], "--top-k: 0 is out of range"),
        (["--top-k", "-1"], "--top-k: -1 is out of range"),
        (["--top-p", "0"], "--top-p: 0 is out of range"),
        (["--top-p", "1.1"], "--top-p: 1.1 is out of range"),
        (["--temperature", "-1"], "0, as --greedy, takes the most probable token"),
        (
            ["--temperature", "0", "--num-samples", "2"],
            "--temperature 0 cannot be combined with --num-samples 2",
        ),
        (["--max-tokens", "many"], "not a number"),
        (["--max-tokens", "0"], "--max-tokens: 0 is out of range"),
        (["--num-samples", "0"], "--num-samples: 0 is out of range"),
        (["--beam", "0"], "--beam: 0 is out of range"),
        (["--beam", "4", "--top-k", "3"], "--beam cannot be combined with --top-k"),
        (["--beam", "4", "--stop", "a"], "uses the model's probabilities unchanged"),
        (["--stop", "a", "--stop", ""], "--stop is empty"),
        (["--beam", "4", "--best-of", "3"], "--beam cannot be combined with --best-of"),
        (["--best-of", "4", "--greedy"], "--greedy cannot be combined with --best-of 4"),
        (["--repetition-penalty", "0"], "--repetition-penalty: 0 is out of range"),
        (["--preset", "gpt-2"], "did you mean gpt2"),
        (["--quantize", "int4"], "unknown quantization"),
        (["--prompts", "x.jsonl"], "PROMPT has no effect with --prompts"),
        (["-o", "x.jsonl"], "need --prompts"),
        (["--title", "News"], "--title cannot be combined with a prompt"),
        (["--article", "x.txt"], "need --title"),
        (["--device", "tpu"], "unknown device"),
        (["--precision", "int4"], "unknown precision"),
    ],
)
def test_options_that_cannot_be_combined_are_refused(
    run: Path, options: list[str], message: str
) -> None:
    with pytest.raises(GptError, match=message) as caught:
        sample(run, "x", *options)
    assert caught.value.exit_code == 2


def test_prompts_need_an_output_and_samples_of_one_prompt_no_batch_size(run: Path) -> None:
    with pytest.raises(GptError, match=r"-o samples\.jsonl"):
        sample(run, "--prompts", "x.jsonl")
    with pytest.raises(GptError, match="--batch-size needs --prompts or --serve"):
        sample(run, "x", "--batch-size", 4)


def test_prompts_that_are_not_utf8_are_refused(run: Path) -> None:
    with pytest.raises(GptError, match="stdin: not valid UTF-8 at byte 3"):
        sample(run, stdin=b"caf\xe9")
    with pytest.raises(GptError, match="the prompt is not valid UTF-8"):
        sample(run, "caf\udce9")


def test_a_prompt_in_the_c_locale_is_read_as_utf8(run: Path) -> None:
    # as Python passes "é" on there: each byte that is not ASCII is a surrogate
    typed, prompt = "caf\udcc3\udca9", "café"
    options = ("--max-tokens", 2, "--greedy")
    assert sample(run, typed, *options) == sample(run, prompt, *options)


def test_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GptError, match="no such folder"):
        sample(tmp_path / "gone", "x")
    with pytest.raises(GptError, match="is an empty folder"):
        sample(tmp_path, "x")


def test_stop_strings_end_a_sample(run: Path) -> None:
    whole = report(run, "words", "--max-tokens", 40)["samples"][0]["text"]
    stop = whole[5:7]
    made = report(run, "words", "--max-tokens", 40, "--stop", stop, "--stop", "never said")[
        "samples"
    ][0]
    assert (made["text"], made["finish_reason"]) == (whole[: whole.index(stop)], "stop")


def test_beam_and_best_of_return_one_sample(run: Path) -> None:
    from gptcli.sampling.sampler import beam_search

    made = report(run, "words", "--beam", 4, "--max-tokens", 6)
    best = beam_search(load_model(run), made["prompt_tokens"], max_tokens=6, stop_id=289)[0]
    assert made["samples"][0]["tokens"] == best.tokens
    many = report(run, "words", "--num-samples", 5, "--max-tokens", 6)["samples"]
    [best_one] = report(run, "words", "--best-of", 5, "--max-tokens", 6)["samples"]
    assert best_one["tokens"] == max(many, key=lambda one: one["mean_log_prob"])["tokens"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "words",
    [
        ["x"],
        ["x", "--greedy"],
        ["x", "--top-k", "3"],
        ["x", "--top-p", "0.9"],
        ["x", "--num-samples", "2"],
        ["x", "--best-of", "2"],
        ["x", "--beam", "2"],
        ["x", "--draft", "DRAFT"],
        ["x", "--draft", "DRAFT", "--greedy"],
        ["x", "--quantize", "int8"],
        ["--prompts", "PROMPTS", "-o", "OUT"],
    ],
    ids=" ".join,
)
def test_a_model_with_broken_weights_is_one_error(
    run: Path, tmp_path: Path, words: list[str], value: float
) -> None:
    broken = tmp_path / "broken"
    model = load_model(run)
    torch.nn.init.constant_(model.get_parameter("ln_f.weight"), value)
    save_model(broken, model, model.config)
    shutil.copy(run / "tokenizer.json", broken)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    paths = {"DRAFT": run, "PROMPTS": tmp_path / "prompts.jsonl", "OUT": tmp_path / "out.jsonl"}
    asked = [paths.get(word, word) for word in words]
    with pytest.raises(RunError, match=r"not numbers \(NaN or infinity\)"):
        sample(broken, *asked, "--max-tokens", 3)
    if "--draft" in words:  # and as the draft of a model that is whole
        with pytest.raises(RunError, match=r"not numbers \(NaN or infinity\)"):
            sample(run, "x", "--draft", broken, *asked[3:], "--max-tokens", 3)


def test_int8_and_a_draft_hardly_change_the_text(run: Path) -> None:
    plain = sample(run, "words", "--greedy", "--max-tokens", 12)
    assert sample(run, "words", "--greedy", "--max-tokens", 12, "--draft", run) == plain
    assert (
        len(report(run, "words", "--max-tokens", 12, "--quantize", "int8")["samples"][0]["tokens"])
        == 12
    )


def test_prompts_have_the_papers_formats(run: Path, tmp_path: Path) -> None:
    shown = report(
        run,
        "cheese =>",
        "--instruction",
        "Translate:",
        "--example",
        "otter => loutre",
        "--max-tokens",
        1,
    )
    assert shown["prompt"] == "Translate:\notter => loutre\ncheese =>"
    (tmp_path / "earlier.txt").write_text("Title: A\nSubtitle: B\nArticle: C\n")
    news = report(
        run,
        "--preset",
        "news",
        "--title",
        "T",
        "--subtitle",
        "S",
        "--article",
        tmp_path / "earlier.txt",
        "--max-tokens",
        1,
    )
    assert news["prompt"] == "Title: A\nSubtitle: B\nArticle: C\n\nTitle: T\nSubtitle: S\nArticle:"
    assert (news["top_p"], news["stop"]) == (0.85, ["\nTitle: "])


def test_options_override_the_file_and_the_file_the_preset(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "sample.toml"
    file.write_text('preset = "gpt3"\nmax-tokens = 7\nseed = 3\n')
    made = report(run, "a", "--config", file, "--seed", 4)
    assert (made["top_p"], made["max_tokens"], made["seed"]) == (0.85, 7, 4)
    file.write_text("\nmax_token = 7\n")
    with pytest.raises(GptError, match=r"sample.toml:2: unknown key 'max_token'(.|\n)*max_tokens"):
        sample(run, "a", "--config", file)


def test_session_samples_one_line_after_another(run: Path) -> None:
    """Here stdin is a pipe, so each line is a prompt; a line asked again gets another answer."""
    argv = ["sample", str(run), "-i", "--max-tokens", "4", "--seed", "5"]
    done = CliRunner().invoke(build_app(argv), argv, input="words\nwords\n", catch_exceptions=False)
    expected = [sample(run, "words", "--max-tokens", 4, "--seed", seed) for seed in (5, 6)]
    assert done.stdout == "".join(expected)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = [f"{word} words" * (i % 4) for i, word in enumerate(["some", "café", "🙂"] * 100)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def test_file_of_prompts_is_sampled_and_not_overwritten(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    options = ["--prompts", prompts, "--max-tokens", 5, "--num-samples", 2, "--batch-size", 3]
    sample(run, *options, "-o", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(300))
    assert [line["prompt"] for line in lines] == [
        json.loads(line)["prompt"] for line in prompts.read_text().splitlines()
    ]
    for line in (lines[0], lines[150], lines[299]):
        assert len({tuple(made["tokens"]) for made in line["samples"]}) == 2
    alone = report(run, lines[0]["prompt"], "--max-tokens", 5, "--num-samples", 2)
    assert [made["tokens"] for made in alone["samples"]] == [
        made["tokens"] for made in lines[0]["samples"]
    ]
    with pytest.raises(GptError, match="exists already"):
        sample(run, *options, "-o", out)
    before = out.stat()
    sample(run, *options, "-o", out, "--resume")
    assert out.stat().st_mtime_ns == before.st_mtime_ns
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a"}\n{"text": "b"}\n', ":2: no text under"),
        ('{"prompt": "a"}\n{"prompt"\n', ":2: not valid JSON"),
        ('{"prompt": 7}\n', ":1: no text under"),
        (b'{"prompt": "caf\xe9"}\n', ":1: not valid UTF-8"),
        ("", "no prompts"),
    ],
)
def test_broken_files_of_prompts_are_refused(
    run: Path, tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(GptError, match=message):
        sample(run, "--prompts", path, "-o", tmp_path / "out.jsonl")


def test_cache_that_does_not_fit_is_refused_before_sampling(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.sampling import engine

    monkeypatch.setattr(engine, "free_memory", lambda device: 1000)
    with pytest.raises(
        GptError, match=r"the cache of 1 sequence of 16 tokens needs 2.05 kB, and 1 kB are free"
    ):
        sample(run, "x")


def start(run: Path, *args: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gptcli", "sample", str(run), "x", *args]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_ctrl_c_ends_the_line_and_exits_130(run: Path) -> None:
    process = start(run, "--max-tokens", "1b")
    assert process.stdout is not None
    process.stdout.read(100)  # it streams: 100 bytes come long before a billion tokens
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert out.endswith(b"\n")
    assert b"Traceback" not in err


def test_killed_and_resumed_sampling_gives_the_same_file(
    run: Path, prompts: Path, tmp_path: Path
) -> None:
    """kill -9 when some groups of prompts are on disk and some are not, and half a line besides."""
    options = ["--prompts", str(prompts), "--max-tokens", "12", "--batch-size", "2"]
    sample(run, *options, "-o", tmp_path / "whole.jsonl")
    out, unfinished = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.unfinished"
    command = [sys.executable, "-m", "gptcli", "sample", str(run), *options, "-o", str(out)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (
            not unfinished.exists() or unfinished.read_bytes().count(b"\n") < 34
        ):
            time.sleep(0.005)
        process.kill()
    assert not out.exists()
    with open(unfinished, "ab") as file:
        file.write(b'{"index": 9')
    begun = unfinished.read_bytes().count(b"\n") - 1
    assert 32 <= begun < 300
    with pytest.raises(GptError, match="--resume continues it"):
        sample(run, *options, "-o", out)
    with pytest.raises(GptError, match="other prompts, options or weights"):
        sample(run, *options, "-o", out, "--resume", "--seed", 1)
    sample(run, *options, "-o", out, "--resume")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert not unfinished.exists()


def test_closed_pipe_ends_sampling_silently(run: Path) -> None:
    process = start(run, "--max-tokens", "1b")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(100)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=HANG_S) == 0
    process.stderr.close()


def test_control_characters_are_not_sent_to_a_terminal(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte-level model can spell an escape sequence; only a pipe gets it as it is."""
    from gptcli.cli.console import CONTROLS

    assert "\x1b[2J\t\x07é\x9b\n".translate(CONTROLS) == "␛[2J\t␇é\ufffd\n"
    text = sample(run, "\x1b[2J", "--max-tokens", 1)
    assert text.startswith("\x1b[2J")


def test_memory_settings_of_the_user_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "THP_MEM_ALLOC_ENABLE"
    monkeypatch.setenv(name, "7")
    sample(run, "some", "--max-tokens", 1)
    assert os.environ[name] == "7"
    monkeypatch.delenv(name)
    sample(run, "some", "--max-tokens", 1)
    assert os.environ[name] == "1"
