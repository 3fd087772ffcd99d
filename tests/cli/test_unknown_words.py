"""Words that a command line cannot have get one answer with exit code 2, and a line that can be run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from gptcli.cli import COMMANDS as OUR_COMMANDS
from gptcli.cli import build_app
from gptcli.cli.aliases import COMMANDS, OF_COMMAND, options_of, table_of
from gptcli.cli.options import Word
from gptcli.cli.unknown_words import unknown_word
from gptcli.errors import UsageError


def refused(command: str, *args: str) -> UsageError:
    argv = [*command.split()[1:], *args]
    with pytest.raises(UsageError) as caught:
        typer.main.get_command(build_app(argv)).main(argv, prog_name="gpt", standalone_mode=False)
    return caught.value


@pytest.mark.parametrize("command", OF_COMMAND)
def test_every_alias_gets_an_error_with_our_option(command: str) -> None:
    takes = options_of(command)
    for word, alias in table_of(command, takes).items():
        typed = Word(f"--{word}", None)
        error = unknown_word(command, [f"--{word}", "8"], takes, typed)
        assert error.exit_code == 2
        assert error.where == f"--{word}"
        assert (alias.target or "has no such option") in error.what
        assert error.hint
        assert len(str(error).splitlines()) <= 3


@pytest.mark.parametrize("typed", COMMANDS)
def test_commands_of_other_tools_get_an_error_with_our_command(typed: str) -> None:
    assert typed not in OUR_COMMANDS
    alias = COMMANDS[typed]
    if alias.target:
        assert alias.target.split()[0] in OUR_COMMANDS
    error = refused("gpt", typed, "x")
    assert (error.where, error.exit_code) == (typed, 2)
    line = alias.target.replace("RUN", "x").replace("FILE", "x")
    assert f"gpt {line}" in str(error.hint) if line else alias.note in str(error.hint)


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("generate runs/a Once upon --max_new_tokens 5", "gpt sample runs/a 'Once upon' --max-tokens 5"),
        ("inference --model runs/a --prompt Once", "gpt sample runs/a Once"),
        ("pretrain --learning-rate 3e-4", "gpt train --lr 3e-4"),
        ("evaluate runs/a --tasks piqa", "gpt eval runs/a --task piqa"),
        ("serve runs/a", "gpt sample runs/a --serve"),
        ("serve", "gpt sample RUN --serve"),
        ("convert runs/a", "gpt train --export runs/a -o a.gguf"),
        ("tokenise train a.txt", "gpt tokenize train a.txt"),
        ("folder", "the command comes first, for example\ngpt sample folder"),
        ("a.txt", "the command comes first, for example\ngpt build-shards a.txt"),
        ("-V", "gpt --version prints the version"),
        ("tokenize count a.txt", "its commands are train, encode, decode; gpt tokenize --help describes them"),
    ],
)  # fmt: skip
def test_lines_after_a_wrong_command_can_be_run(
    typed: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("runs/a").mkdir(parents=True)
    Path("a.txt").touch()
    assert refused("gpt", *shlex.split(typed)).hint == hint


@pytest.mark.parametrize(
    ("typed", "where", "line"),
    [
        ("sample generate RUN", "generate", "gpt sample RUN"),
        ("sample serve RUN --port 80", "serve", "gpt sample RUN --serve --port 80"),
        ("sample chat RUN", "chat", "gpt sample RUN -i"),
        ("eval evaluate RUN", "evaluate", "gpt eval RUN"),
        ("eval tasks", "tasks", "gpt eval --list"),
        ("train fit --size gpt2", "fit", "gpt train --size gpt2"),
        ("cost estimate --params 7B --num-gpus 8", "estimate", "gpt cost --gpus 8"),
        ("eval run --model hf --model_args pretrained=R --batch_size auto", "--model", "gpt eval R"),
        ("litgpt pretrain 350M --train.max_tokens 10", "litgpt", "gpt train --size 350M --tokens 10"),
        ("python train.py --batch_size=4 --block_size=64", "python", "gpt train --batch-tokens 256 --n-ctx 64"),
        ("lm_eval --model hf --model_args pretrained=R --tasks piqa", "lm_eval", "gpt eval R --task piqa"),
        ("serve R --host 0.0.0.0 --port 80", "serve", "gpt sample R --serve --host 0.0.0.0 --port 80"),
        ("serve --port 80 R", "serve", "gpt sample R --serve --port 80"),
        ("eval --tasks list", "--tasks", "gpt eval --list"),
        ("eval list", "list", "gpt eval --list"),
        ("eval compare ra rb", "compare", "gpt eval --compare ra rb"),
        ("train --resume_from runs/a/checkpoints/step-100", "--resume-from", "gpt train --resume --out runs/a"),
        ("train --resume_from_checkpoint out/checkpoint-500", "--resume-from-checkpoint", "gpt train --resume --out out"),
        ("sample R --typical_q 0.9", "--typical-q", "samples are drawn by --temperature, --top-k and --top-p"),
        ("tokenize train a.txt --special-tokens x", "--special-tokens", "gpt tokenize train a.txt --special-token x"),
        ("build-shards a.txt --train-split 0.9", "--train-split", "--val-fraction F is the share of documents for validation"),
    ],
)  # fmt: skip
def test_commands_of_other_tools_within_ours_are_left_out(
    typed: str, where: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused("gpt", *shlex.split(typed))
    assert (error.where, error.exit_code) == (where, 2)
    assert line in str(error.hint).splitlines()


def test_an_unknown_word_among_those_of_another_tool_gets_the_rest_of_the_line() -> None:
    error = refused("gpt", "sample", "R", "--xyzzy", "--max_new_tokens", "5")
    assert error.where == "--xyzzy"
    assert str(error.hint).endswith("\ngpt sample R --max-tokens 5")


def test_a_folder_with_the_name_of_a_command_is_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("serve").mkdir()
    Path("runs/chat").mkdir(parents=True)
    command: Any = typer.main.get_command(build_app(["sample"]))
    command = command.commands["sample"]

    def parse(word: str) -> Any:
        return command.make_context("gpt sample", [word]).params["run"]

    assert [str(parse(word)) for word in ("serve", "chat", "run")] == ["serve", "chat", "run"]
    with pytest.raises(UsageError, match="whole command"):
        parse("generate")


@pytest.mark.parametrize(
    ("typed", "meant"), [("--verison", "--version"), ("--hepl", "--help"), ("--debgu", "--debug")]
)
def test_a_misspelled_option_of_gpt_itself_is_recognized(typed: str, meant: str) -> None:
    error = refused("gpt", typed)
    assert (error.what, error.where) == ("gpt has no such option", typed)
    assert error.hint == f"did you mean {meant}? gpt --help lists commands and options"
