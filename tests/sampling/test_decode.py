"""Decoding with a cache is decoding without one, and transformers' `generate`; chance belongs to the sample, not to how many there are."""

from __future__ import annotations

import pytest
import torch

from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.model.weights import save_model
from gptcli.sampling.decode import decode, sample_generator
from gptcli.sampling.filters import Rules

GREEDY = Rules(greedy=True)


def tokens_after(model: GPT, prompt: list[int], rules: Rules = GREEDY, *, number: int = 0, **options: int) -> list[int]:
    return list(decode(model, prompt, rules, **{"max_tokens": 20, **options}, generator=sample_generator(0, number)))


def prompts(model: GPT, lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(model.config.vocab_size, (length,), generator=generator).tolist() for length in lengths]


def without_cache(model: GPT, prompt: list[int], max_tokens: int) -> list[int]:
    """The stated rule, naively: the whole window again for each token; where it is full, its last n_ctx // 2 tokens make a new one."""
    n_ctx = model.config.n_ctx
    window, out = prompt[-n_ctx:], []
    for _ in range(max_tokens):
        if len(window) > n_ctx:
            window = window[-max(1, n_ctx // 2) :]
        with torch.no_grad():
            out.append(int(model(torch.tensor([window]))[0, -1].argmax()))
        window = [*window, out[-1]]
    return out


@pytest.mark.parametrize("length", [1, 5, 23, 24, 25, 60])
def test_the_cache_changes_nothing(model: GPT, length: int) -> None:
    """24 positions, so that prompts are shorter, as long and longer, and the context is outgrown several times."""
    for prompt in prompts(model, [length] * 4):
        tokens = tokens_after(model, prompt, max_tokens=70)
        assert tokens == without_cache(model, prompt, 70)
        assert len(set(tokens)) > 10  # a model that always says the same could hide a mistake


def test_equal_to_transformers(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> None:
    from transformers import GPT2LMHeadModel

    if model.config.attention == "banded":
        pytest.skip("transformers' GPT-2 is dense")
    folder = tmp_path_factory.mktemp("transformers")
    save_model(folder, model, model.config)
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    for prompt in prompts(model, [1, 2, 3, 5, 8, 13] * 4):
        whole = theirs.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=24 - len(prompt),
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert tokens_after(model, prompt, max_tokens=24 - len(prompt)) == whole[0, len(prompt) :].tolist()


def test_the_prompt_is_read_in_one_pass_and_the_head_at_one_position(model: GPT) -> None:
    read, headed = [], []
    hooks = [
        model.wte.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1])),
        model.lm_head.register_forward_hook(lambda module, args, out: headed.append(args[0].shape[:-1].numel())),
    ]
    tokens_after(model, [1, 2, 3, 4, 5, 6, 7], max_tokens=4)
    for hook in hooks:
        hook.remove()
    assert read == [7, 1, 1, 1]
    assert headed == [1, 1, 1, 1]


def test_stops_with_the_stop_token(model: GPT) -> None:
    tokens = tokens_after(model, [1, 2, 3])
    stop = tokens[6]
    assert tokens_after(model, [1, 2, 3], stop_id=stop) == tokens[: tokens.index(stop) + 1]


def test_tokens_come_as_they_are_made(model: GPT) -> None:
    stream = decode(model, [1], GREEDY, max_tokens=10**9, generator=sample_generator(0, 0))
    assert [next(stream) for _ in range(3)] == tokens_after(model, [1], max_tokens=3)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()  # nothing leaks to whoever reads the stream


def test_each_sample_has_its_own_chance(model: GPT) -> None:
    first, second, again = (tokens_after(model, [1, 2], Rules(top_k=40), number=number) for number in (0, 1, 0))
    assert first == again
    assert first != second
    assert not torch.equal(torch.rand(4, generator=sample_generator(0, 0)), torch.rand(4, generator=sample_generator(1, 0)))


def test_likely_tokens_are_what_the_model_says(model: GPT) -> None:
    """First tokens of many samples follow the model's own softmax, from prompt to draw (chi-square as in test_filters)."""
    rules = Rules(temperature=2.0, top_k=20)
    with torch.no_grad():
        likeliest = model(torch.tensor([[5, 6, 7]]))[0, -1].double().topk(20)
    exact = (likeliest.values / 2).softmax(dim=-1)
    N = 1500
    drawn = [tokens_after(model, [5, 6, 7], rules, number=number, max_tokens=1)[0] for number in range(N)]
    seen = torch.tensor([drawn.count(token) for token in likeliest.indices.tolist()])
    assert seen.sum() == N
    assert float(((seen - N * exact) ** 2 / (N * exact)).sum()) < 19 + 5 * (2 * 19) ** 0.5


def test_a_context_of_one_token() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=1, vocab_size=11)).eval()
    model.init_weights(0)
    assert tokens_after(model, [3, 4], max_tokens=5) == without_cache(model, [3, 4], 5)
