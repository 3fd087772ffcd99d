"""Tokens do not depend on cache, batch or the lengths of other sequences, and equal transformers'.

Random numbers depend on the sample alone, not on the number of samples. Streamed text equals the
whole text and consists of complete characters.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.optional_kernels import decode_step
from gptcli.sampling import engine
from gptcli.sampling.generate import (
    DecodeLoop,
    TextStream,
    TokenSequence,
    generate,
    generate_sequences,
    sample_generator,
    sample_tokens,
)
from gptcli.sampling.params import SamplingParams
from gptcli.tokenizer.tokenizer import Tokenizer

GREEDY = SamplingParams(greedy=True)
N_PROMPTS = 200


def made(
    model: GPT,
    prompts: list[list[int]],
    params: SamplingParams = GREEDY,
    *,
    batch: int = 1,
    max_tokens: int = 20,
    **options: int,
) -> list[list[int]]:
    """Return the tokens after each prompt, `batch` at a time; prompt i is sample i of seed 0."""
    rows = [
        TokenSequence(prompt, max_tokens=max_tokens, generator=sample_generator(0, i), **options)
        for i, prompt in enumerate(prompts)
    ]
    done = list(generate_sequences(model, iter(rows), params, batch_size=batch))
    assert sorted(map(id, done)) == sorted(map(id, rows))
    return [row.tokens for row in rows]


def random_prompts(model: GPT, lengths: list[int], seed: int = 7) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(model.config.vocab_size, (length,), generator=generator).tolist()
        for length in lengths
    ]


def without_cache(model: GPT, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Return greedy tokens by the documented rule, reading the whole window for each token.

    When a window is full, its last n_ctx // 2 tokens begin a new one. Windows of equal length are
    one batch, so that this is quick and needs no padding.
    """
    n_ctx = model.config.n_ctx
    windows = [prompt[-n_ctx:] for prompt in prompts]
    out: list[list[int]] = [[] for _ in prompts]
    for _ in range(max_tokens):
        windows = [
            window if len(window) <= n_ctx else window[-max(1, n_ctx // 2) :] for window in windows
        ]
        lengths = [len(window) for window in windows]
        for length in set(lengths):
            rows = [i for i in range(len(windows)) if lengths[i] == length]
            with torch.no_grad():
                tokens = model(torch.tensor([windows[i] for i in rows]))[:, -1].argmax(dim=-1)
            for i, token in zip(rows, tokens.tolist(), strict=True):
                out[i].append(token)
                windows[i].append(token)
    return out


@pytest.fixture(scope="session")
def expected(model: GPT) -> tuple[list[list[int]], list[list[int]]]:
    """Return 200 prompts of 1 to 60 tokens for a context of 24, and the tokens without a cache."""
    lengths = torch.randint(
        1, 61, (N_PROMPTS,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    prompts = random_prompts(model, [1, 5, 23, 24, 25, 60, *lengths[6:]])
    return prompts, without_cache(model, prompts, 30)


@pytest.mark.parametrize("batch", [1, 7, N_PROMPTS])
def test_tokens_do_not_depend_on_cache_batch_or_prompt_lengths(
    model: GPT, expected: tuple[list[list[int]], list[list[int]]], batch: int
) -> None:
    """Sequences end, are replaced and outgrow the context at different times."""
    prompts, whole = expected
    assert made(model, prompts, batch=batch, max_tokens=30) == whole
    # a model that repeats one token could hide an error
    assert len({token for tokens in whole for token in tokens}) > 50


def test_tokens_do_not_depend_on_when_other_sequences_finish(
    model: GPT, expected: tuple[list[list[int]], list[list[int]]]
) -> None:
    prompts, whole = expected
    ends = [1 + (7 * i) % 30 for i in range(N_PROMPTS)]
    rows = [
        TokenSequence(prompt, max_tokens=end) for prompt, end in zip(prompts, ends, strict=True)
    ]
    assert {id(row) for row in generate_sequences(model, rows, GREEDY, batch_size=16)} == {
        id(row) for row in rows
    }
    assert [row.tokens for row in rows] == [
        tokens[:end] for tokens, end in zip(whole, ends, strict=True)
    ]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=40),
        SamplingParams(top_p=0.9, temperature=0.8),
        SamplingParams(repetition_penalty=1.3),
    ],
)
def test_a_seed_determines_the_text_at_any_batch_size(model: GPT, params: SamplingParams) -> None:
    prompts = random_prompts(model, [1, 9, 4, 24, 30, 2, 9, 9] * 3)
    alone = made(model, prompts, params)
    assert alone == made(model, prompts, params, batch=5) == made(model, prompts, params, batch=24)
    assert len({tuple(tokens) for tokens in alone}) == len(prompts)
    assert (
        made(model, [prompts[1]] * 3, params) != [alone[1]] * 3
    )  # each sample has its own random numbers


def test_greedy_tokens_equal_transformers(
    model: GPT, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from transformers import GPT2LMHeadModel

    if model.config.attention == "banded":
        pytest.skip("transformers' GPT-2 is dense")
    folder = tmp_path_factory.mktemp("transformers")
    save_model(folder, model, model.config)
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    prompts = random_prompts(model, [1, 2, 3, 5, 8, 13] * 4)
    for penalty in (1.0, 1.3):
        ours = made(
            model,
            prompts,
            SamplingParams(greedy=True, repetition_penalty=penalty),
            batch=6,
            max_tokens=11,
        )
        for prompt, tokens in zip(prompts, ours, strict=True):
            whole = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=11,
                do_sample=False,
                repetition_penalty=penalty,
                eos_token_id=None,
                pad_token_id=0,
            )
            assert tokens == whole[0, len(prompt) :].tolist()


@pytest.mark.parametrize("by_kernel", [False, True])
def test_prefill_is_one_pass_with_the_head_at_one_position(
    by_kernel: bool, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by_kernel and decode_step(model) is None:
        pytest.skip("the kernel cannot be built here")
    if not by_kernel:
        monkeypatch.setattr(engine, "decode_step", lambda model: None)
    read, headed = [], []
    hooks = [
        model.wte.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1])),
        model.lm_head.register_forward_hook(
            lambda module, args, out: headed.append(args[0].shape[:-1].numel())
        ),
    ]
    made(model, [[1, 2, 3, 4, 5, 6, 7]], max_tokens=4)
    for hook in hooks:
        hook.remove()
    # the kernel bypasses these modules after the prompt
    assert read == ([7] if by_kernel else [7, 1, 1, 1])
    assert headed == ([1] if by_kernel else [1, 1, 1, 1])


