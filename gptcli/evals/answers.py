"""Free-form answers: written by beam search or greedily until a stop string, end-of-text or the
task's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptcli.evals.requests import Request
from gptcli.evals.task import Task
from gptcli.model.transformer import GPT
from gptcli.sampling.beam import beam_search
from gptcli.sampling.decode import decode, sample_generator
from gptcli.sampling.params import Rules
from gptcli.sampling.streaming import Completion, TextRow, TextStream
from gptcli.tokenizer.tokenizer import Tokenizer


def write_answers(
    model: GPT, tokenizer: Tokenizer, requests: Sequence[Request], task: Task
) -> Iterator[Completion]:
    """Generate the answer to each request, in their order, without the stop string.

    The random numbers depend on the item's index alone.
    """
    prompts = [request.pairs[0][0].tolist() for request in requests]
    if task.beam > 1 and not task.top_k:
        return (_search(model, tokenizer, prompt, task) for prompt in prompts)
    rules = Rules(top_k=task.top_k) if task.top_k else Rules(greedy=True)
    rows = [
        TextRow(
            tokenizer,
            prompt,
            max_tokens=task.max_tokens,
            stops=task.stop,
            generator=sample_generator(0, request.index),
        )
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    for _ in decode(model, rows, rules, batch=len(rows), log_probs=True, compiled=False):
        pass
    return (row.completion() for row in rows)


def _search(model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], task: Task) -> Completion:
    def ended(tokens: Sequence[int]) -> bool:
        text = tokenizer.decode(tokens)
        return any(stop in text for stop in task.stop)

    best = beam_search(
        model,
        prompt,
        max_tokens=task.max_tokens,
        width=task.beam,
        stop_id=tokenizer.eot_id,
        ended=ended,
    )[0]
    stream = TextStream(task.stop)
    text = stream.push(tokenizer.decode_bytes(best.tokens)) + stream.end()
    return Completion(
        text, best.tokens, best.log_probs[: len(best.tokens)], best.finish_reason, 0.0
    )
