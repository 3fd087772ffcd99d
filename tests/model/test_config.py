"""Sizes by name, and invalid configurations."""

from __future__ import annotations

import pytest

from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size, size_names


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("350M", "gpt3-medium"),
        ("350m", "gpt3-medium"),
        ("1.5B", "gpt2-xl"),
        ("117M", "gpt2"),
        ("GPT3", "gpt3"),
        ("175b", "gpt3"),
    ],
)
def test_sizes_are_found_by_alias_in_any_case(alias: str, name: str) -> None:
    assert find_size(alias).name == name


def test_names_of_sizes_are_unique() -> None:
    names = [name.lower() for name in size_names()]
    assert len(names) == len(set(names))


def test_unknown_size_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown size '360M'") as caught:
        find_size("360M")
    assert "the nearest are 345M, 350M, 355M\n" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 5}, "is not a multiple of n_head 5"),
        ({"n_layer": 0}, "n_layer: 0 is out of range"),
        ({"attention": "sparse"}, "unknown attention"),
        ({"attention": "dense,"}, "unknown attention ''"),
        ({"dropout": 1.0}, "dropout: 1.0 is out of range"),
        ({"band": 0}, "band: 0 is out of range"),
    ],
)
def test_invalid_configurations_are_rejected(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ModelConfig(**{"n_layer": 2, "n_head": 4, "d_model": 64, "n_ctx": 32, **changes})  # type: ignore[arg-type]


def test_banded_layers_alternate_dense_first() -> None:
    config = ModelConfig(n_layer=4, n_head=1, d_model=8, n_ctx=8, attention="banded", band=3)
    assert [config.band_of(layer) for layer in range(4)] == [None, 3, None, 3]


@pytest.mark.parametrize(
    ("attention", "bands"),
    [
        ("banded,dense", [3, None, 3, None, 3]),
        ("dense,banded,banded", [None, 3, 3, None, 3]),
        ("banded,banded", [3] * 5),
        ("dense", [None] * 5),
    ],
)
def test_attention_pattern_repeats_over_the_layers(attention: str, bands: list[int | None]) -> None:
    config = ModelConfig(n_layer=5, n_head=1, d_model=8, n_ctx=8, attention=attention, band=3)
    assert [config.band_of(layer) for layer in range(5)] == bands


def test_untied_head_counts_twice() -> None:
    tied = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=8, vocab_size=11)
    untied = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=8, vocab_size=11, tied=False)
    assert untied.parameters - tied.parameters == 11 * 8


def test_gpt1_has_the_number_of_parameters_of_the_paper() -> None:
    config = ModelConfig.from_paper(find_size("gpt1"))
    assert config.parameters == 116_534_784
    assert (config.norm, config.dropout, config.n_ctx, config.vocab_size) == (
        "post",
        0.1,
        512,
        40478,
    )


def test_gpt1_has_no_banded_attention() -> None:
    with pytest.raises(UsageError, match="dense attention only"):
        ModelConfig(n_layer=2, n_head=2, d_model=8, n_ctx=8, norm="post", attention="banded")
