"""Samples of one prompt are those of each way to generate, and are shown in order."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import InputError
from gptcli.model.safetensors_io import save_model
from gptcli.model.source import ModelSource
from gptcli.model.transformer import GPT
from gptcli.sampling.beam import generate_by_beam_search
from gptcli.sampling.generate import encode_prompt, generate
from gptcli.sampling.load import Loaded
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.sampler import SEPARATOR, Sampler, load_draft
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.tokenizer.training import train_tokenizer

PROMPT = "def wrap(text"


@pytest.fixture
def loaded(model: GPT, tokenizer: Tokenizer) -> Loaded:
    return Loaded(
        model, tokenizer, torch.device("cpu"), "fp32", ModelSource(Path("run"), None, None)
    )


def sampler(loaded: Loaded, **options: Any) -> Sampler:
    return Sampler(loaded=loaded, params=SamplingParams(), max_tokens=8, **options)


def test_several_samples_are_those_of_each_index_separated_by_lines(loaded: Loaded) -> None:
    alone = [
        generate(
            loaded.model, loaded.tokenizer, PROMPT, max_tokens=8, seed=3, sample_index=index
        ).text
        for index in range(3)
    ]
    shown: list[str] = []
    found = sampler(loaded, num_samples=3).sample(PROMPT, seed=3, on_text=shown.append)
    assert [completion.text for completion in found] == alone
    text = f"\n{SEPARATOR}\n".join(PROMPT + sample for sample in alone)
    assert "".join(shown) == f"{text}\n"
    assert not found[0].log_probs
    assert len(sampler(loaded).sample(PROMPT, seed=3)[0].log_probs) > 0


def test_best_of_several_has_the_highest_mean_log_probability(loaded: Loaded) -> None:
    every = sampler(loaded, num_samples=4).sample(PROMPT, seed=3)
    shown: list[str] = []
    [best] = sampler(loaded, best_of=4).sample(PROMPT, seed=3, on_text=shown.append)
    assert best.text == max(every, key=lambda one: one.mean_log_prob).text
    assert "".join(shown) == f"{PROMPT}{best.text}\n"


def test_beam_search_gives_its_one_continuation(loaded: Loaded) -> None:
    tokens = encode_prompt(loaded.tokenizer, PROMPT)
    expected = generate_by_beam_search(
        loaded.model, loaded.tokenizer, tokens, max_tokens=8, width=3
    )
    [found] = sampler(loaded, beam=3).sample(PROMPT, seed=0)
    assert found.tokens == expected.tokens


def test_draft_of_the_same_model_gives_samples_of_the_requested_length(loaded: Loaded) -> None:
    [found] = sampler(loaded, draft=loaded).sample(PROMPT, seed=0)
    assert (len(found.tokens), found.finish_reason) in ((8, "length"), (len(found.tokens), "stop"))


def test_output_ends_with_a_new_line_after_an_interrupt(loaded: Loaded) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler(loaded).sample(PROMPT, seed=0, on_text=show)
    assert shown[-1] == "\n"


def test_draft_with_another_tokenizer_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    save_model(tmp_path, loaded.model, loaded.model.config)
    loaded.tokenizer.save(tmp_path / "tokenizer.json")
    assert load_draft(tmp_path, loaded, device="cpu", precision="fp32").tokenizer.sha256
    other = train_tokenizer([inspect.getsource(inspect)], loaded.tokenizer.vocab_size)
    other.save(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match="another tokenizer"):
        load_draft(tmp_path, loaded, device="cpu", precision="fp32")
