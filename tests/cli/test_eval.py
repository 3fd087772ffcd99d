"""`gpt eval` as a user meets it: a run's own shards, text, tasks, reports, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.cli.command import given_parameters, refuse_unused
from gptcli.cli.console import ConsoleEvents
from gptcli.cli.eval import FINETUNED
from gptcli.cli.eval_output import PIPE_WIDTH, print_report, print_tasks
from gptcli.errors import GptError, UsageError
from gptcli.evals.results import Conditions, MetricValue, TaskResult
from gptcli.evals.rolling import LossReport
from gptcli.evals.task import find_task
from gptcli.files import sha256
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.shards.format import token_dtype, write_shard
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.training import train_tokenizer

torch.set_num_threads(1)
PROSE = "naïve café, 日本語 🙂 and some words of prose "


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """run/ trained (it says) on shards/, text.txt, and lambada/ with data."""
    folder = tmp_path_factory.mktemp("eval")
    tokenizer = train_tokenizer([PROSE * 9], 290)
    model = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=16, vocab_size=tokenizer.vocab_size)
    )
    model.init_weights(0)
    save_model(folder / "run", model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(folder / "run" / "tokenizer.json")
    (folder / "run" / "run.toml").write_text(
        "# gpt 0\n# val_tokens: 1,000, from the shards\n\n"
        'data = "shards"  # default\nn_ctx = 16\neval_tokens = 100\n'
    )

    tokens = [289, *tokenizer.encode(PROSE * 5)]
    (folder / "shards").mkdir()
    shard = folder / "shards" / "val-000000.bin"
    write_shard(shard, np.array([len(tokens)]), [np.array(tokens)], token_dtype(290))
    row = {
        "file": shard.name,
        "split": "val",
        "tokens": len(tokens),
        "documents": 1,
        "sha256": sha256(shard),
    }
    manifest: dict[str, Any] = {
        "format": 1,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": 290,
        "eot_id": 289,
        "seed": 0,
    }
    manifest |= {"val_fraction": 1.0, "split_rule": "all", "shards": [row], "sources": []}
    (folder / "shards" / "manifest.json").write_text(json.dumps(manifest))

    (folder / "text.txt").write_text(PROSE * 5, encoding="utf-8")
    (folder / "lambada").mkdir()
    (folder / "lambada" / "lambada_test.jsonl").write_text(
        '{"text": "some words of prose"}\n{"text": "naïve café"}\n', encoding="utf-8"
    )
    return folder


@pytest.fixture
def evaluate(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the text that `gpt eval` prints on stdout, run in this process in the work place; its
    errors are raised.
    """
    monkeypatch.chdir(workplace)

    def invoke(*args: object, code: int = 0) -> str:
        argv = ["eval", *map(str, args)]
        done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
        assert done.exit_code == code, done.output
        return done.stdout

    return invoke


def test_a_runs_own_shards_are_the_default(evaluate: Callable[..., str]) -> None:
    made = json.loads(evaluate("run", "--json"))
    assert made["schema"] == "gpt.eval/1"
    assert (made["model"], made["device"], made["precision"], made["tasks"]) == (
        "run",
        "cpu",
        "fp32",
        [],
    )
    [own] = made["losses"]
    [other] = json.loads(evaluate("run", "--data", "shards", "--json"))["losses"]
    [text] = json.loads(evaluate("run", "--text", "text.txt", "--json"))["losses"]
    assert own == other
    assert own == {**text, "name": "shards (val)"}  # the same tokens
    assert own["bytes"] == len((PROSE * 5).encode())


def test_the_table_shows_the_loss_beside_the_entropy(evaluate: Callable[..., str]) -> None:
    [loss] = json.loads(evaluate("run", "--json"))["losses"]
    table = evaluate("run")
    for figure in (
        f"{loss['loss']:.4f}",
        f"{loss['unigram_entropy']:.4f}",
        f"{loss['perplexity']:.2f}",
        f"{loss['bits_per_byte']:.4f}",
    ):
        assert figure in table
    assert "windows of 16 tokens, 16 apart" in table
    assert (
        "The run's own validation loss, in its report and card, is on 96 of 1,000 tokens." in table
    )
    assert "own validation loss" not in evaluate("run", "--text", "text.txt")


