"""`gpt export`, and models of other programs in the commands that read a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.errors import GptError, InputError, UsageError
from gptcli.model.safetensors_io import load_model
from gptcli.tokenizer.tokenizer import load_tokenizer
from tests.model.test_external import NanoGPT, save_llmc, save_nanogpt
from tests.small_runs import make_shards

ROWS = 264
"""Vocabulary of the shards' 260 entries, padded to a multiple of 8."""


def gpt(*args: object) -> str:
    """Run a command in this process and return its stdout; its errors are raised."""
    argv = list(map(str, args))
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_shards(tmp_path / "shards", train=2000, val=100)


@pytest.fixture
def nano(tmp_path: Path, shards: Path) -> Path:
    """Return nanoGPT's out/, with a checkpoint and the tokenizer of its data."""
    folder = tmp_path / "nano"
    folder.mkdir()
    save_nanogpt(folder / "ckpt.pt", NanoGPT(False, ROWS), False)
    load_tokenizer(shards).save(folder / "tokenizer.json")
    return folder


def test_nanogpt_checkpoint_becomes_a_folder_of_transformers(nano: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert gpt("export", nano, "-o", tmp_path / "out").strip() == str(tmp_path / "out")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    idx = torch.tensor([tokenizer.encode("a small text")])
    with torch.no_grad():
        ours = load_model(nano / "ckpt.pt")(idx)[..., :260]
        assert (theirs.eval()(idx).logits - ours).abs().max() < 1e-5
    text = gpt("sample", tmp_path / "out", "a small", "--greedy", "--max-tokens", 5)
    assert gpt("sample", nano, "a small", "--greedy", "--max-tokens", 5) == text


def test_gguf_file_is_written_once(nano: Path, tmp_path: Path) -> None:
    path = tmp_path / "nano.gguf"
    gpt("export", nano, "-o", path, "--precision", "fp16")
    assert path.read_bytes().startswith(b"GGUF\x03")
    before = path.stat().st_size
    with pytest.raises(UsageError, match="exists already"):
        gpt("export", nano, "-o", path)
    gpt("export", nano, "-o", path, "--force")
    assert path.stat().st_size > before


def test_training_starts_from_the_weights_of_another_program(
    nano: Path, shards: Path, tmp_path: Path
) -> None:
    gpt(
        "train", "--init-from", nano, "--data", shards, "-o", tmp_path / "run", "--tokens", 64,
        "--batch-tokens", 32, "--lr", "1e-9", "--compile", "off", "--precision", "fp32",
        "--samples", 0,
    )  # fmt: skip
    first, last = load_model(nano / "ckpt.pt"), load_model(tmp_path / "run")
    assert last.config.gelu == "exact"
    for name, tensor in last.state_dict().items():
        assert torch.allclose(tensor, first.state_dict()[name][: len(tensor)], atol=1e-6)


def test_evaluation_reads_the_checkpoint_of_llm_c(tmp_path: Path, shards: Path) -> None:
    model, folder = tmp_path / "model.bin", tmp_path / "as-folder"
    save_llmc(model, NanoGPT(True, 384))
    load_tokenizer(shards).save(tmp_path / "tokenizer.json")
    gpt("export", model, "-o", folder)
    (tmp_path / "a.txt").write_text("a small text " * 9)
    one, other = (
        json.loads(gpt("eval", path, "--text", tmp_path / "a.txt", "--json"))["losses"][0]["loss"]
        for path in (model, folder)
    )
    assert one == pytest.approx(other, rel=1e-6)


def test_vocabulary_of_another_tokenizer_is_refused(tmp_path: Path, shards: Path) -> None:
    save_nanogpt(tmp_path / "ckpt.pt", NanoGPT(True, 500), True)
    load_tokenizer(shards).save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="the model's vocabulary has 500"):
        gpt("export", tmp_path / "ckpt.pt", "-o", tmp_path / "out")


def refused(case: str, nano: Path, tmp_path: Path) -> list[object]:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("x")
    return {
        "a folder with files": [nano, "-o", tmp_path / "full"],
        "its own folder": [nano, "-o", nano, "--force"],
        "a folder above it": [nano / "ckpt.pt", "-o", tmp_path, "--force"],
        "a precision of a folder": [nano, "-o", tmp_path / "out", "--precision", "fp16"],
        "an unknown precision": [nano, "-o", tmp_path / "x.gguf", "--precision", "q8"],
        "nothing": [tmp_path / "none", "-o", tmp_path / "out"],
        "a checkpoint of a file": [nano, "-o", tmp_path / "out", "--checkpoint", "3"],
    }[case]


MESSAGES = {
    "a folder with files": "the output folder is not empty",
    "its own folder": "contains the model that is to be exported",
    "a folder above it": "contains the model that is to be exported",
    "a precision of a folder": "is written in fp32, not fp16",
    "an unknown precision": "unknown precision 'q8'",
    "nothing": "no such folder",
    "a checkpoint of a file": "no checkpoint of step 3",
}


@pytest.mark.parametrize("case", MESSAGES)
def test_what_cannot_be_exported_is_refused(case: str, nano: Path, tmp_path: Path) -> None:
    with pytest.raises(GptError, match=MESSAGES[case]):
        gpt("export", *refused(case, nano, tmp_path))
    load_model(nano)  # untouched
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".*"))
