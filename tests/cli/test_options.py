"""Configuration files and values of options."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.cli.command import read_config
from gptcli.cli.options import option, read_option
from gptcli.errors import InputError, UsageError
from gptcli.settings import count

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
            r"a\.toml:2: batch_tokens: 'many' is not a quantity",
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
    with pytest.raises(UsageError, match="'many' is not a quantity") as caught:
        read_option("n_layer", "many", count)
    assert (caught.value.field, option("n_layer")) == ("n_layer", "--n-layer")
    assert "12k" in str(caught.value.hint)
