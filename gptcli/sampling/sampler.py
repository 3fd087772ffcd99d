"""Samples of one prompt: beam search, best of N, speculative decoding or plain sampling.

Beam search keeps a fixed number of the most probable continuations. GPT-3 (section 2.4) uses width
4 and a length penalty with alpha = 0.6, as Wu et al. (2016): the score is the log-probability
divided by ((5 + length) / 6)^0.6. The search is the one of transformers: among the 2·width best
extensions, the first `width` may end and compete by score, and the best of the others are the next
hypotheses. It stops when the best of these could not displace the worst of `width` finished
hypotheses at its length.

In speculative decoding, a small draft model proposes tokens, of which the large model, reading them
in one pass, keeps those it agrees with (Leviathan et al. 2023; Chen et al. 2023). A drafted token
x, sampled from q, is accepted with probability min(1, p(x) / q(x)). The first rejected token is
sampled again from max(0, p - q), normalized. If all are accepted, the large model adds one more.
The text follows the large model's sampling distribution exactly; with greedy decoding it is the
same text.

Shapes: T positions, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.errors import InputError, UsageError
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.numbers import counted
from gptcli.sampling.defaults import MAX_TOKENS
from gptcli.sampling.engine import Engine
from gptcli.sampling.generate import (
    Completion,
    FinishReason,
    TextSequence,
    TextStream,
    TokenSequence,
    encode_prompt,
    generate_sequences,
    sample_generator,
)
from gptcli.sampling.load import Loaded, PrecisionChoice, load
from gptcli.sampling.params import SamplingParams, draw, filter_logits, greedy_tokens
from gptcli.tokenizer.tokenizer import Tokenizer

SEPARATOR = "-" * 15
MAX_PARALLEL_SAMPLES = 16  # of one prompt
WIDTH, ALPHA = 4, 0.6  # of a beam search: GPT-3, section 2.4
DRAFT_TOKENS = 4  # proposed at a time in speculative decoding


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Loaded model with the options to sample from it."""

    loaded: Loaded
    """Model to sample from."""
    params: SamplingParams
    """Sampling parameters."""
    draft: Loaded | None = None
    """Smaller model for speculative decoding."""
    max_tokens: int = MAX_TOKENS
    """Maximum length of a sample, in tokens."""
    num_samples: int = 1
    """Number of samples of a prompt."""
    stops: Sequence[str] = ()
    """Texts that end a sample."""
    beam: int | None = None
    """Width of a beam search; None to sample."""
    best_of: int | None = None
    """Number of samples of which only the one with the highest mean log-probability is kept."""

    def sample(
        self, text: str, *, seed: int, on_text: Callable[[str], None] | None = None
    ) -> list[Completion]:
        """Generate the samples of one prompt; `on_text` receives the prompt and their text.

        The first sample is streamed, the others follow when they are complete, each after a line
        of dashes. Without `on_text`, log-probabilities are computed.
        """
        show = on_text or _ignore
        tokens = encode_prompt(self.loaded.tokenizer, text)
        show(text)
        try:
            if self.beam is not None:
                generated = generate_by_beam_search(
                    self.loaded.model,
                    self.loaded.tokenizer,
                    tokens,
                    max_tokens=self.max_tokens,
                    width=self.beam,
                )
                show(generated.text)
                return [generated]
            sequences = [
                TextSequence(
                    self.loaded.tokenizer,
                    tokens,
                    max_tokens=self.max_tokens,
                    generator=sample_generator(seed, number),
                    stops=self.stops,
                    on_text=_ignore if number or self.best_of else show,
                )
                for number in range(self.best_of or self.num_samples)
            ]
            n_shown = 1  # the first one is streamed
            for _ in self._generate(sequences, log_probs=on_text is None or bool(self.best_of)):
                while (
                    not self.best_of
                    and n_shown < len(sequences)
                    and all(one.finish_reason for one in sequences[: n_shown + 1])
                ):
                    show(f"\n{SEPARATOR}\n{text}{sequences[n_shown].completion().text}")
                    n_shown += 1
            completions = [sequence.completion() for sequence in sequences]
            if self.best_of:
                completions = [max(completions, key=lambda one: one.mean_log_prob)]
                show(completions[0].text)
            return completions
        finally:  # after an interrupt too, the next output begins on a new line
            show("\n")

    def report(
        self, text: str, completions: list[Completion], settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the report of `gpt sample --json` on the samples of a prompt.

        `settings` are the values of stop, seed and quantize.
        """
        known = {"max_tokens": self.max_tokens, "beam": self.beam, "best_of": self.best_of}
        known |= settings
        names = ("max_tokens", "stop", "seed", "beam", "best_of", "quantize")
        return {
            "step": self.loaded.source.step,
            "prompt": text,
            "prompt_tokens": encode_prompt(self.loaded.tokenizer, text),
            **asdict(self.params),
            **{name: known[name] for name in names},
            "device": self.loaded.device.type,
            "precision": self.loaded.precision,
            "samples": [one.as_dict() for one in completions],
        }

    def _generate(self, sequences: list[TextSequence], *, log_probs: bool) -> Iterable[object]:
        """Yield whenever a sequence is complete."""
        if self.draft is not None:
            return (
                generate_speculatively(
                    self.loaded.model, self.draft.model, one, self.params, log_probs=log_probs
                )
                for one in sequences
            )
        return generate_sequences(
            self.loaded.model,
            sequences,
            self.params,
            batch_size=min(len(sequences), MAX_PARALLEL_SAMPLES),
            log_probs=log_probs,
            max_len=len(sequences[0].prompt) + self.max_tokens,
        )


def load_draft(
    folder: Path,
    loaded: Loaded,
    *,
    device: str,
    precision: PrecisionChoice,
    events: Events = SILENT,
) -> Loaded:
    """Load a draft model for `loaded`. Raises InputError if their tokenizers differ."""
    draft = load(folder, device=device, precision=precision, events=events)
    if draft.tokenizer.sha256 != loaded.tokenizer.sha256:
        raise InputError(
            "the draft run has another tokenizer",
            where=folder,
            hint="use a draft run that was trained with the same tokenizer",
        )
    return draft


def _ignore(text: str) -> None:
    """Ignore text that is shown later, or not at all."""


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
            f"beam search of width {width} over {counted(max_tokens, 'token')} is not possible",
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
            f"the draft model's vocabulary has {counted(draft.config.vocab_size, 'token')}, "
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