def test_several_texts_and_a_stride(evaluate: Callable[..., str]) -> None:
    made = json.loads(
        evaluate(
            "run",
            "--text",
            "text.txt",
            "--text",
            "run/config.json",
            "--stride",
            5,
            "--limit",
            "3",
            "--json",
        )
    )
    assert [loss["name"] for loss in made["losses"]] == ["text.txt", "run/config.json"]
    assert [(loss["stride"], loss["windows"], loss["tokens"]) for loss in made["losses"]] == [
        (5, 3, 26)
    ] * 2


def test_a_task_its_report_and_its_items(evaluate: Callable[..., str], tmp_path: Path) -> None:
    out, items = tmp_path / "deep" / "eval.json", tmp_path / "items.jsonl"
    table = evaluate("run", "--task", "lambada", "--data", "lambada", "-o", out, "--samples", items)
    written = json.loads(out.read_text())
    assert written == json.loads(
        evaluate("run", "--task", "lambada", "--data", ".", "--json").replace('"./', '"')
    )
    assert written["losses"] == []
    assert [result["scoring"] for result in written["tasks"]] == [
        "last_word",
        "last_token",
        "last_word_filtered",
        "last_token_filtered",
    ]
    for result in written["tasks"]:
        assert (result["items"], result["shots"], result["truncated"]) == (2, 0, 0)
        assert result["data_sha256"] == sha256(Path("lambada/lambada_test.jsonl"))
        assert [(score["model"], score["score"]) for score in result["paper"]] == [
            ("gpt2", 45.99),
            ("gpt2", 35.13),
        ]
    assert "45.99%, 35.13" in table
    assert [json.loads(line)["target"] for line in items.read_text().splitlines()] == [
        " prose",
        " café",
    ]
    # nothing temporary is left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "items.jsonl"]


def test_the_same_inputs_the_same_bytes(evaluate: Callable[..., str], tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        evaluate("run", "--text", "text.txt", "-o", tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_an_output_that_exists_needs_force(evaluate: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "eval.json"
    out.write_text("mine")
    with pytest.raises(GptError, match="--force replaces it"):
        evaluate("run", "-o", out)
    assert out.read_text() == "mine"
    evaluate("run", "-o", out, "--force")
    assert json.loads(out.read_text())["schema"] == "gpt.eval/1"


def test_a_users_own_task(evaluate: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        'title = "t"\nsource = "s"\nfiles = {items = "lambada*"}\nreader = "jsonl"\nkind = "last_word"\nprompt = "{text}"\n'
    )
    results = json.loads(
        evaluate("run", "--task", tmp_path / "mine.toml", "--data", "lambada", "--json")
    )["tasks"]
    assert [(result["task"], result["scoring"], result["paper"]) for result in results[:2]] == [
        ("mine", "last_word", []),
        ("mine", "last_token", []),
    ]
    assert "mine" in evaluate("run", "--task", tmp_path / "mine.toml", "--data", "lambada")


def test_the_list_needs_no_run(evaluate: Callable[..., str]) -> None:
    assert "lambada" in evaluate("--list")


def test_the_list_looks_into_the_folder_of_each_task(
    evaluate: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "lambada.jsonl").touch()
    for words in ([], ["lambada"]):
        told = evaluate("--list", *words, "--data", f"lambada={tmp_path}")
        [line] = [one for one in told.splitlines() if one.startswith(("lambada ", "  here"))]
        assert ("here" if not words else str(tmp_path / "lambada.jsonl")) in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "RUN is missing"),
        (["gone"], "no such folder"),
        (["run", "--text", "gone.txt"], r"gone\.txt"),
        (["run", "--data", "lambada"], "contains text, not shards"),
        (["run", "--task", "lambda", "--data", "."], "did you mean lambada"),
        (["run", "--task", "lambada"], "needs its data"),
        (["run", "--samples", "x.jsonl"], "--samples needs --task"),
        (["run", "--task", "lambada", "--data", ".", "--stride", "4"], "--stride needs a text"),
        (["run", "--stride", "17"], "--stride: 17 is out of range"),
        (["run", "--limit", "0"], "--limit: 0 is out of range"),
        (["run", "-o", "lambada"], "is a folder"),
    ],
)
def test_bad_usage(evaluate: Callable[..., str], args: list[str], message: str) -> None:
    with pytest.raises((GptError, FileNotFoundError), match=message):
        evaluate(*args)


