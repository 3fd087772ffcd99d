from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.model.config import ModelConfig
from gptcli.model.hf_config import is_padded, read_model_config, to_transformers
from gptcli.model.source import CONFIG

SHAPE: dict[str, Any] = {"n_layer": 3, "n_head": 2, "d_model": 16, "n_ctx": 32, "vocab_size": 100}


def write(folder: Path, **changes: Any) -> Path:
    table = to_transformers(ModelConfig(**SHAPE), 99) | changes
    (folder / CONFIG).write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"dropout": 0.25},
        {"attention": "banded", "band": 7},
        {"attention": "banded,dense"},
        {"attention": "dense,banded,banded"},
        {"attention": "banded,banded"},
        {"norm": "post"},
    ],
    ids=str,
)
def test_config_survives_a_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = ModelConfig(**{**SHAPE, **changes})
    (tmp_path / CONFIG).write_text(json.dumps(to_transformers(config, 99)))
    assert read_model_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "models of type 'llama' are not supported"),
        ({"n_embd": "16"}, "'n_embd' is missing or not an integer"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 32}, "n_inner is 32"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_other_models_are_rejected(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_model_config(write(tmp_path, **changes))


def test_folder_without_a_configuration_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an empty folder"):
        read_model_config(tmp_path)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(InputError, match="a JSON object is expected"):
        read_model_config(tmp_path)
    (tmp_path / CONFIG).write_text('{"n_layer": 3,\n')
    with pytest.raises(InputError, match=r"config\.json:2: not valid JSON"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_types": [[["global", "local"], 2]]},
            "does not describe 3 layers, the value of num_layers",
        ),
        ({"attention_types": [[["sparse"], 3]]}, "attention_types must be a list"),
        ({"intermediate_size": 32}, "intermediate_size is 32"),
        ({"window_size": None}, "'window_size' is missing or not an integer"),
        ({"hidden_size": 2**62}, "'hidden_size' is missing or not an integer"),
        ({"attention_types": [[["global"], 10**15]]}, "does not describe 3 layers"),
        ({"model_type": {}}, "are not supported"),
        ({"tie_word_embeddings": [1]}, "must be true or false"),
        ({"embed_dropout": 0.1, "resid_dropout": "a"}, "and a number"),
    ],
)
def test_unsupported_gpt_neo_is_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    table = to_transformers(ModelConfig(**SHAPE, attention="banded"), 99) | changes
    (tmp_path / CONFIG).write_text(json.dumps(table))
    with pytest.raises(InputError, match=message):
        read_model_config(tmp_path)


def test_module_does_not_import_torch() -> None:
    code = "import sys, gptcli.model.hf_config; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("rows", "entries", "padded"),
    [
        (50304, 50257, True), (51200, 50257, True), (50264, 50257, True), (50258, 50257, True), (512, 400, True), (448, 400, True),
        (50257, 50257, False), (50257, 50304, False), (400, 258, False), (100_000, 50_257, False), (40478, 32000, False),
    ],
)  # fmt: skip
def test_padded_vocabulary_is_recognized(rows: int, entries: int, padded: bool) -> None:
    assert is_padded(rows, entries) == padded
