"""From text to a folder that transformers loads, through the commands: a banded GPT-3, a GPT-1, and
a perplexity that both agree on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptcli
from gptcli.model.safetensors_io import load_model

Gpt = Callable[..., Any]
SHAPE = ("--n-layer", 4, "--n-head", 4, "--d-model", 64, "--n-ctx", 64)
RECIPE = (
    "--batch-tokens",
    512,
    "--tokens",
    "30k",
    "--lr",
    3e-3,
    "--warmup-tokens",
    2048,
    "--compile",
    "off",
    "--precision",
    "fp32",
)


def shards(gpt: Gpt, folder: Path, *kind: object) -> None:
    """This package's own source, as a corpus."""
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in sorted((Path(gptcli.__file__).parent / "model").glob("*.py"))
    )
    (folder / "text.txt").write_text(text, encoding="utf-8")
    gpt("tokenize", "train", "text.txt", "--vocab-size", 600, *kind, "-o", "tokenizer.json")
    gpt(
        "build-shards",
        "text.txt",
        "--tokenizer",
        "tokenizer.json",
        "--val-fraction",
        0,
        "-o",
        "shards",
    )


def test_a_trained_banded_run_is_a_gpt_neo(gpt: Gpt, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoForCausalLM

    shards(gpt, tmp_path)
    gpt(
        "train",
        *SHAPE,
        "--attention",
        "banded",
        "--band",
        9,
        *RECIPE,
        "--out",
        "run",
        OMP_NUM_THREADS="1",
    )
    ours = load_model(tmp_path / "run")
    assert (ours.config.attention, ours.config.band) == ("banded", 9)
    # it has learnt biases that GPT-Neo lacks
    biases = [block.get_parameter("attn.c_attn.bias") for block in ours.h]
    assert max(bias.abs().max().item() for bias in biases) > 1e-3
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    assert isinstance(theirs, GPTNeoForCausalLM)
    ids = AutoTokenizer.from_pretrained(tmp_path / "run")(
        "def causal_mask(T: int, S: int) -> torch.Tensor:", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        error = (theirs(ids).logits - ours(ids)).abs().max().item()
    print(f"logit error {error:.1e}")
    assert error < 1e-3
    assert (
        json.loads((tmp_path / "run" / "config.json").read_text())["gpt_export"]["logit_error"]
        < 1e-3
    )


def test_a_gpt1_run_is_an_openai_gpt(gpt: Gpt, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, OpenAIGPTLMHeadModel

    shards(gpt, tmp_path, "--kind", "gpt1")
    gpt("train", "--size", "gpt1", *SHAPE, *RECIPE, "--out", "run", OMP_NUM_THREADS="1")
    ours = load_model(tmp_path / "run")
    assert (ours.config.norm, ours.config.dropout) == ("post", 0.1)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    assert isinstance(theirs, OpenAIGPTLMHeadModel)
    ids = AutoTokenizer.from_pretrained(tmp_path / "run")(
        "the last of the positions", return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        assert (theirs(ids).logits - ours(ids)).abs().max().item() < 1e-5
    assert gpt("sample", "run", "the last", "--max-tokens", 5, "--seed", 1).stdout.startswith(
        "the last"
    )


@pytest.mark.real_data
def test_perplexity_is_transformers(gpt: Gpt, tmp_path: Path, real_data: Path) -> None:
    """WikiText-2 through a GPT-2 of random weights: the same windows, the same sum."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=2, n_head=2, n_embd=64, n_positions=128)).eval()
    for parameter in theirs.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0.0, 0.15)
    theirs.save_pretrained(tmp_path / "theirs")
    for name, new in (("encoder.json", "vocab.json"), ("vocab.bpe", "merges.txt")):
        (tmp_path / "theirs" / new).write_bytes((real_data / "gpt2-vocab" / name).read_bytes())
    text = (real_data / "wikitext-2" / "test.txt").read_text(encoding="utf-8")[:30_000]
    (tmp_path / "wiki.txt").write_text(text, encoding="utf-8")
    report = json.loads(gpt("eval", "theirs", "--text", "wiki.txt", "--json").stdout)["losses"][0]

    ids = [50256, *AutoTokenizer.from_pretrained(tmp_path / "theirs")(text).input_ids]
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 128):
            window = torch.tensor([ids[start : start + 129]])
            logits = theirs(window[:, :-1]).logits[0].double()
            total += torch.nn.functional.cross_entropy(
                logits, window[0, 1:], reduction="sum"
            ).item()
    perplexity = math.exp(total / (len(ids) - 1))
    print(f"ours {report['perplexity']:.6f}, theirs {perplexity:.6f}")
    assert report["perplexity"] == pytest.approx(perplexity, rel=1e-4)
