"""Samples of one prompt in every mode, on a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import InputError
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.sampling.load import load
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.sampler import SEPARATOR, Sampler, load_draft
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from tests.sampling.conftest import small_model


def save_run(folder: Path, model: GPT, tokenizer: Tokenizer) -> Path:
    save_model(folder, model.state_dict(), model.config, eot_id=tokenizer.eot_id)
    tokenizer.save_for_model(folder, model.config.n_ctx)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return save_run(folder, small_model(tokenizer.vocab_size, attention="dense"), tokenizer)


def sampler(run: Path, **options: Any) -> Sampler:
    loaded = load(run, device="cpu", precision="fp32")
    return Sampler(loaded=loaded, params=SamplingParams(), max_tokens=6, **options)


def test_samples_are_streamed_in_order_and_separated(run: Path) -> None:
    shown: list[str] = []
    samples = sampler(run, num_samples=3).sample("import", seed=1, on_text=shown.append)
    texts = [sample.text for sample in samples]
    assert len(set(texts)) > 1
    expected = f"\n{SEPARATOR}\n".join(f"import{text}" for text in texts) + "\n"
    assert "".join(shown) == expected


def test_the_seed_decides_the_samples(run: Path) -> None:
    first, second, other = (
        [sample.text for sample in sampler(run, num_samples=2).sample("def", seed=seed)]
        for seed in (1, 1, 2)
    )
    assert first == second != other


def test_best_of_keeps_the_sample_with_the_highest_mean_log_probability(run: Path) -> None:
    samples = sampler(run, num_samples=4).sample("def", seed=3)
    [best] = sampler(run, best_of=4).sample("def", seed=3)
    assert best.text == max(samples, key=lambda sample: sample.mean_log_prob).text


def test_beam_search_gives_one_sample_and_shows_it_once(run: Path) -> None:
    shown: list[str] = []
    [sample] = sampler(run, beam=3).sample("def", seed=0, on_text=shown.append)
    assert "".join(shown) == f"def{sample.text}\n"


def test_greedy_speculative_decoding_gives_the_text_of_plain_decoding(run: Path) -> None:
    loaded = load(run, device="cpu", precision="fp32")
    greedy = SamplingParams(greedy=True)
    plain = Sampler(loaded=loaded, params=greedy, max_tokens=8)
    drafted = Sampler(
        loaded=loaded,
        params=greedy,
        max_tokens=8,
        draft=load_draft(run, loaded, device="cpu", precision="fp32"),
    )
    assert [sample.text for sample in drafted.sample("def", seed=0)] == [
        sample.text for sample in plain.sample("def", seed=0)
    ]


def test_a_draft_with_another_tokenizer_is_refused(run: Path, tmp_path: Path) -> None:
    other = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
    save_run(tmp_path, small_model(other.vocab_size, attention="dense"), other)
    loaded = load(run, device="cpu", precision="fp32")
    with pytest.raises(InputError, match="another tokenizer"):
        load_draft(tmp_path, loaded, device="cpu", precision="fp32")


def test_text_is_shown_up_to_an_error(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    broken = sampler(run)
    monkeypatch.setattr(
        GPT, "forward", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory"))
    )
    monkeypatch.setattr(
        GPT, "hidden", lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        broken.sample("def", seed=0, on_text=shown.append)
    assert "".join(shown) == "def\n"
