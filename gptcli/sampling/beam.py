"""Beam search: the most probable continuations, with a fixed number of hypotheses at a time.

GPT-3 (section 2.4) uses width 4 and a length penalty with alpha = 0.6, as Wu et al. (2016): the
score is the log-probability divided by ((5 + length) / 6)^0.6. The search is the one of
transformers: among the 2·width best extensions, the first `width` may end and compete by score, and
the best of the others are the next hypotheses. It stops when the best of these could not displace
the worst of `width` finished hypotheses at its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptcli.errors import UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling.engine import Engine
from gptcli.sampling.params import greedy_tokens
from gptcli.sampling.streaming import Completion, FinishReason, TextStream
from gptcli.tokenizer.tokenizer import Tokenizer

WIDTH, ALPHA = 4, 0.6  # GPT-3, section 2.4


def length_penalty(length: int, alpha: float = ALPHA) -> float:
    """Return the divisor of a log-probability, ((5 + length) / 6)^alpha.

    Source: Wu et al. 2016, equation 14.
    """
    return float(((5 + length) / 6) ** alpha)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One continuation found by beam search."""

    tokens: list[int]
    """Tokens, without a final end-of-text."""
    log_probs: list[float]
    """Log-probability of each token in nats, including a final end-of-text."""
    score: float
    """Sum of `log_probs` divided by the length penalty."""
    finish_reason: FinishReason
    """"stop" or "length"."""


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    width: int = WIDTH,
    stop_id: int | None = None,
    is_finished: Callable[[Sequence[int]], bool] = lambda tokens: False,
    penalty: Callable[[int], float] = length_penalty,
) -> list[Hypothesis]:
    """Return the best `width` continuations of `prompt` that were found, best first.

    A hypothesis ends with `stop_id`, or with the token after which `is_finished` is true of its
    tokens. Lengths count the end-of-text. Of a prompt longer than n_ctx, the last n_ctx tokens are
    read, and every hypothesis ends when the context is full. Raises UsageError if `width` or
    `max_tokens` is below 1, and RunError if the logits are not numbers.
    """
    if width < 1 or max_tokens < 1:
        raise UsageError(
            f"beam search of width {width} over {max_tokens} tokens is not possible",
            hint="use at least 1 for both",
        )
    window = list(prompt)[-model.config.n_ctx :]
    max_length = min(max_tokens, model.config.n_ctx - len(window) + 1)
    engine = Engine(model, 1, max_len=len(window) + max_length - 1, compiled=False)
    logits_BV = engine.prefill([0], [window])
    running: list[tuple[float, list[int], list[float]]] = [(0.0, [], [])]
    finished: list[Hypothesis] = []
    for length in range(1, max_length + 1):
        greedy_tokens(logits_BV)  # raises if they are not numbers
        log_probs_BV = logits_BV.float().log_softmax(dim=-1)
        V = log_probs_BV.shape[1]
        total_BV = log_probs_BV + torch.tensor(
            [[total] for total, _, _ in running], device=log_probs_BV.device
        )
        best = total_BV.flatten().topk(min(2 * width, total_BV.numel()))
        next_hypotheses: list[tuple[float, list[int], list[float]]] = []
        parents: list[int] = []
        for rank, (total, index) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            row, token = divmod(index, V)
            _, parent_tokens, parent_log_probs = running[row]
            log_probs = [*parent_log_probs, float(log_probs_BV[row, token])]
            tokens = parent_tokens if token == stop_id else [*parent_tokens, token]
            stopped = token == stop_id or is_finished(tokens)
            if stopped or length == max_length:
                if rank < width:
                    reason: FinishReason = "stop" if stopped else "length"
                    finished.append(Hypothesis(tokens, log_probs, total / penalty(length), reason))
            elif len(next_hypotheses) < width:
                next_hypotheses.append((total, tokens, log_probs))
                parents.append(row)
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:width]
        if not next_hypotheses or (
            len(finished) == width and next_hypotheses[0][0] / penalty(length) <= finished[-1].score
        ):
            break
        running = next_hypotheses
        engine.reorder(parents)
        logits_BV = engine.decode([tokens[-1] for _, tokens, _ in running])
    return finished


def generate_by_beam_search(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    width: int = WIDTH,
    stops: Sequence[str] = (),
) -> Completion:
    """Return the best continuation, which ends before the first of the strings `stops`."""

    def is_finished(tokens: Sequence[int]) -> bool:
        return any(stop in tokenizer.decode(tokens) for stop in stops)

    begin = time.perf_counter()
    best = beam_search(
        model,
        prompt,
        max_tokens=max_tokens,
        width=width,
        stop_id=tokenizer.eot_id,
        is_finished=is_finished,
    )[0]
    stream = TextStream(stops)
    text = stream.push(tokenizer.decode_bytes(best.tokens)) + stream.end()
    return Completion(
        text,
        best.tokens,
        best.log_probs[: len(best.tokens)],
        best.finish_reason,
        time.perf_counter() - begin,
    )
