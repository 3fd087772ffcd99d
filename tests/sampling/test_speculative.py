"""A draft model changes neither greedy tokens nor the distribution of sampled ones."""

from __future__ import annotations

import pytest
import torch

from gptcli.errors import GptError
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.sampling.generate import TokenSequence, generate_sequences, sample_generator
from gptcli.sampling.params import SamplingParams, filter_logits
from gptcli.sampling.speculative import generate_speculatively

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
    """Use 200 prompts of 1 to 60 tokens, some longer than the context."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 61, (200,), generator=generator).tolist()
    prompts = [
        torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]
    rows = [TokenSequence(prompt, max_tokens=16) for prompt in prompts]
    list(generate_sequences(model, rows, GREEDY, batch_size=200))
    kept = []
    for row in rows:
        again = TokenSequence(row.prompt, max_tokens=16)
        kept.append(generate_speculatively(model, draft, again, GREEDY))
        assert again.tokens == row.tokens
    assert 0.05 < sum(kept) / 200 < 0.98  # some drafts were accepted, some rejected


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
