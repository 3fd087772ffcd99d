"""Running text as requests: windows of a whole text, and how many units its original has.

The text is de-tokenised first, and begins with end-of-text, so that its first token is scored too.
Perplexity is per canonical unit of the file as published: a word, or a newline (GPT-2, section
3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gptcli.evals.item import Item
from gptcli.evals.loss import windows
from gptcli.evals.requests import Request
from gptcli.evals.task import Task
from gptcli.text.detokenize import DETOKENIZERS
from gptcli.tokenizer.tokenizer import Tokenizer


def text_requests(
    task: Task, items: Sequence[Item], tokenizer: Tokenizer, n_ctx: int, stride: int
) -> tuple[list[Request], dict[str, int]]:
    """Return a request for each window of the items' texts, `stride` tokens apart, and the units,
    bytes and characters of all texts."""
    detokenizer = DETOKENIZERS[task.detokenize] if task.detokenize else None
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    requests: list[Request] = []
    units = {"units": 0, "bytes": 0, "characters": 0}
    for item in items:
        text = item.target
        units["units"] += (
            detokenizer.units(text) if detokenizer else len(text.split()) + text.count("\n")
        )
        units["bytes"] += len(text.encode("utf-8"))
        units["characters"] += len(text)
        tokens = np.array(
            start + tokenizer.encode(detokenizer.detokenize(text) if detokenizer else text),
            dtype=np.int32,
        )
        for number, (begin, stop, count) in enumerate(windows(len(tokens), n_ctx, stride)):
            pair = (tokens[begin : stop - count], tokens[stop - count : stop])
            window = Item(id=f"{item.id}/{number}", prompt="")
            requests.append(
                Request(len(requests), window, [pair], [], shots=0, truncated=False, size=stop - begin - 1)
            )  # fmt: skip
    return requests, units
