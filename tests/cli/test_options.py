"""Configuration files and values of options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from gptcli.cli import build_app, build_shards, sample, train_options
from gptcli.cli.command import Command, read_config
from gptcli.cli.options import (
    Option,
    declaring,
    flag,
    option,
    read_option,
    read_options,
    readers,
)
from gptcli.errors import InputError, UsageError
from gptcli.settings import OneOf, boolean, count

NAMES = {"lr": float, "batch_tokens": count, "size": None}


def test_config_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('lr = 1e-3\nbatch-tokens = "8k"\nsize = "350M"\n')
    assert read_config(path, NAMES) == {"lr": 1e-3, "batch_tokens": 8000, "size": "350M"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "lr = 1\n\nbatch_token = 3\n",
            r"a\.toml:3: unknown key 'batch_token'\n  did you mean batch_tokens\?",
        ),
        ("lr = 1\nlr = 2\n", r"a\.toml:2: not valid TOML: given twice: lr = 2"),
        (
            "size = 'x'\nbatch_tokens = 'many'\n",
            r"a\.toml:2: batch_tokens: 'many' is not a number",
        ),
        ("[lr]\nx = 1\n", r"a\.toml:1: lr: "),
    ],
)
def test_bad_config_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_config(path, NAMES)
    with pytest.raises(InputError, match="no such configuration file"):
        read_config(tmp_path / "b.toml", NAMES)


def test_an_option_names_itself_where_its_value_is_refused() -> None:
    assert read_option("n_layer", "12k", count) == 12_000
    with pytest.raises(UsageError, match="'many' is not a number") as caught:
        read_option("n_layer", "many", count)
    assert (caught.value.field, option("n_layer")) == ("n_layer", "--n-layer")
    assert "12k" in str(caught.value.hint)


TABLES = {
    "train": (train_options.OPTIONS, train_options.READERS),
    "sample": (sample.OPTIONS, readers(sample.OPTIONS)),
    "build-shards": (build_shards.OPTIONS, readers(build_shards.OPTIONS)),
}


@pytest.mark.parametrize("command", TABLES)
def test_every_row_of_a_table_is_an_option_and_a_key(command: str) -> None:
    rows, keys = TABLES[command]
    leaf: Any = typer.main.get_command(build_app([command])).commands[command]  # type: ignore[attr-defined]
    found = {param.name: param for param in leaf.params}
    for name, row in rows.items():
        param = found[name]
        assert option(name) in param.opts
        assert (param.help or "").endswith(".")
        assert param.is_flag == (row.reader is boolean)
        assert param.multiple == row.repeats
        assert name in keys
    assert [param.param_type_name for param in leaf.params] == sorted(
        param.param_type_name for param in leaf.params
    )  # arguments come first


def test_values_are_read_by_their_rows_and_errors_name_the_option() -> None:
    rows = {
        "tokens": Option("Run", "1M", "Tokens."),
        "name": Option("Run", "", "Name.", "NAME"),
        "kind": Option("Run", "a", "Kind.", "KIND", OneOf(("a", "b"))),
        "on": Option("Run", help="On.", reader=boolean),
    }
    typed = {"tokens": "2k", "name": None, "kind": "b", "on": False}
    assert read_options(rows, typed) == {"tokens": 2000, "kind": "b"}
    for name, text in (("tokens", "many"), ("name", ""), ("kind", "c")):
        with pytest.raises(UsageError) as caught:
            read_options(rows, {name: text})
        assert caught.value.field == name


def test_a_command_declares_a_table_in_place_of_its_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = typer.Typer()
    given: dict[str, Any] = {}

    @app.command(cls=Command)
    @declaring(
        {"tokens": Option(None, "1M", "Tokens."), "on": Option(None, help="On.", reader=boolean)}
    )
    def command(
        file: Annotated[str, typer.Argument(metavar="FILE")],
        force: Annotated[bool, flag("--force", "Force.")] = False,
        **options: Any,
    ) -> None:
        given.update(options, file=file, force=force)

    app(["a.txt", "--tokens", "5", "--force"], standalone_mode=False)
    assert given == {"file": "a.txt", "force": True, "tokens": "5", "on": False}
    app(["a.txt", "--on"], standalone_mode=False)
    assert (given["tokens"], given["on"]) == (None, True)
