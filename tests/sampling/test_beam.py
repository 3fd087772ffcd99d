"""Beam search equals an exhaustive search and transformers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.sampling.beam import Hypothesis, beam_search, length_penalty

STOP = 2


def test_length_penalty_is_gpt3s() -> None:
    assert length_penalty(1) == 1
    assert length_penalty(7) == pytest.approx(2**0.6)


def exhaustive(model: GPT, prompt: list[int], max_tokens: int) -> list[tuple[float, list[int]]]:
    """Return every sequence that ends with STOP or at `max_tokens`, best score first."""
    found = []
    for length in range(1, max_tokens + 1):
        whole = [
            tokens
            for tokens in itertools.product(range(model.config.vocab_size), repeat=length)
            if STOP not in tokens[:-1]
        ]
        whole = [tokens for tokens in whole if tokens[-1] == STOP or length == max_tokens]
        with torch.no_grad():
            log_probs = model(torch.tensor([[*prompt, *tokens] for tokens in whole])).log_softmax(
                dim=-1
            )[:, len(prompt) - 1 : -1]
        totals = log_probs.gather(2, torch.tensor(whole)[:, :, None]).sum(
            dim=(1, 2)
        ) / length_penalty(length)
        found += list(zip(totals.tolist(), map(list, whole), strict=True))
    return sorted(found, reverse=True)


def without_stop(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens[-1] == STOP else tokens


def test_a_wide_beam_is_exhaustive_search(tiny: GPT) -> None:
    for prompt in ([0], [3, 1], [4, 4, 0]):
        exact = exhaustive(tiny, prompt, 4)
        [best, second, *_] = beam_search(tiny, prompt, max_tokens=4, width=5**4, stop_id=STOP)
        assert (best.tokens, second.tokens) == (
            without_stop(exact[0][1]),
            without_stop(exact[1][1]),
        )
        assert (best.score, second.score) == pytest.approx((exact[0][0], exact[1][0]), abs=1e-5)


@pytest.fixture(scope="module")
def tiny() -> GPT:
    model = GPT(ModelConfig(n_layer=2, n_head=2, d_model=16, n_ctx=8, vocab_size=5)).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data += torch.empty_like(parameter).normal_(0.0, 0.3, generator=generator)
    return model


@pytest.mark.parametrize("width", [1, 3, 4])
def test_beam_search_equals_transformers(
    model: GPT, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Compare all tokens under transformers' penalty, with sequences that end early or not."""
    from transformers import GPT2LMHeadModel

    if model.config.attention == "banded":
        pytest.skip("transformers' GPT-2 is dense")
    folder = tmp_path_factory.mktemp("transformers")
    save_model(folder, model, model.config)
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    generator = torch.Generator().manual_seed(5)
    ends = 0
    for length in (1, 2, 3, 5, 8, 13) * 2:
        prompt = torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        stop = greedy_tokens(model, prompt)[3]
        whole = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, length, dtype=torch.int64),
            max_new_tokens=9,
            do_sample=False,
            num_beams=width,
            length_penalty=0.7,
            eos_token_id=stop,
            pad_token_id=stop,
        )
        best = beam_search(
            model, prompt, max_tokens=9, width=width, stop_id=stop, penalty=lambda n: n**0.7
        )[0]
        expected = whole[0, length:].tolist()
        assert best.tokens == (expected[: expected.index(stop)] if stop in expected else expected)
        ends += best.finish_reason == "stop"
    assert ends


def greedy_tokens(model: GPT, prompt: list[int]) -> list[int]:
    return beam_search(model, prompt, max_tokens=9, width=1)[0].tokens


def test_scores_are_the_models_log_probabilities(model: GPT) -> None:
    found = beam_search(model, [5, 6], max_tokens=6)
    assert len(found) == 4
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        with torch.no_grad():
            exact = model(torch.tensor([[5, 6, *one.tokens]]))[0, 1:-1].log_softmax(dim=-1)[
                range(6), one.tokens
            ]
        torch.testing.assert_close(torch.tensor(one.log_probs), exact, atol=1e-4, rtol=1e-4)
        assert one.score == pytest.approx(sum(one.log_probs) / length_penalty(6), abs=1e-4)


def test_a_full_context_ends_every_hypothesis(model: GPT) -> None:
    found: list[Hypothesis] = beam_search(model, [1] * 60, max_tokens=50, width=2)
    assert [len(one.tokens) for one in found] == [1, 1]
    assert [len(one.tokens) for one in beam_search(model, [1] * 20, max_tokens=50, width=2)] == [
        5,
        5,
    ]


@pytest.mark.parametrize("options", [{"width": 0}, {"max_tokens": 0}])
def test_a_width_or_length_below_one_is_refused(model: GPT, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        beam_search(model, [1], **{"max_tokens": 3, **options})
