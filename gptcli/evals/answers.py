"""Free-form answers: written by beam search or greedily until a stop string, end-of-text or the
task's length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptcli.evals.requests import Request
from gptcli.evals.task import Task
from gptcli.model.transformer import GPT
from gptcli.sampling.beam import generate_by_beam_search
from gptcli.sampling.generate import TextSequence, generate_sequences, sample_generator
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.streaming import Completion
from gptcli.tokenizer.tokenizer import Tokenizer


def write_answers(
    model: GPT, tokenizer: Tokenizer, requests: Sequence[Request], task: Task
) -> Iterator[Completion]:
    """Generate the answer to each request, in their order, without the stop string.

    The random numbers depend on the item's index alone.
    """
    prompts = [request.pairs[0][0].tolist() for request in requests]
    if task.beam > 1 and not task.top_k:
        return (
            generate_by_beam_search(
                model,
                tokenizer,
                prompt,
                max_tokens=task.max_tokens,
                width=task.beam,
                stops=task.stop,
            )
            for prompt in prompts
        )
    params = SamplingParams(top_k=task.top_k) if task.top_k else SamplingParams(greedy=True)
    rows = [
        TextSequence(
            tokenizer,
            prompt,
            max_tokens=task.max_tokens,
            stops=task.stop,
            generator=sample_generator(0, request.index),
        )
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    for _ in generate_sequences(
        model, rows, params, batch_size=len(rows), log_probs=True, compiled=False
    ):
        pass
    return (row.completion() for row in rows)
