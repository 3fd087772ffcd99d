"""Beam search: the likeliest continuations by the model's own probabilities, a few hypotheses at a
time.

GPT-3 (section 2.4) uses width 4 and a length penalty of 0.6, which is Wu et al.'s (2016): a score
is the log-probability divided by ((5 + length) / 6)^0.6. The search is transformers': of the
2·width best extensions, the first `width` may end and compete by score, the best that go on are the
next hypotheses; it stops when the best of them could not displace the worst of `width` ended ones
at its length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptcli.errors import UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling.engine import Engine

WIDTH, ALPHA = 4, 0.6  # GPT-3, section 2.4


def length_penalty(length: int, alpha: float = ALPHA) -> float:
    """What a log-probability is divided by: ((5 + length) / 6)^alpha (Wu et al. 2016, equation
    14).
    """
    return float(((5 + length) / 6) ** alpha)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One continuation."""

    tokens: list[int]
    """Without the end-of-text that ended it."""
    log_probs: list[float]
    """Of each token, in nats; of the end-of-text too, last, where it ended so."""
    score: float
    finish_reason: str
    """"stop" or "length"."""


@torch.inference_mode()
def beam_search(
    model: GPT,
    prompt: Sequence[int],
    *,
    max_tokens: int,
    width: int = WIDTH,
    stop_id: int | None = None,
    ended: Callable[[Sequence[int]], bool] = lambda tokens: False,
    penalty: Callable[[int], float] = length_penalty,
) -> list[Hypothesis]:
    """The best `width` continuations of `prompt` that were found, best first; lengths count the
    end-of-text.

    A hypothesis ends with `stop_id`, or, keeping its last token, where `ended` says so of its
    tokens.

    The context is not outgrown: a prompt longer than n_ctx is read from its last n_ctx tokens, and
    where the context is full every hypothesis ends. Raises UsageError for a width or length below
    1.
    """
    if width < 1 or max_tokens < 1:
        raise UsageError(
            f"beam search of width {width} over {max_tokens} tokens", hint="both are at least 1"
        )
    window = list(prompt)[-model.config.n_ctx :]
    longest = min(max_tokens, model.config.n_ctx - len(window) + 1)
    engine = Engine(model, 1, max_len=len(window) + longest - 1, compiled=False)
    logits_BV = engine.prefill([0], [window])
    running: list[tuple[float, list[int], list[float]]] = [(0.0, [], [])]
    finished: list[Hypothesis] = []
    for length in range(1, longest + 1):
        log_probs_BV = logits_BV.float().log_softmax(dim=-1)
        V = log_probs_BV.shape[1]
        total_BV = log_probs_BV + torch.tensor(
            [[total] for total, _, _ in running], device=log_probs_BV.device
        )
        best = total_BV.flatten().topk(min(2 * width, total_BV.numel()))
        following: list[tuple[float, list[int], list[float]]] = []
        parents: list[int] = []
        for rank, (total, place) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            row, token = divmod(place, V)
            _, tokens, log_probs = running[row]
            grown = [*log_probs, float(log_probs_BV[row, token])]
            spelt = tokens if token == stop_id else [*tokens, token]
            stopped = token == stop_id or ended(spelt)
            if stopped or length == longest:
                if rank < width:
                    finished.append(
                        Hypothesis(
                            spelt, grown, total / penalty(length), "stop" if stopped else "length"
                        )
                    )
            elif len(following) < width:
                following.append((total, spelt, grown))
                parents.append(row)
        finished = sorted(finished, key=lambda hypothesis: -hypothesis.score)[:width]
        if not following or (
            len(finished) == width and following[0][0] / penalty(length) <= finished[-1].score
        ):
            break
        running = following
        engine.reorder(parents)
        logits_BV = engine.decode([tokens[-1] for _, tokens, _ in running])
    return finished
