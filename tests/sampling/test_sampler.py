"""Samples of one prompt in every mode, on a tiny model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.errors import GptError, InputError, UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.sampling.generate import TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.load import load
from gptcli.sampling.params import SamplingParams, filter_logits
from gptcli.sampling.sampler import (
    SEPARATOR,
    Hypothesis,
    Sampler,
    beam_search,
    generate_speculatively,
    length_penalty,
    load_draft,
)
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from tests.extent import WHOLE
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


GREEDY = SamplingParams(greedy=True)


@pytest.fixture(scope="module")
def draft(model: GPT) -> GPT:
    """Return the model with noise, so that its drafts are sometimes accepted and sometimes not."""
    config = model.config
    made = GPT(config).eval()
    made.load_state_dict({name: tensor.clone() for name, tensor in model.state_dict().items()})
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0.0, 0.02, generator=generator)
    return made


def test_greedy_tokens_equal_those_without_a_draft(model: GPT, draft: GPT) -> None:
    """Use prompts of 1 to 60 tokens, some longer than the context."""
    count = 200 if WHOLE else 60
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 61, (count,), generator=generator).tolist()
    prompts = [
        torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]
    rows = [TokenSequence(prompt, max_tokens=16) for prompt in prompts]
    list(generate_sequences(model, rows, GREEDY, batch_size=count))
    kept = []
    for row in rows:
        again = TokenSequence(row.prompt, max_tokens=16)
        kept.append(generate_speculatively(model, draft, again, GREEDY))
        assert again.tokens == row.tokens
    assert 0.05 < sum(kept) / count < 0.98  # some drafts were accepted, some rejected


def test_every_token_of_a_perfect_draft_is_accepted(model: GPT) -> None:
    assert generate_speculatively(model, model, TokenSequence([3, 4], max_tokens=11), GREEDY) == 1


def test_log_probabilities_are_those_of_the_model(model: GPT, draft: GPT) -> None:
    row, untold = (TokenSequence([3, 4, 5], max_tokens=15) for _ in range(2))
    generate_speculatively(model, draft, row, GREEDY, log_probs=True)
    with torch.no_grad():
        exact = model(torch.tensor([[*row.prompt, *row.tokens]]))[0, 2:-1].log_softmax(dim=-1)
    torch.testing.assert_close(
        torch.tensor(row.log_probs), exact[range(15), row.tokens], atol=1e-4, rtol=1e-4
    )
    generate_speculatively(model, draft, untold, GREEDY)
    assert untold.log_probs == []


def test_a_draft_may_have_a_shorter_context(model: GPT) -> None:
    config = model.config
    short = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=8, n_ctx=7, vocab_size=config.vocab_size)
    ).eval()
    short.init_weights(0)
    [plain] = generate_sequences(
        model, [TokenSequence([1, 2, 3], max_tokens=40)], GREEDY, batch_size=1
    )
    row = TokenSequence([1, 2, 3], max_tokens=40)
    generate_speculatively(model, short, row, GREEDY)
    assert row.tokens == plain.tokens


@pytest.mark.parametrize(
    "params", [SamplingParams(top_k=8), SamplingParams(top_p=0.8, temperature=2.0)]
)
def test_sampled_text_has_the_large_models_distribution(params: SamplingParams) -> None:
    """Compare pairs of tokens with their exact probabilities (chi-square test).

    The first token is drafted and verified, the second is too, or comes from the large model.
    """
    large, small = (
        GPT(ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=11)).eval()
        for _ in range(2)
    )
    for seed, model in enumerate((large, small)):
        model.init_weights(seed)
        for parameter in model.parameters():
            parameter.data += torch.empty_like(parameter).normal_(
                0.0, 0.25, generator=torch.Generator().manual_seed(seed)
            )
    with torch.no_grad():
        first_V = (
            filter_logits(large(torch.tensor([[1, 2]]))[:, -1], params).double().softmax(dim=-1)[0]
        )
        second_VV = (
            filter_logits(
                large(torch.tensor([[1, 2, token] for token in range(11)]))[:, -1], params
            )
            .double()
            .softmax(dim=-1)
        )
    exact = (first_V[:, None] * second_VV).flatten()
    N, seen = 3000, torch.zeros(121)
    for number in range(N):
        row = TokenSequence([1, 2], max_tokens=2, generator=sample_generator(0, number))
        generate_speculatively(large, small, row, params, draft_tokens=2)
        seen[row.tokens[0] * 11 + row.tokens[1]] += 1
    assert seen[exact == 0].sum() == 0
    often = N * exact >= 5  # all other pairs are one cell
    cells = torch.cat([N * exact[often], (N * exact[~often]).sum()[None]])
    counts = torch.cat([seen[often].double(), seen[~often].sum()[None].double()])
    cells, counts = cells[cells > 0], counts[cells > 0]
    freedom = len(cells) - 1
    assert float(((counts - cells) ** 2 / cells).sum()) < freedom + 5 * (2 * freedom) ** 0.5


def test_repetition_penalty_and_other_vocabularies_are_refused(model: GPT) -> None:
    other = GPT(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=8, vocab_size=9))
    with pytest.raises(GptError, match="9 tokens"):
        generate_speculatively(model, other, TokenSequence([1], max_tokens=1), GREEDY)
    with pytest.raises(GptError, match="repetition"):
        generate_speculatively(
            model, model, TokenSequence([1], max_tokens=1), SamplingParams(repetition_penalty=1.2)
        )
