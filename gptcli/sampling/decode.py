"""The decode loop: prompts read in one pass, then a token a row and pass; a row that is done makes
room for the next prompt.

Positions are learned, so a cache cannot roll: the vectors of a token hold the position it was read
at. Where the context is full, the last n_ctx // 2 tokens are read again from position 0, and
decoding goes on. A prompt longer than n_ctx is read from its last n_ctx tokens.

Chance belongs to the row: each has a generator of its own and takes one number from it for each
token, so that what shares its batch changes nothing in fp32. In bf16 a row that shares its batch
with others may be rounded otherwise, and then the text goes another way; so may, seldom, that of
int8 weights.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch

from gptcli.errors import UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling.engine import Engine
from gptcli.sampling.params import Rules, next_tokens, penalised


class Row:
    """One sequence in the making: a prompt of at least one token, and what has come after it."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        generator: torch.Generator | None = None,
        stop_id: int | None = None,
    ) -> None:
        if max_tokens < 1:
            raise UsageError(f"max-tokens is {max_tokens}", hint="at least 1")
        self.prompt = list(prompt)
        self.max_tokens = max_tokens
        # greedy rows take nothing from it
        self.generator = generator or torch.Generator().manual_seed(0)
        self.stop_id = stop_id
        self.tokens: list[int] = []
        """Without the `stop_id` that ended them."""
        self.log_probs: list[float] = []
        """Of each of `tokens` under the model itself, before any rule, in nats; filled where they
        are asked for.
        """
        self.finish_reason: str | None = None
        """None while it goes on; "stop" where the text ended, "length" where `max_tokens` did."""

    def take(self, token: int, log_prob: float | None = None) -> None:
        """The next token of this row."""
        if token == self.stop_id:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        if log_prob is not None:
            self.log_probs.append(log_prob)
        if len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


def decode(
    model: GPT,
    rows: Iterable[Row],
    rules: Rules,
    *,
    batch: int,
    log_probs: bool = False,
    room: int | None = None,
    compiled: bool | None = None,
    engine: Engine | None = None,
) -> Iterator[Row]:
    """Finish every row, at most `batch` at once; yields each as it is done. `rows` is read only as
    there is room for more.

    Each row is told its tokens as they come, through `Row.take`. `room` is the longest prompt with
    its tokens, where that is known: the cache need be no longer. `compiled` as in `Engine`. An
    `engine` of `batch` rows that was compiled before can be used again instead. Raises RunError
    where the cache cannot fit into memory.
    """
    n_ctx, source = model.config.n_ctx, iter(rows)
    work: list[Row | None] = list(itertools.islice(source, batch))
    if not work:
        return
    engine = engine or Engine(model, len(work), max_len=room, compiled=compiled)
    windows = [row.prompt[-n_ctx:] for row in work if row]
    fresh = set(range(len(work)))  # to be read from position 0; the others go on
    for _ in range(engine.rows - len(work)):
        work.append(None)
        windows.append([0])
    while any(work):
        for slot, window in enumerate(windows):
            if len(window) > n_ctx:
                windows[slot] = window[-max(1, n_ctx // 2) :]
                fresh.add(slot)
        slots = sorted(fresh) or [slot for slot, row in enumerate(work) if row]
        if fresh:
            logits_BV = engine.prefill(slots, [windows[slot] for slot in slots])
        else:
            for slot, row in enumerate(work):
                if row is None:
                    engine.lengths[slot] = 0  # an empty place would grow past the cache
            logits_BV = engine.decode([window[-1] for window in windows])
            if len(slots) < engine.rows:
                logits_BV = logits_BV[slots]
        fresh.clear()
        busy = [row for slot in slots if (row := work[slot])]
        for slot, row, (token, log_prob) in zip(
            slots, busy, choose(logits_BV, rules, busy, log_probs), strict=True
        ):
            row.take(token, log_prob)
            windows[slot].append(token)
            if row.finish_reason is None:
                continue
            yield row
            work[slot] = following = next(source, None)
            # an empty place reads anything
            windows[slot] = following.prompt[-n_ctx:] if following else [0]
            if following:
                fresh.add(slot)
        if any(work) and not all(work) and not engine.fixed:
            kept = [slot for slot, row in enumerate(work) if row]
            engine.reorder(kept)
            work, windows = [work[slot] for slot in kept], [windows[slot] for slot in kept]
            fresh = {kept.index(slot) for slot in fresh}


@torch.inference_mode()
def choose(
    logits_BV: torch.Tensor, rules: Rules, rows: Sequence[Row], log_probs: bool
) -> list[tuple[int, float | None]]:
    """The next token of each row, and its log-probability under the model where asked for."""
    ruled_BV = logits_BV
    if rules.repetition_penalty != 1:
        ruled_BV = penalised(
            logits_BV, [[*row.prompt, *row.tokens] for row in rows], rules.repetition_penalty
        )
    uniform_B = torch.empty(0)
    if not rules.greedy:
        uniform_B = torch.cat(
            [torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows]
        )
    token_B = next_tokens(ruled_BV, rules, uniform_B)
    if not log_probs:
        return [(token, None) for token in token_B.tolist()]
    chosen_B = logits_BV.gather(1, token_B[:, None])[:, 0].float() - logits_BV.float().logsumexp(
        dim=-1
    )
    return list(zip(token_B.tolist(), chosen_B.tolist(), strict=True))


def sample_generator(seed: int, number: int, prompt: int = 0) -> torch.Generator:
    """The chance of sample `number` (from 0) of prompt `prompt` (from 0) under `seed`: its own,
    however many there are.
    """
    key = hashlib.sha256(
        f"{seed}/sample/{number}{f'/prompt/{prompt}' if prompt else ''}".encode()
    ).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
