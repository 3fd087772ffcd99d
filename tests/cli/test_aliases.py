"""Words of other tools: every alias leads to an option that exists, shadows none, and is one answer
with exit code 2.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from gptcli.cli import COMMANDS as OUR_COMMANDS
from gptcli.cli import build_app
from gptcli.cli.aliases import (
    COMMANDS,
    EVERYWHERE,
    OF_COMMAND,
    Alias,
    corrected,
    find_alias,
    key_hint,
    table_of,
)
from gptcli.cli.command import option_table, read_config
from gptcli.errors import InputError, UsageError


def options_of(command: str) -> dict[str, bool]:
    """Return the options of a command, and whether each takes a value."""
    path = command.split()[1:]
    found: Any = typer.main.get_command(build_app(path))
    ctx: Any = found.context_class(found, info_name="gpt", **found.context_settings)
    for name in path:
        found = found.commands[name]
        ctx = found.context_class(found, info_name=name, parent=ctx)
    return {name: not param.is_flag for name, param in option_table(found, ctx).items()}


def refused(command: str, *args: str) -> UsageError:
    argv = [*command.split()[1:], *args]
    with pytest.raises(UsageError) as caught:
        typer.main.get_command(build_app(argv)).main(argv, prog_name="gpt", standalone_mode=False)
    return caught.value


def test_there_are_more_than_300_aliases() -> None:
    assert sum(map(len, OF_COMMAND.values())) + len(COMMANDS) + len(EVERYWHERE) > 300


@pytest.mark.parametrize("command", OF_COMMAND)
def test_aliases_name_existing_options_and_shadow_none(command: str) -> None:
    takes = options_of(command)
    for word, alias in OF_COMMAND[command].items():
        assert "--" + word not in takes, f"{word} is an option of {command}"
        assert alias.target or alias.note, word
        if alias.option:
            assert alias.option in takes, f"{command} has no {alias.option}"
            assert alias.has_value <= takes[alias.option]
        else:
            assert alias.target in ("", "RUN", "PROMPT", "INPUT")


def test_aliases_for_every_command_name_options_of_some() -> None:
    takes = [options_of(command) for command in OF_COMMAND]
    for alias in EVERYWHERE.values():
        assert not alias.option or any(alias.option in options for options in takes)


@pytest.mark.parametrize("command", OF_COMMAND)
def test_every_alias_gets_an_error_with_our_option(command: str) -> None:
    takes = options_of(command)
    for word, alias in table_of(command, takes).items():
        error = refused(command, f"--{word}", "8")
        assert error.exit_code == 2
        assert error.where == f"--{word}"
        assert (alias.target or "has no such option") in error.what
        assert error.hint
        assert len(str(error).splitlines()) <= 3


@pytest.mark.parametrize("command", OF_COMMAND)
def test_corrected_lines_have_only_our_options(command: str) -> None:
    takes = options_of(command)
    for word, alias in table_of(command, takes).items():
        line = shlex.split(corrected(command, [f"--{word}", "8"], takes))
        if line:
            assert " ".join(line).startswith(command)
            assert not [part for part in line if part.startswith("--") and part not in takes], line
        else:
            assert not alias.target or alias.convert is not None


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
    ("args", "line"),
    [
        ("--size 350M --learning-rate 3e-4", "gpt train --size 350M --lr 3e-4"),
        ("--size=350M --learning_rate=3e-4", "gpt train --size 350M --lr 3e-4"),
        ("--batch-size 16 --n-ctx 256", "gpt train --batch-tokens 4096 --n-ctx 256"),
        ("--block_size=256 --batch_size=16", "gpt train --n-ctx 256 --batch-tokens 4096"),
        ("--size gpt2 --batch-size 16", "gpt train --size gpt2 --batch-tokens 16384"),
        ("--batch-size 16", ""),  # of how many tokens each?
        ("--max-steps 100 --batch-tokens 8k", "gpt train --tokens 800000 --batch-tokens 8k"),
        ("--warmup-steps 100 --size 125M", "gpt train --warmup-tokens 52428800 --size 125M"),
        ("--warmup-ratio 0.01 --tokens 1M", "gpt train --warmup-tokens 10000 --tokens 1M"),
        ("--min-lr 6e-5 --lr 6e-4", "gpt train --min-lr-ratio 0.1 --lr 6e-4"),
        ("--dtype bfloat16 --lr 1", "gpt train --precision bf16 --lr 1"),
        ("--eval-iters 100", ""),  # batches are not tokens
        ("--bf16 True --lr 1", "gpt train --precision bf16 --lr 1"),
        ("--resume-from-checkpoint --out a", "gpt train --resume --out a"),
        ("--tp 2 --pp 4", "gpt train --layout tp=2,pp=4"),
        ("--num-gpus 8", "gpt train --layout dp=8"),
        ("--training.lr 1", "gpt train --lr 1"),
        ("-lr 3e-4", "gpt train --lr 3e-4"),
        ("lr=3e-4 n_layer=2", "gpt train --lr 3e-4 --n-layer 2"),
        ("--wandb", "gpt train --track wandb"),
        ("--max-grad-norm 1", ""),
        ("--batch-tokens 1k --batch-size 4 --n-ctx 64", "gpt train --batch-tokens 256 --n-ctx 64"),
        ("--resume-from-checkpoint runs/a --lr 1", "gpt train --resume --out runs/a --lr 1"),
        ("--resume-from-checkpoint True", "gpt train --resume"),
        (
            "--optim adamw_torch --lr-scheduler-type COSINE",
            "gpt train --optimizer adamw --lr-schedule cosine",
        ),
        ("--lr 1 --xyzzy 2", ""),
    ],
)
def test_values_are_converted_in_corrected_lines(
    args: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert corrected("gpt train", shlex.split(args), options_of("gpt train")) == line


def test_arguments_and_days_are_converted_in_corrected_lines() -> None:
    assert corrected(
        "gpt sample",
        ["--prompt", "a b", "--model", "run", "--max-new-tokens", "5"],
        options_of("gpt sample"),
    ) == ("gpt sample run 'a b' --max-tokens 5")
    assert corrected("gpt cost", ["--days", "3"], options_of("gpt cost")) == "gpt cost --hours 72"


def test_epochs_are_converted_by_the_tokens_of_the_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.shards import manifest

    class Shards:
        def tokens(self, split: str) -> int:
            return {"train": 1000}[split]

    monkeypatch.setattr(
        manifest, "read_manifest", lambda folder: {Path("shards"): Shards()}[folder]
    )
    assert (
        corrected("gpt train", ["--epochs", "3"], options_of("gpt train"))
        == "gpt train --tokens 3000"
    )


def test_aliases_are_found_in_every_spelling() -> None:
    table = {"learning-rate": Alias("--lr")}
    for word in (
        "--learning-rate",
        "-learning_rate",
        "learning_rate",
        "--optimizer.learning_rate",
        "--Learning-Rate",
    ):
        assert find_alias(word, table) == Alias("--lr")
    assert find_alias("--rate", table) is None


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("learning_rate", "it is called lr here"),
        (
            "batch-size",
            "it is called batch_tokens here: a batch is counted in tokens here, not in sequences",
        ),
        ("bf16", 'it is called precision = "bf16" here'),
        ("n_layr", "did you mean n_layer?"),
        ("wandb", 'it is called track = "wandb" here'),
    ],
)
def test_unknown_keys_of_configuration_files_get_a_hint(
    key: str, hint: str, tmp_path: Path
) -> None:
    from gptcli.cli.train_options import READERS

    assert key_hint("gpt train", key, READERS).startswith(hint)
    path = tmp_path / "a.toml"
    path.write_text(f'size = "gpt2"\n{key} = 1\n')
    with pytest.raises(InputError, match=rf"a\.toml:2: unknown key '{key}'") as caught:
        read_config(path, READERS, "gpt train")
    assert str(caught.value.hint).startswith(hint)


def test_out_and_output_are_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('output = "x"\n')
    assert read_config(path, {"out": str}) == {"out": "x"}
    path.write_text('out = "x"\n')
    assert read_config(path, {"output": str}) == {"output": "x"}


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("--model hf --model_args pretrained=gpt2 --tasks lambada", "gpt2 --task lambada"),
        ("--model vllm --model_args=pretrained=a/b,dtype=float16", "a/b"),
        ("--model runs/a --num_fewshot 5", "runs/a --shots 5"),
    ],
)
def test_a_command_line_of_lm_evaluation_harness(typed: str, line: str) -> None:
    takes = options_of("gpt eval")
    assert corrected("gpt eval", typed.split(), takes) == f"gpt eval {line}"


@pytest.mark.parametrize("key", ["resume", "dry_run", "force", "report"])
def test_a_key_that_is_an_option_of_the_command_line_alone_is_told_as_such(key: str) -> None:
    from gptcli.cli.train_options import READERS

    option = "--" + key.replace("_", "-")
    assert key_hint("gpt train", key, READERS) == (
        f"it is an option of the command line alone: {option}"
    )