def test_the_stop_token_ends_a_sequence_and_is_left_out(model: GPT) -> None:
    [tokens] = made(model, [[1, 2, 3]])
    stop = tokens[6]
    row = TokenSequence([1, 2, 3], max_tokens=20, stop_id=stop)
    assert list(generate_sequences(model, [row], GREEDY, batch_size=1)) == [row]
    assert (row.tokens, row.finish_reason) == (tokens[: tokens.index(stop)], "stop")


def test_log_probabilities_are_those_of_the_model(model: GPT) -> None:
    rows = [
        TokenSequence(prompt, max_tokens=9, generator=sample_generator(0, i))
        for i, prompt in enumerate(random_prompts(model, [3, 8, 5]))
    ]
    for row in generate_sequences(
        model,
        rows,
        SamplingParams(top_k=3, temperature=2.0, repetition_penalty=1.5),
        batch_size=2,
        log_probs=True,
    ):
        with torch.no_grad():
            exact = model(torch.tensor([[*row.prompt, *row.tokens]]))[
                0, len(row.prompt) - 1 : -1
            ].log_softmax(dim=-1)
        torch.testing.assert_close(
            torch.tensor(row.log_probs), exact[range(9), row.tokens], atol=1e-4, rtol=1e-4
        )


def test_sequences_are_consumed_only_as_the_batch_has_room(model: GPT) -> None:
    taken = 0

    def source() -> Iterator[TokenSequence]:
        nonlocal taken
        for _ in range(9):
            taken += 1
            yield TokenSequence([1], max_tokens=2)

    done = generate_sequences(model, source(), GREEDY, batch_size=2)
    next(done)
    assert taken == 2  # the next is taken when the loop continues
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()  # the caller's modes are unchanged
    assert len(list(done)) == 8


def test_sampled_tokens_follow_the_models_distribution(model: GPT) -> None:
    """The first tokens of many samples follow the model's softmax (chi-square test)."""
    with torch.no_grad():
        top = model(torch.tensor([[5, 6, 7]]))[0, -1].double().topk(20)
    exact = (top.values / 2).softmax(dim=-1)
    N = 1500
    drawn = [
        tokens[0]
        for tokens in made(
            model,
            [[5, 6, 7]] * N,
            SamplingParams(temperature=2.0, top_k=20),
            batch=100,
            max_tokens=1,
        )
    ]
    seen = torch.tensor([drawn.count(token) for token in top.indices.tolist()])
    assert seen.sum() == N
    assert float(((seen - N * exact) ** 2 / (N * exact)).sum()) < 19 + 5 * (2 * 19) ** 0.5


def test_a_context_of_one_token_works() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=1, vocab_size=11)).eval()
    model.init_weights(0)
    assert made(model, [[3, 4]], max_tokens=5) == without_cache(model, [[3, 4]], 5)