QUIZ = """title = "t"
source = "s"
files = {items = "items.jsonl"}
reader = "jsonl"
kind = "choice"
prompt = "{q}:"
choices = "c"
gold = "g"
"""


@pytest.fixture
def quiz(tmp_path: Path) -> Path:
    (tmp_path / "quiz.toml").write_text(QUIZ)
    rows = [{"q": f"q{number}", "c": ["some", "words of"], "g": number % 2} for number in range(8)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_few_shot_and_what_it_says(evaluate: Callable[..., str], quiz: Path) -> None:
    asked = ["run", "--task", quiz / "quiz.toml", "--data", quiz, "--shots", 2, "--shots-seed", 5]
    [result] = json.loads(evaluate(*asked, "--json"))["tasks"]
    assert (result["shots"], result["shots_seed"], result["shots_from"]) == (
        2,
        5,
        "the same set without the item",
    )
    assert 0 <= result["mean_shots"] <= 2
    assert set(result["accuracy_by_normaliser"]) == {"token", "sum", "character"}
    table = " ".join(evaluate(*asked).split())
    assert "2 shots drawn for each item from the same set without the item, seed 5" in table
    shared = " ".join(evaluate(*asked, "--shared-shots").split())
    assert "the same 2 shots for all items" in shared
    assert "2 not asked: a shared shot" in shared


def test_records_beside_the_report_are_gone_on_with_or_replaced(
    evaluate: Callable[..., str], quiz: Path
) -> None:
    asked = ["run", "--task", quiz / "quiz.toml", "--data", quiz, "-o", quiz / "eval.json"]
    evaluate(*asked)
    report, records = (
        (quiz / "eval.json").read_bytes(),
        (quiz / "eval.records" / "quiz.jsonl").read_bytes(),
    )
    assert records.count(b"\n") == 9  # a header, and an item a line
    (quiz / "eval.json").unlink()
    with pytest.raises(
        GptError,
        match=r"contains the records.*\n.*use --resume to continue it, --force to start over",
    ):
        evaluate(*asked)
    for way in ("--resume", "--resume", "--force"):
        evaluate(*asked, way)
        assert (quiz / "eval.json").read_bytes() == report
        assert (quiz / "eval.records" / "quiz.jsonl").read_bytes() == records
    with pytest.raises(GptError, match="different: limit"):
        evaluate(*asked, "--resume", "--limit", 3)
    evaluate(
        "run", "--task", quiz / "quiz.toml", "--data", quiz, "--records", quiz / "kept", "--json"
    )
    assert (quiz / "kept" / "quiz.jsonl").read_bytes() == records


def test_items_of_the_training_shards_are_told_apart(
    evaluate: Callable[..., str], quiz: Path
) -> None:
    tokens = [289, *load_tokenizer("run").encode(PROSE * 5)]
    (quiz / "train").mkdir()
    shard = quiz / "train" / "train-000000.bin"
    write_shard(shard, np.array([len(tokens)]), [np.array(tokens)], token_dtype(290))
    manifest = json.loads(Path("shards/manifest.json").read_text())
    row = {
        "file": shard.name,
        "split": "train",
        "tokens": len(tokens),
        "documents": 1,
        "sha256": sha256(shard),
    }
    (quiz / "train" / "manifest.json").write_text(json.dumps({**manifest, "shards": [row]}))
    words = (PROSE * 3).split()[:24]
    rows = [
        {"q": " ".join(order), "c": ["some", "words"], "g": 0} for order in (words, words[::-1])
    ]
    (quiz / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["run", "--task", quiz / "quiz.toml", "--data", quiz, "--against", quiz / "train"]
    [result] = json.loads(evaluate(*asked, "--json"))["tasks"]
    found = result["contamination"]
    assert (found["n"], found["items"], found["dirty_items"], found["all"]) == (
        13,
        2,
        1,
        result["accuracy"],
    )
    assert found["clean"] + found["dirty"] == 2 * found["all"]
    assert "1 of 2 items occur in" in evaluate(*asked)


def test_markdown(evaluate: Callable[..., str], quiz: Path) -> None:
    text = evaluate("run", "--task", quiz / "quiz.toml", "--data", quiz, "--markdown")
    assert (
        "| task | scoring | K | items | accuracy | chance |\n|---|---|---:|---:|---:|---:|\n| quiz | token | 0 | 8 |"
        in text
    )
    assert text.count("| 50.00% |") == 1, "two choices; no paper has this task, so no such column"


def test_a_picture_of_several_reports(evaluate: Callable[..., str], quiz: Path) -> None:
    reports = []
    for shots in (0, 1, 2):
        reports.append(quiz / f"{shots}.json")
        evaluate(
            "run", "--task", quiz / "quiz.toml", "--data", quiz, "--shots", shots, "-o", reports[-1]
        )
    evaluate(*reports, "--plot", quiz / "k.svg")
    picture = (quiz / "k.svg").read_text()
    assert "solved examples in the context (K)" in picture
    assert (
        picture
        == (evaluate(*reports, "--plot", quiz / "k.svg", "--force"), (quiz / "k.svg").read_text())[
            1
        ]
    )
    evaluate(reports[0], "--plot", quiz / "size.svg")
    assert "parameters, logarithmic" in (quiz / "size.svg").read_text()


def test_a_dry_run_says_the_work_and_writes_nothing(
    evaluate: Callable[..., str], quiz: Path
) -> None:
    before = sorted(quiz.rglob("*"))
    args = (
        "run",
        "--task",
        quiz / "quiz.toml",
        "--data",
        quiz,
        "--text",
        "text.txt",
        "--limit",
        "3",
        "-o",
        quiz / "out.json",
    )
    said = json.loads(evaluate(*args, "--dry-run", "--json"))
    assert sorted(quiz.rglob("*")) == before
    assert said["dry_run"]
    text, task = said["work"]
    done = json.loads(evaluate(*args, "--json"))
    assert (text["items"], text["tokens"]) == (
        done["losses"][0]["windows"],
        done["losses"][0]["tokens"],
    )
    assert task["items"] == done["tasks"][0]["items"]
    assert said["memory_bytes"] == 4 * done["parameters"]
    assert "tokens read" in evaluate(*args[:-2], "--dry-run")


def test_generated_items_need_no_data(evaluate: Callable[..., str]) -> None:
    [result] = json.loads(evaluate("run", "--task", "two_digit_addition", "--limit", 2, "--json"))[
        "tasks"
    ]
    assert (result["data"], result["items"], result["scoring"]) == (
        "generated, seed 0",
        2,
        "beam 4",
    )
    assert set(result["calibration"]) == {"1", "5", "10", "50"}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "run"], "2 runs at once"),
        (["run", "--shots", "2"], "--shots needs --task"),
        (["run", "--records", "x"], "--records needs --task"),
        (
            ["run", "--task", "lambada", "--data", ".", "--shared-shots"],
            "--shared-shots needs --shots",
        ),
        (["run", "--task", "lambada", "--data", ".", "--normalise", "tokn"], "did you mean token"),
        (["run", "--task", "lambada", "--data", ".", "--resume", "--force"], "contradict"),
        (["run", "--task", "lambada", "--data", ".", "--resume"], "nothing to continue from"),
        (["run", "--resume"], "--resume needs --task"),
        (["run", "--json", "--markdown"], "contradict"),
        (
            ["run", "--task", "lambada", "--task", "lambada", "--data", "."],
            "lambada is named twice",
        ),
        (["run", "--task", "lambada", "--data", ".", "--shots", "2"], "--shots 2 needs more"),
        (["--plot", "x.svg"], "--plot draws reports"),
        (["shards/manifest.json", "--plot", "x.svg"], "not a report"),
        (["shards/manifest.json", "--plot", "x.png"], "x.png does not end in .svg"),
    ],
)
def test_more_bad_usage(evaluate: Callable[..., str], args: list[str], message: str) -> None:
    with pytest.raises(GptError, match=message):
        evaluate(*args)


