"""Every value that decides a run is an option or a key of a configuration file, read alike in both."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from gptcli.cli.train_options import CONSTANTS, OPTIONS, READERS, given_values
from gptcli.errors import GptError, UsageError
from gptcli.trainer.config import TrainConfig


def test_every_field_of_a_configuration_has_a_key() -> None:
    assert {field.name for field in fields(TrainConfig)} <= READERS.keys()
    assert OPTIONS.keys().isdisjoint(CONSTANTS)


def test_values_are_read_alike_from_a_file_and_from_the_command_line(tmp_path: Path) -> None:
    typed = {"ema": "0.9", "lr-schedule": "wsd", "cooldown_tokens": "10k", "keep_every": "5"}
    file = tmp_path / "run.toml"
    file.write_text('ema = 0.9\nlr-schedule = "wsd"\ncooldown_tokens = "10k"\nkeep_every = 5\n')
    from_file = given_values({}, file, resume=False).values
    options = {name.replace("-", "_"): text for name, text in typed.items()}
    assert from_file == given_values(options, None, resume=False).values
    assert from_file == {
        "ema": 0.9, "lr_schedule": "wsd", "cooldown_tokens": 10_000, "keep_every": 5,
        "out": "runs/gpt",
    }  # fmt: skip
    with pytest.raises(UsageError) as caught:
        given_values({"ema": "1"}, None, resume=False)
    assert caught.value.field == "ema"


def test_a_continued_run_has_the_values_of_the_other_except_its_own(tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    (trunk / "checkpoints/step-00000010").mkdir(parents=True)
    (trunk / "run.toml").write_text(
        'tokens = 1000\nlr = 0.1\nmin_lr_ratio = 0.1\nout = "trunk"\nlr_schedule = "constant"\n'
    )
    given = {"init_from": str(trunk), "continues": True, "tokens": "2k", "out": "branch"}
    values = given_values(given, None, resume=False)
    assert (values.values["tokens"], values.values["lr"], values.values["out"]) == (
        2000,
        0.1,
        "branch",
    )
    assert values.origin["lr"] == f"run.toml of {trunk}"
    assert values.values["min_lr_ratio"] == 0.1
    cooled = given_values({**given, "lr_schedule": "wsd"}, None, resume=False)
    assert "min_lr_ratio" not in cooled.values, "each schedule ends at a rate of its own"
    with pytest.raises(GptError):
        given_values({**given, "init_from": str(tmp_path / "gone")}, None, resume=False)
