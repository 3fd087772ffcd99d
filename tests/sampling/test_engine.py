"""The engine: its compiled pass, which reads further than the cache is filled, and its limits."""

from __future__ import annotations

import pytest
import torch

from gptcli.errors import RunError
from gptcli.kernels import decode_kernel
from gptcli.model.transformer import GPT
from gptcli.sampling import engine as module
from gptcli.sampling.engine import Engine, require_memory
from gptcli.sampling.generate import TokenSequence, generate_sequences
from gptcli.sampling.params import SamplingParams


def test_compiled_pass_gives_the_same_tokens(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences end and are replaced, slots become empty, contexts overflow, and the visible length
    grows in steps.
    """
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    monkeypatch.setattr(module, "GRAPH_SLOTS", 8)
    prompts = [[(3 * i + j) % 300 for j in range(1 + i % 9)] for i in range(20)]
    made = []
    for compiled in (False, True):
        rows = [
            TokenSequence(prompt, max_tokens=1 + 5 * (i % 7)) for i, prompt in enumerate(prompts)
        ]
        assert (
            len(
                list(
                    generate_sequences(
                        model, rows, SamplingParams(greedy=True), batch_size=6, compiled=compiled
                    )
                )
            )
            == 20
        )
        made.append([row.tokens for row in rows])
    assert made[0] == made[1]


def test_engine_can_be_reused_for_fewer_rows(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)
    engine = Engine(model, 4, compiled=True)
    for count in (4, 2, 7):
        rows, again = (
            [TokenSequence([i + 1] * (i + 1), max_tokens=5 + i) for i in range(count)]
            for _ in range(2)
        )
        list(generate_sequences(model, rows, SamplingParams(greedy=True), batch_size=4))
        list(
            generate_sequences(
                model, again, SamplingParams(greedy=True), batch_size=4, engine=engine
            )
        )
        assert [row.tokens for row in rows] == [row.tokens for row in again]


def test_shorter_cache_gives_the_same_tokens(model: GPT) -> None:
    rows = [[TokenSequence([1, 2, 3], max_tokens=9)] for _ in range(2)]
    list(generate_sequences(model, rows[0], SamplingParams(greedy=True), batch_size=1))
    list(generate_sequences(model, rows[1], SamplingParams(greedy=True), batch_size=1, max_len=12))
    assert rows[0][0].tokens == rows[1][0].tokens


def test_prefill_passes_are_limited_in_size(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, passes = [[i] * (1 + (5 * i) % 23) for i in range(12)], []
    hook = model.wte.register_forward_hook(
        lambda module, args, out: passes.append(tuple(args[0].shape))
    )
    whole = Engine(model, 12).prefill(range(12), prompts)
    assert passes == [(12, max(map(len, prompts)))]
    monkeypatch.setattr(module, "PREFILL_TOKENS", 40)
    torch.testing.assert_close(
        Engine(model, 12).prefill(range(12), prompts), whole, atol=1e-4, rtol=1e-4
    )
    hook.remove()
    assert len(passes) > 3
    assert all(rows * longest <= 40 for rows, longest in passes[1:])


def test_cache_larger_than_memory_is_rejected() -> None:
    require_memory(1, 1, 1, torch.device("cpu"))
    with pytest.raises(RunError, match=r"the cache of 4,000 sequences of 2,048 tokens needs 1 EB"):
        require_memory(10**18, 4000, 2048, torch.device("cpu"))


def test_tokens_are_the_same_without_the_kernel(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine without a compiler: rows of different lengths, past the end of their contexts."""
    prompts = [[(3 * i + j) % 300 for j in range(1 + 4 * i)] for i in range(6)]
    made = []
    for _ in range(2):
        rows = [TokenSequence(prompt, max_tokens=30) for prompt in prompts]
        list(generate_sequences(model, rows, SamplingParams(greedy=True), batch_size=4))
        made.append([row.tokens for row in rows])
        monkeypatch.setattr(decode_kernel, "library", lambda name: None)
    assert Engine(model, 1)._step is None
    assert made[0] == made[1]
