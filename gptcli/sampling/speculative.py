"""Speculative decoding (Leviathan et al. 2023; Chen et al. 2023): a small model drafts, the large
one reads the draft in one pass and keeps what it agrees with. The text follows the large model's
distribution under the rules exactly; greedily, it is the same text.

A drafted token x, drawn from q, is kept with probability min(1, p(x) / q(x)); the first that is not
is drawn again from what p has beyond q; where all are kept, the large model gives one more. Windows
slide as in `decode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptcli.errors import InputError, UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling.decode import Row
from gptcli.sampling.engine import Engine
from gptcli.sampling.params import Rules, draw, filtered

DRAFT = 4  # tokens drafted at a time


def speculate(
    model: GPT, draft: GPT, row: Row, rules: Rules, *, ahead: int = DRAFT, log_probs: bool = False
) -> float:
    """Finish `row` with `model`, helped by `draft`; returns the share of drafted tokens that were
    kept.

    Raises UsageError with a repetition penalty, which changes with each token, and InputError where
    the vocabularies differ.
    """
    if rules.repetition_penalty != 1:
        raise UsageError(
            "a repetition penalty and a draft model contradict each other",
            hint="leave out one of them",
        )
    if draft.config.vocab_size != model.config.vocab_size:
        raise InputError(
            f"the draft model has {draft.config.vocab_size:,} tokens and the model {model.config.vocab_size:,}"
        )
    large, small = _Reader(model), _Reader(draft)
    window, n_ctx, made, kept = row.prompt[-model.config.n_ctx :], model.config.n_ctx, 0, 0
    while row.finish_reason is None:
        if len(window) > n_ctx:
            window = window[-max(1, n_ctx // 2) :]
            large.forget()
            small.forget()
        count = min(ahead, n_ctx - len(window), row.max_tokens - len(row.tokens) - 1)
        drafted: list[int] = []
        q: list[torch.Tensor] = []
        for _ in range(count):
            q.append(_distribution(small.after([*window, *drafted], 1), rules)[0])
            drafted.append(_pick(q[-1], row, rules))
        logits_TV = large.after([*window, *drafted], count + 1)
        tokens = _judge(_distribution(logits_TV, rules), q, drafted, row, rules)
        made, kept = made + count, kept + len(tokens) - 1
        logs_TV = logits_TV.float().log_softmax(dim=-1) if log_probs else None
        for place, token in enumerate(tokens):
            row.take(token, None if logs_TV is None else float(logs_TV[place, token]))
            if row.finish_reason is not None:
                break
        window = [*window, *tokens]
        large.cut(len(window) - 1)  # what was drafted and not kept is forgotten
        small.cut(len(window) - 1)
    return kept / made if made else 0.0


def _judge(
    p_TV: torch.Tensor, q: Sequence[torch.Tensor], drafted: list[int], row: Row, rules: Rules
) -> list[int]:
    """The drafted tokens that are kept, and one of the large model's own."""
    for place, (q_V, token) in enumerate(zip(q, drafted, strict=True)):
        if rules.greedy:
            if int(p_TV[place].argmax()) != token:
                return [*drafted[:place], int(p_TV[place].argmax())]
        elif float(_uniform(row)) * float(q_V[token]) >= float(p_TV[place, token]):
            beyond_V = (p_TV[place] - q_V).clamp(min=0)
            return [*drafted[:place], int(draw(beyond_V.log()[None], _uniform(row)))]
    return [*drafted, _pick(p_TV[-1], row, rules)]


def _distribution(logits_TV: torch.Tensor, rules: Rules) -> torch.Tensor:
    """What the rules draw from, (T, V) in fp64; greedily, any that has the same likeliest token."""
    return (logits_TV.double() if rules.greedy else filtered(logits_TV, rules).double()).softmax(
        dim=-1
    )


def _pick(p_V: torch.Tensor, row: Row, rules: Rules) -> int:
    return int(p_V.argmax()) if rules.greedy else int(draw(p_V.log()[None], _uniform(row)))


def _uniform(row: Row) -> torch.Tensor:
    return torch.rand(1, generator=row.generator, dtype=torch.float64)


class _Reader:
    """One model over a window that grows and loses its end: reads only what it has not read yet."""

    def __init__(self, model: GPT) -> None:
        self.engine, self.n_ctx, self.first = (
            Engine(model, 1, compiled=False),
            model.config.n_ctx,
            0,
        )

    def after(self, tokens: list[int], count: int) -> torch.Tensor:
        """Logits after each of the last `count` tokens, (count, V). More than n_ctx of them are
        read from their last half.
        """
        if len(tokens) - self.first > self.n_ctx:
            self.forget()
            self.first = len(tokens) - max(1, self.n_ctx // 2)
        unread = tokens[self.first + self.engine.lengths[0] :]
        return self.engine.append([unread], last=count)[0]

    def cut(self, length: int) -> None:
        """What lies beyond the first `length` tokens of the window was not kept."""
        self.engine.lengths = [max(0, min(self.engine.lengths[0], length - self.first))]

    def forget(self) -> None:
        """The window begins elsewhere."""
        self.engine.lengths, self.first = [0], 0
