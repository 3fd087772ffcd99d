"""Words of other tools: every alias leads to an option that exists, and shadows none."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.cli.aliases import (
    COMMANDS,
    EVERYWHERE,
    OF_COMMAND,
    OWN_VALUES,
    Alias,
    find_alias,
    key_hint,
    options_of,
)
from gptcli.cli.command import read_config
from gptcli.errors import InputError


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
            "it is called batch_tokens: a batch is counted in tokens here, not in sequences",
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


@pytest.mark.parametrize("key", ["resume", "dry_run", "force", "report"])
def test_a_key_that_is_an_option_of_the_command_line_alone_is_told_as_such(key: str) -> None:
    from gptcli.cli.train_options import READERS

    option = "--" + key.replace("_", "-")
    assert key_hint("gpt train", key, READERS) == (
        f"it is an option of the command line alone: {option}"
    )


def test_values_of_our_options_are_converted_for_options_that_exist() -> None:
    for command, rows in OWN_VALUES.items():
        assert rows.keys() <= options_of(command).keys()