def test_a_text_of_json_lines_is_measured_with_a_warning(
    evaluate: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warned: list[str] = []
    monkeypatch.setattr(ConsoleEvents, "warn", lambda self, text: warned.append(text))
    path = tmp_path / "two.txt"
    path.write_text('{"text": "and some words"}\n{"text": "of prose"}\n')
    assert "two.txt" in evaluate("run", "--text", path)
    assert [text.partition("two.txt ")[2][:56] for text in warned] == [
        "looks like JSON lines, which is measured as it stands, m"
    ]
    path.write_text("and some words of prose\n")
    evaluate("run", "--text", path)
    assert len(warned) == 1


@pytest.mark.parametrize("markdown", [False, True])
def test_the_conditions_and_the_note_stand_below(
    capsys: pytest.CaptureFixture[str], markdown: bool
) -> None:
    under = Conditions(
        shots=2, mean_shots=1.5, shots_from="train.jsonl", shots_seed=7, shared_shots=False, items=3, skipped={"an empty answer": 1},
        truncated=1, stride=None, data="dev|x.jsonl", data_sha256="0123456789abcdef", note="\nAs GPT-3;\nothers sum.",
    )  # fmt: skip
    result = TaskResult(
        task="hellaswag",
        scoring="token",
        correct=1,
        metrics={"accuracy": MetricValue(value=33.3, stderr=None)},
        conditions=under,
        paper=[],
    )
    print_report("run", [], [result], markdown=markdown)
    told = capsys.readouterr().out
    assert markdown or max(map(len, told.splitlines())) <= PIPE_WIDTH
    told = " ".join(told.split())
    assert "hellaswag: As GPT-3; others sum." in told
    assert (
        "2 shots drawn for each item from train.jsonl, seed 7, 1.5 of them fit on average; 1 longer than the context"
        in told
    )
    assert "1 not asked: an empty answer" in told
    assert ("| hellaswag |" in told) == markdown


def test_long_lines_break_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["losses"] * (2 * PIPE_WIDTH // len("losses"))
    print_report(" ".join(words), [], [], markdown=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= PIPE_WIDTH
    assert " ".join(lines).split() == words


NAMES = [
    "[final]book.txt",
    "a[/b].txt",
    "[bold red]",
    ":smile:.txt",
    "\\[x]",
    "[link=http://x]y[/link]",
    "book.txt",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(LossReport)), 1.0)
    loss = LossReport(**values | {"name": name})
    print_report(f"run {name}", [loss], [], markdown=False)
    title, *table = capsys.readouterr().out.splitlines()
    assert title == f"run {name}"
    assert any(line.startswith(name) for line in table)
    task = replace(find_task("lambada"), name=name, title=name)
    print_tasks([(task, None)])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
    assert row.rstrip().endswith(name)


def test_a_comparison_of_finished_reports_is_written(evaluate: Callable[..., str]) -> None:
    for name in ("a.json", "b.json"):
        evaluate("run", "--task", "lambada", "--data", "lambada", "-o", name)
    assert "lambada" in evaluate("a.json", "b.json", "--compare", "-o", "c.json")
    written = json.loads(Path("c.json").read_text(encoding="utf-8"))
    assert (written["a"], written["b"]) == ("a.json", "b.json")
    assert [one["task"] for one in written["comparisons"]] == ["lambada"]
    printed = json.loads(evaluate("a.json", "b.json", "--compare", "-o", "-"))
    assert printed["comparisons"] == written["comparisons"]
    with pytest.raises(GptError, match="the output file exists already"):
        evaluate("a.json", "b.json", "--compare", "-o", "c.json")
    with pytest.raises(GptError, match="--device has no effect with --compare"):
        evaluate("a.json", "b.json", "--compare", "--device", "cpu")


def test_options_without_effect_on_a_fine_tuned_run_are_refused() -> None:
    command: Any = get_command(build_app(["eval"]))
    ctx = command.commands["eval"].make_context(
        "eval", ["run", "--data", "x", "--json", "--shots", "2", "--device", "cpu"]
    )
    with pytest.raises(UsageError, match="--shots and --device have no effect with a fine-tuned"):
        refuse_unused(ctx.command, ctx, given_parameters(ctx), FINETUNED)
    ctx = command.commands["eval"].make_context("eval", ["run", "--data", "x", "--json"])
    refuse_unused(ctx.command, ctx, given_parameters(ctx), FINETUNED)
