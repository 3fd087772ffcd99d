from __future__ import annotations

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from gptcli.model.safetensors_io import load_model
from gptcli.trainer.export import is_finished, model_card


def test_the_run_folder_loads_in_transformers(make_run, train_here):
    from transformers import AutoTokenizer, GPT2LMHeadModel

    run = make_run(tokens=320)
    assert not is_finished(run.out)
    train_here(run)
    assert is_finished(run.out)
    ours, theirs = load_model(run.out), GPT2LMHeadModel.from_pretrained(run.out).eval()
    idx = torch.randint(
        0, run.model.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        assert (ours(idx) - theirs(idx).logits).abs().max() < 1e-4
    assert AutoTokenizer.from_pretrained(run.out).decode([ord("a") - 33]) != ""
    assert theirs.generation_config.eos_token_id == run.eot_id


def test_the_card_names_model_data_and_losses(make_run, train_here):
    from transformers import GPTNeoForCausalLM

    run = make_run(attention="banded", band=5, tokens=320)
    report = train_here(run)
    card = (run.out / "README.md").read_text()
    for fact in (
        "alternating dense and banded attention, band 5",
        f"{run.model.parameters:,}",
        "320 tokens in 5 steps",
        f"| Validation loss | {report['val_loss']:.4f} nats per token |",
        f"| Training loss | {report['smoothed_loss']:.4f} nats per token, mean of the last 5 steps |",
        run.resolved,
        f"In transformers: {json.loads((run.out / 'config.json').read_text())['gpt_export']['note']}.",
    ):
        assert fact in card
    assert GPTNeoForCausalLM.from_pretrained(run.out).config.window_size == 5


@pytest.mark.parametrize("val", [0, 10])
def test_without_validation_tokens_the_loss_is_not_measured(
    make_run, train_here, write_shards, tmp_path, val
):
    run = make_run(data=write_shards(tmp_path / "shards", val=val), tokens=320)
    assert train_here(run)["val_loss"] is None
    assert "not measured" in (run.out / "README.md").read_text()


def test_huggingface_hub_parses_the_card(make_run, train_here):
    """By huggingface_hub's own reader: what library loads it, what for, and how well it does; no
    license is made up.
    """
    run = make_run(tokens=320)
    report = train_here(run)
    card = ModelCard((run.out / "README.md").read_text())
    found = card.data.to_dict()
    assert (found["library_name"], found["pipeline_tag"], found["tags"]) == (
        "transformers",
        "text-generation",
        ["gpt2", "gpt"],
    )
    assert "license" not in found
    [result] = vars(card.data)["eval_results"]
    assert (result.metric_type, result.metric_value) == ("loss", round(report["val_loss"], 4))
    assert card.text.lstrip().startswith("# tiny\n")


FACTS = "# gpt 0, python 3\n# date: 2030-01-01T00:00:00Z\n# host: somewhere\n# device: a|b\n# val_tokens: 1,000, from the shards\n# data: /home/someone/shards, 10 training tokens, sha256 ab\n# passes: 0.5\n\nseed = 1\n"


def test_the_card_contains_the_provenance(make_run):
    card = model_card(
        make_run(resolved=FACTS + "n_ctx = 64\neval_tokens = 150\n"),
        {"step": 20, "tokens": 1280, "loss": 9.0, "smoothed_loss": 2.5},
        2.0,
        None,
        finished=True,
    )
    for row in (
        "| Date | 2030-01-01T00:00:00Z |",
        "| Device | a&#124;b |",
        "| Data | shards, 10 training tokens, sha256 ab |",
        "| Validation loss | 2.0000 nats per token, on 128 of 1,000 tokens; `gpt eval` reads all |",
        "| Passes | 0.5 |",
    ):
        assert row in card
    assert "| Training loss | 2.5000 nats per token, mean of the last 5 steps |" in card
    assert "9.0" not in card, "the last step's loss alone"
    assert "somewhere" not in card
    assert "someone" not in card


@pytest.mark.parametrize(
    "last",
    [None, {"step": 3, "tokens": 192, "loss": 4.0}, {"step": 20, "tokens": 1280, "loss": 4.0}],
)
def test_the_card_of_an_unfinished_run_says_so(make_run, last):
    """Also of a run that has taken its last step, and whose model is still to be written."""
    card = model_card(make_run(resolved=FACTS), last, None, None, finished=False)
    reached = (
        f"at step {last['step']} when this was written" if last else "before its first checkpoint"
    )
    assert f"| State | unfinished, {reached}, of 1,280 tokens |" in card
    assert "| Validation loss | not yet measured |" in card
    assert ("| Trained on | nothing yet |" in card) == (not last)
    assert "model-index" not in yaml.safe_load(card.split("---")[1])
