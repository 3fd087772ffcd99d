"""Loading a model with its tokenizer, device and precision, or refusing it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gptcli.errors import GptError, InputError, UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.sampling.load import load
from gptcli.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    model = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=tokenizer.vocab_size)
    )
    model.init_weights(0)
    save_model(tmp_path / "run", model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    return tmp_path / "run"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "none")


def test_auto_precision_is_fp32_on_the_cpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = load(run)
    assert (loaded.device.type, loaded.precision, loaded.model.wte.weight.dtype) == (
        "cpu",
        "fp32",
        torch.float32,
    )
    assert not loaded.model.training


def test_bf16_is_loaded_on_request(run: Path) -> None:
    assert {
        parameter.dtype
        for parameter in load(run, device="cpu", precision="bf16").model.parameters()
    } == {torch.bfloat16}


def test_a_tokenizer_of_another_size_is_refused(run: Path) -> None:
    from gptcli.tokenizer.training import train_tokenizer

    train_tokenizer(["la la la"], 258).save(run / "tokenizer.json")
    with pytest.raises(InputError, match="258 tokens, but the model's vocabulary has 400"):
        load(run)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:", "cuda:99", ""])
def test_an_unavailable_device_is_refused(run: Path, device: str) -> None:
    with pytest.raises(UsageError):
        load(run, device=device)


def test_an_unknown_precision_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="fp8"):
        load(run, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["", "config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused(run: Path, missing: str) -> None:
    if missing:
        (run / missing).unlink()
    else:
        shutil.rmtree(run)
    with pytest.raises(GptError) as caught:
        load(run)
    assert caught.value.exit_code == 2


def test_padding_of_the_vocabulary_is_never_sampled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Pad the vocabulary to a multiple of 64, with padding that would win every draw."""
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=448))
    model.init_weights(0)
    with torch.no_grad():
        model.wte.weight[400:] = 100.0
    save_model(tmp_path, model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path, device="cpu", precision="fp32")
    idx = torch.arange(8)[None]
    assert loaded.model.config.vocab_size == tokenizer.vocab_size == 400
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(idx), model(idx)[..., :400])
