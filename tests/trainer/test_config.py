from __future__ import annotations

from dataclasses import fields, replace

import pytest

from gptcli.errors import UsageError
from gptcli.trainer.config import RECIPE, TrainConfig, from_values


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokens", 0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("seed", -1),
        ("beta2", 1.0),
        ("min_lr_ratio", 1.1),
        ("keep", 0),
        ("precision", "int8"),
    ],
)
def test_impossible_values_are_refused_by_name(make_run, name, value):
    with pytest.raises(UsageError, match=name):
        replace(make_run().train, **{name: value})


def test_the_recipe_names_fields():
    assert set(RECIPE) < {field.name for field in fields(TrainConfig)}


def test_identity_holds_what_decides_the_weights_and_not_how_they_are_computed(make_run):
    run = make_run()
    assert (
        run.identity()
        == make_run(layout="dp=2", micro_batch=1, keep=9, eval_every=1, compile=True).identity()
    )
    for change in (
        {"lr": 1e-4},
        {"seed": 2},
        {"n_layer": 1},
        {"dropout": 0.1},
        {"data_sha256": "0"},
        {"tokenizer_sha256": "0"},
    ):
        assert run.identity() != make_run(**change).identity(), change


def test_from_values_takes_only_its_own(make_run):
    config = make_run().train
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    assert from_values(TrainConfig, {**values, "n_layer": 3}) == config
