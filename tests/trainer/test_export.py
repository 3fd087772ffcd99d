from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, GPTNeoForCausalLM

from gptcli.model.weights import load_model
from gptcli.trainer.export import is_finished


def test_the_run_folder_loads_in_transformers_as_it_stands(make_run, train_here):
    run = make_run(tokens=320)
    assert not is_finished(run.out)
    train_here(run)
    assert is_finished(run.out)
    ours, theirs = load_model(run.out), GPT2LMHeadModel.from_pretrained(run.out).eval()
    idx = torch.randint(0, run.model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(run.out).decode([ord("a") - 33]) != ""
    assert theirs.generation_config.eos_token_id == run.eot_id


def test_the_card_says_what_was_trained_on_what(make_run, train_here):
    run = make_run(attention="banded", band=5, tokens=320)
    report = train_here(run)
    card = (run.out / "README.md").read_text()
    for fact in (
        "dense and banded attention in turn, band 5",
        f"{run.model.parameters:,}",
        "320 tokens in 5 steps",
        f"{report['val_loss']:.4f}",
        run.resolved,
        f"In transformers: {json.loads((run.out / 'config.json').read_text())['gpt_export']['note']}.",
    ):
        assert fact in card
    assert GPTNeoForCausalLM.from_pretrained(run.out).config.window_size == 5


@pytest.mark.parametrize("val", [0, 10])
def test_without_validation_tokens_the_loss_is_not_measured(make_run, train_here, write_shards, tmp_path, val):
    run = make_run(data=write_shards(tmp_path / "shards", val=val), tokens=320)
    assert train_here(run)["val_loss"] is None
    assert "not measured" in (run.out / "README.md").read_text()
