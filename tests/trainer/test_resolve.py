"""A run is resolved from what is given, then the paper, then the machine, each with its origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import UsageError
from gptcli.files import read_toml
from gptcli.model.config import ModelConfig, find_size
from gptcli.settings import Resolved
from gptcli.trainer.resolve import (
    LR_RANGE_STEPS,
    ResolvedRun,
    complete_given,
    paper_of,
    resolve_config,
    resolve_run,
)

SHAPE = {"n_layer": 1, "n_head": 1, "d_model": 8, "n_ctx": 16}
MACHINE = {"layout": "dp=1", "precision": "fp32", "compile": "off", "micro_batch": 1}


def settings(**values: Any) -> Resolved:
    """Return `values` as a command gives them, on a machine that decides nothing."""
    given = Resolved()
    given.put({"out": "runs/x"}, "default")
    given.put({**MACHINE, **values}, "option")
    return given


def resolve(vocab_size: int | None = 260, **values: Any) -> ResolvedRun:
    return resolve_run(settings(**values), vocab_size)


def test_given_values_precede_the_papers_and_keep_their_origin() -> None:
    run = resolve(size="350M", lr=1e-3, dropout=0.1)
    paper = find_size("350M")
    assert run.name == "gpt3-medium"
    assert (run.train.lr, run.train.batch_tokens) == (1e-3, 256 * 2048)
    assert run.train.tokens == 300_000_000_000
    assert run.model == ModelConfig.from_paper(paper, vocab_size=260, dropout=0.1)
    origin = run.resolved.origin
    assert (origin["lr"], origin["dropout"]) == ("option", "option")
    assert origin["n_layer"] == paper.name
    assert origin["tokens"] == "GPT-3, gpt3-medium"
    assert (run.processes, run.must_compile) == (1, False)


def test_vocabulary_is_that_of_the_shards_or_without_them_the_papers() -> None:
    assert resolve(size="350M").model.vocab_size == 260
    assert resolve(None, size="350M").model.vocab_size == 50257


def test_custom_shape_takes_the_nearest_papers_recipe_and_a_length_of_its_own() -> None:
    run = resolve(**SHAPE)
    assert run.name == "GPT"
    assert run.resolved.origin["tokens"] == "20 a parameter (Hoffmann et al. 2022)"
    assert run.train.tokens == pytest.approx(20 * run.model.parameters, rel=0.2)
    assert run.train.batch_tokens % 16 == 0


def test_range_test_is_short_and_has_its_own_folder() -> None:
    given = settings(size="350M", batch_tokens=64 * 2048)
    run = resolve_run(given, 260, lr_range=True)
    assert run.train.tokens == LR_RANGE_STEPS * 64 * 2048
    assert run.resolved.values["out"] == "runs/x-lr-range"
    assert run.resolved.origin["tokens"] == "100 steps"


def test_requested_compilation_must_succeed_and_an_earlier_runs_need_not() -> None:
    assert resolve(size="350M", compile="on").must_compile
    given = settings(size="350M")
    given.put({"compile": "on"}, "run.toml of an earlier run")
    assert resolve_run(given, 260).train.compile
    assert not resolve_run(given, 260).must_compile


@pytest.mark.parametrize(
    ("values", "field", "code"),
    [
        ({}, "size", "no_size"),
        ({"n_layer": 2}, "size", "no_size"),
        ({"size": "350M", "checkpoint": 3}, "checkpoint", "checkpoint_without_init_from"),
        ({"size": "350M", "mup": 128}, "mup", "mup_without_lr"),
        ({"size": "gpt1", "mup": 128, "lr": 1e-3}, "mup", "mup_needs_pre_norm"),
        (
            {"size": "350M", "follow_noise": True, "ramp_tokens": 10},
            "ramp_tokens",
            "ramp_with_noise_scale",
        ),
        (
            {"size": "350M", "follow_noise": True, "layout": "tp=2", "micro_batch": 512},
            "batch_tokens",
            "noise_scale_unmeasured",
        ),
    ],
)
def test_values_that_do_not_go_together_name_a_field(
    values: dict[str, Any], field: str, code: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(**values)
    assert (caught.value.field, caught.value.code) == (field, code)


def test_values_from_python_may_be_quantities() -> None:
    config = resolve_config({**SHAPE, **MACHINE, "tokens": "64k", "batch_tokens": 64, "lr": None})
    assert (config.tokens, config.batch_tokens, config.compile) == (64_000, 64, False)
    assert resolve_config({**SHAPE, **MACHINE, "compile": True}).compile
    with pytest.raises(UsageError, match="unknown field 'token'") as caught:
        resolve_config({**SHAPE, "token": 1})
    assert caught.value.code == "unknown_field"
    with pytest.raises(UsageError) as caught:
        resolve_config({**SHAPE, "tokens": "many"})
    assert (caught.value.field, caught.value.code) == ("tokens", "not_a_quantity")


def test_paper_of_settings_is_that_of_their_size() -> None:
    assert paper_of(settings(size="1.5B")) is find_size("gpt2-xl")
    assert paper_of(settings(n_layer=2)) is None


def test_resuming_where_there_is_neither_run_nor_size_names_the_folder(tmp_path: Path) -> None:
    given = Resolved()
    given.put({"out": str(tmp_path / "run"), "tokens": 512}, "option")
    with pytest.raises(UsageError, match="run: there is no run here to continue") as caught:
        complete_given(given, read_toml, resume=True)
    assert (caught.value.field, caught.value.code) == ("resume", "no_run")
    given.put({"size": "gpt2"}, "option")
    assert complete_given(given, read_toml, resume=True) is given