def test_an_empty_batch_is_allowed_and_zero_tokens_are_refused(model: GPT) -> None:
    assert list(generate_sequences(model, [], GREEDY, batch_size=4)) == []
    with pytest.raises(UsageError, match="max-tokens is 0"):
        TokenSequence([1], max_tokens=0)


RULES = SamplingParams(temperature=1.5)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@given(
    st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.lists(st.integers(0, 10**6))
)
def test_pieces_add_up_to_the_text_wherever_bytes_are_split(data: bytes, places: list[int]) -> None:
    stream = TextStream()
    assert "".join([*map(stream.push, cut(data, places)), stream.end()]) == data.decode(
        "utf-8", "replace"
    )


@given(st.text(max_size=20), st.lists(st.integers(0, 10**6)))
def test_pieces_contain_only_complete_characters(text: str, places: list[int]) -> None:
    stream = TextStream()
    shown = ""
    for piece in cut(text.encode(), places):
        shown += stream.push(piece)
        assert text.startswith(shown)
    assert stream.end() == ""


@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 10**6)),
)
def test_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], places: list[int]
) -> None:
    stream = TextStream(stops)
    shown = ""
    for piece in cut(text.encode(), places):
        shown += stream.push(piece)
        # no shown text has to be withdrawn
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
    shown += stream.end()
    if stream.stopped:
        assert any(text.startswith(stop, len(shown)) for stop in stops)
    else:
        assert shown == text
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_stop_string_ends_a_sample(model: GPT, tokenizer: Tokenizer) -> None:
    whole = generate(model, tokenizer, [1, 2], RULES, max_tokens=60, seed=3)
    stop = whole.text[10:13]
    made = generate(
        model, tokenizer, [1, 2], RULES, max_tokens=60, seed=3, stops=[stop, "never said"]
    )
    assert made.text == whole.text[: whole.text.index(stop)]
    assert made.finish_reason == "stop"
    assert made.tokens == whole.tokens[: len(made.tokens)]


def test_completion_text_is_that_of_its_tokens(model: GPT, tokenizer: Tokenizer) -> None:
    for number in range(20):
        shown: list[str] = []
        made = generate(
            model,
            tokenizer,
            [1, 2],
            RULES,
            max_tokens=60,
            seed=3,
            sample_index=number,
            on_text=shown.append,
        )
        assert made.text == "".join(shown) == tokenizer.decode(made.tokens)
        assert made.finish_reason == ("length" if len(made.tokens) == 60 else "stop")
        assert made.tokens_per_second > 0


def test_end_of_text_ends_a_sample_and_is_left_out(model: GPT, tokenizer: Tokenizer) -> None:
    ended = [
        generate(
            model,
            tokenizer,
            [1],
            SamplingParams(temperature=8.0),
            max_tokens=300,
            seed=0,
            sample_index=number,
        )
        for number in range(12)
    ]
    stopped = [made for made in ended if made.finish_reason == "stop"]
    assert stopped
    for made in stopped:
        assert tokenizer.eot_id not in made.tokens
        assert "endoftext" not in made.text


@pytest.mark.parametrize("fixed", [False, True])
def test_sequences_join_and_leave_between_passes(
    model: GPT, fixed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that come, go and are given up, as in a server; `fixed` as on a GPU, where the pass is
    recorded for all rows. Every sequence gets the tokens that it gets alone.
    """
    monkeypatch.setattr(torch, "compile", lambda forward, **_: forward)
    prompts = random_prompts(model, [3, 9, 1, 20, 5, 12, 2])
    lengths = [9, 2, 30, 5, 1, 12, 7]
    sequences = [
        TokenSequence(prompt, max_tokens=length)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    read: list[tuple[TokenSequence, int]] = []
    loop = DecodeLoop(
        engine.Engine(model, 3, compiled=fixed),
        lambda logits_BV, batch: sample_tokens(logits_BV, GREEDY, batch, False),
        lambda sequence, x_TC: read.append((sequence, len(x_TC))),
    )
    waiting, given_up = list(sequences), sequences[3]
    while waiting or loop.running:
        if waiting and loop.free:  # one at a time
            loop.join(waiting.pop(0))
        loop.step()
        if given_up in loop.running and given_up.tokens:
            loop.leave(given_up)
        assert loop.free == 3 - len(loop.running)
    for sequence in sequences:
        if sequence is not given_up:
            [alone] = made(model, [sequence.prompt], max_tokens=sequence.max_tokens)
            assert sequence.tokens == alone
    assert read == [(sequence, len(sequence.prompt)) for sequence in sequences]
