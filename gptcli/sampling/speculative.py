"""Speculative decoding: a small draft model proposes tokens that the large model verifies.

The large model reads the draft in one pass and keeps the tokens it agrees with (Leviathan et al.
2023; Chen et al. 2023). The text follows the large model's sampling distribution exactly; with
greedy decoding it is the same text.

A drafted token x, sampled from q, is accepted with probability min(1, p(x) / q(x)). The first
rejected token is sampled again from max(0, p - q), normalized. If all are accepted, the large model
adds one more. Windows slide as in `gptcli.sampling.generate`.

Shapes: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptcli.errors import InputError, UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling.engine import Engine
from gptcli.sampling.generate import TokenSequence
from gptcli.sampling.params import SamplingParams, draw, filter_logits, greedy_tokens

DRAFT_TOKENS = 4  # proposed at a time


def generate_speculatively(
    model: GPT,
    draft: GPT,
    sequence: TokenSequence,
    params: SamplingParams,
    *,
    draft_tokens: int = DRAFT_TOKENS,
    log_probs: bool = False,
) -> float:
    """Finish `sequence` with `model`, helped by `draft`; return the share of accepted tokens.

    Raises UsageError for a repetition penalty, which changes with each token, InputError if the
    vocabularies differ, and RunError if the logits of either model are not numbers.
    """
    if params.repetition_penalty != 1:
        raise UsageError(
            "a repetition penalty is not supported with a draft model", hint="leave out one of them"
        )
    if draft.config.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the draft model's vocabulary has {draft.config.vocab_size:,} tokens, "
            f"and the model's has {model.config.vocab_size:,}"
        )
    target, proposer = _WindowReader(model), _WindowReader(draft)
    n_ctx = model.config.n_ctx
    window, drafted_total, accepted_total = sequence.prompt[-n_ctx:], 0, 0
    while sequence.finish_reason is None:
        if len(window) > n_ctx:
            window = window[-max(1, n_ctx // 2) :]
            target.reset()
            proposer.reset()
        count = min(
            draft_tokens, n_ctx - len(window), sequence.max_tokens - len(sequence.tokens) - 1
        )
        drafted: list[int] = []
        q: list[torch.Tensor] = []
        for _ in range(count):
            q.append(_distribution(proposer.logits([*window, *drafted], 1), params)[0])
            drafted.append(_sample(q[-1], sequence, params))
        logits_TV = target.logits([*window, *drafted], count + 1)
        tokens = _verify(_distribution(logits_TV, params), q, drafted, sequence, params)
        drafted_total, accepted_total = drafted_total + count, accepted_total + len(tokens) - 1
        log_probs_TV = logits_TV.float().log_softmax(dim=-1) if log_probs else None
        for position, token in enumerate(tokens):
            sequence.append(
                token, None if log_probs_TV is None else float(log_probs_TV[position, token])
            )
            if sequence.finish_reason is not None:
                break
        window = [*window, *tokens]
        # Rejected tokens leave the caches.
        target.truncate(len(window) - 1)
        proposer.truncate(len(window) - 1)
    return accepted_total / drafted_total if drafted_total else 0.0


def _verify(
    p_TV: torch.Tensor,
    q: Sequence[torch.Tensor],
    drafted: list[int],
    sequence: TokenSequence,
    params: SamplingParams,
) -> list[int]:
    """Return the accepted tokens of the draft, followed by one of the large model."""
    for position, (q_V, token) in enumerate(zip(q, drafted, strict=True)):
        if params.greedy:
            if int(p_TV[position].argmax()) != token:
                return [*drafted[:position], int(p_TV[position].argmax())]
        elif float(_uniform(sequence)) * float(q_V[token]) >= float(p_TV[position, token]):
            residual_V = (p_TV[position] - q_V).clamp(min=0)
            return [*drafted[:position], int(draw(residual_V.log()[None], _uniform(sequence)))]
    return [*drafted, _sample(p_TV[-1], sequence, params)]


def _distribution(logits_TV: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Return the probabilities to sample from, (T, V) in fp64; only the argmax counts if greedy."""
    greedy_tokens(logits_TV)  # raises if they are not numbers
    logits_TV = logits_TV if params.greedy else filter_logits(logits_TV, params)
    return logits_TV.double().softmax(dim=-1)


def _sample(p_V: torch.Tensor, sequence: TokenSequence, params: SamplingParams) -> int:
    return int(p_V.argmax()) if params.greedy else int(draw(p_V.log()[None], _uniform(sequence)))


def _uniform(sequence: TokenSequence) -> torch.Tensor:
    return torch.rand(1, generator=sequence.generator, dtype=torch.float64)


class _WindowReader:
    """A model over a window that grows and is truncated; reads each token only once."""

    def __init__(self, model: GPT) -> None:
        self.engine, self.n_ctx = Engine(model, 1, compiled=False), model.config.n_ctx
        self.first = 0  # index in the window of the first cached token

    def logits(self, tokens: list[int], count: int) -> torch.Tensor:
        """Return the logits after each of the last `count` tokens, (count, V).

        If there are more than n_ctx tokens, their second half is read.
        """
        if len(tokens) - self.first > self.n_ctx:
            self.reset()
            self.first = len(tokens) - max(1, self.n_ctx // 2)
        unread = tokens[self.first + self.engine.lengths[0] :]
        return self.engine.append([unread], last=count)[0]

    def truncate(self, length: int) -> None:
        """Drop everything after the first `length` tokens of the window from the cache."""
        self.engine.lengths = [max(0, min(self.engine.lengths[0], length - self.first))]

    def reset(self) -> None:
        """Empty the cache for a window that begins elsewhere."""
        self.engine.lengths, self.first = [0], 0
