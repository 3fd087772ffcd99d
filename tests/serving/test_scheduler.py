"""The decode thread: who shares a batch has no effect, a queue is limited, clients that are gone free
their rows, a failed pass ends only the requests in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import RunError
from gptcli.sampling.generate import generate, sample_generator
from gptcli.sampling.load import Loaded
from gptcli.sampling.params import SamplingParams
from gptcli.serving.requests import ServedModel
from gptcli.serving.scheduler import Job, QueueFullError, RowOptions, SampleRow, Scheduler


@pytest.fixture
def one(served: list[ServedModel]) -> Loaded:
    return served[0].loaded


def job(one: Loaded, *prompts: list[int], max_tokens: int = 8, **options: Any) -> Job:
    """Return a request for a sample of each prompt; sample i is that of seed i."""
    params = options.pop("params", SamplingParams())
    rows = [
        SampleRow(
            one.tokenizer,
            prompt,
            RowOptions(params=params, max_tokens=max_tokens, **options),
            generator=sample_generator(number, 0),
        )
        for number, prompt in enumerate(prompts)
    ]
    return Job(rows, streams=False)


def step(scheduler: Scheduler) -> None:
    """Do what the thread does in one round; the scheduler is not started."""
    loop, queue = scheduler.loops[0], scheduler.queues[0]
    scheduler._admit(loop, queue)
    if loop.running:
        scheduler._step(loop, queue)


def in_a_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in an event loop, which a request needs."""

    def run(one: Loaded) -> None:
        asyncio.run(test(one))

    return run


@settings(max_examples=12)
@given(data=st.data())
def test_what_shares_the_batch_has_no_effect(
    served: list[ServedModel], data: st.DataObject
) -> None:
    """Requests of drawn lengths and parameters arrive at drawn passes; some hang up. Every other one
    gets the text that it would get alone.
    """
    one = served[0].loaded
    kinds = [SamplingParams(), SamplingParams(greedy=True), SamplingParams(top_k=3, temperature=2)]

    async def play() -> None:
        scheduler = Scheduler([one], batch_size=3)
        jobs: list[Job] = []
        for _ in range(data.draw(st.integers(1, 6), "requests")):
            prompt = data.draw(st.lists(st.integers(0, 399), min_size=1, max_size=30), "prompt")
            options: dict[str, Any] = {
                "params": data.draw(st.sampled_from(kinds), "parameters"),
                "max_tokens": data.draw(st.integers(1, 20), "max tokens"),
                "top": data.draw(st.sampled_from([None, 0, 3]), "top"),
                "echo": data.draw(st.booleans(), "echo"),
            }
            jobs.append(job(one, prompt, **options))
            scheduler.submit(jobs[-1], 0)
            for _ in range(data.draw(st.integers(0, 9), "passes")):
                step(scheduler)
            if data.draw(st.integers(0, 3), "hangs up") == 0:
                scheduler.cancel(data.draw(st.sampled_from(jobs), "who"))
        while not all(job.done or job.cancelled for job in jobs):
            step(scheduler)
        for job_ in jobs:
            if not job_.cancelled:
                [row] = job_.rows
                alone = generate(
                    one.model,
                    one.tokenizer,
                    row.prompt,
                    row.options.params,
                    max_tokens=row.options.max_tokens,
                )
                assert row.tokens == alone.tokens
                assert row.finish_reason == alone.finish_reason
        step(scheduler)
        assert scheduler.waiting == len(scheduler.loops[0].running) == 0

    asyncio.run(play())


@in_a_loop
async def test_queue_is_limited(one: Loaded) -> None:
    scheduler = Scheduler([one], batch_size=2, max_waiting=3)
    first = job(one, [1], [2], [3])
    scheduler.submit(first, 0)
    with pytest.raises(QueueFullError, match="waiting already: 3 samples of at most 3"):
        scheduler.submit(job(one, [4]), 0)
    step(scheduler)  # two of them decode
    scheduler.submit(job(one, [4], [5]), 0)
    assert scheduler.waiting == 3
    assert scheduler.requests == 2


@in_a_loop
async def test_cancelled_rows_make_room(one: Loaded) -> None:
    scheduler = Scheduler([one], batch_size=2)
    gone, stays = job(one, [1], [2], [3], max_tokens=90), job(one, [4], max_tokens=2)
    scheduler.submit(gone, 0)
    scheduler.submit(stays, 0)
    step(scheduler)
    assert [row.job for row in scheduler.loops[0].running] == [gone, gone]
    assert scheduler.requests == 2
    scheduler.cancel(gone)
    assert scheduler.requests == 1
    step(scheduler)
    assert scheduler.waiting == 0
    assert scheduler.loops[0].running == stays.rows
    step(scheduler)
    assert stays.done
    assert scheduler.requests == 0
    assert not gone.done


@in_a_loop
async def test_a_failed_pass_ends_its_requests_only(one: Loaded) -> None:
    class Warnings(list[str]):
        def warn(self, text: str) -> None:
            self.append(text)

    warnings: Any = Warnings()
    scheduler = Scheduler([one], batch_size=1, events=warnings)
    failing, waiting = job(one, [1]), job(one, [2], max_tokens=1)
    scheduler.submit(failing, 0)
    scheduler.submit(waiting, 0)
    loop = scheduler.loops[0]
    right, loop.choose = loop.choose, lambda *_: (_ for _ in ()).throw(RunError("broken weights"))
    step(scheduler)
    assert failing.done
    assert str(failing.error) == "broken weights"
    assert warnings == ["a pass has failed, and with it 1 sample: broken weights"]
    loop.choose = right
    step(scheduler)
    assert waiting.done
    assert waiting.error is None


@in_a_loop
async def test_text_grows_by_whole_characters_and_withholds_stops(one: Loaded) -> None:
    """The row is fed by hand: a character in pieces, the beginning of a stop string, the string."""
    tokenizer = one.tokenizer
    [row] = job(one, [0], max_tokens=50, stops=("xy",), top=0).rows
    texts = []
    for byte in "é x-xyz".encode():
        if row.finish_reason is None:
            row.append(next(n for n in range(256) if tokenizer.decode_bytes([n])[0] == byte), -1.0)
            texts.append(row.text)
    assert texts == ["", "é", "é ", "é ", "é x-", "é x-", "é x-"]
    assert row.finish_reason == "stop"
    assert [entry.offset for entry in row.entries] == [0, 0, 1, 2, 3]


@in_a_loop
async def test_rows_do_not_grow_beyond_the_cache(one: Loaded) -> None:
    """A text past the end of the context goes on as that of gpt sample does."""
    scheduler = Scheduler([one], batch_size=2)
    long, short = job(one, [5] * 90, max_tokens=30), job(one, [6], max_tokens=40)
    scheduler.submit(long, 0)
    step(scheduler)
    scheduler.submit(short, 0)
    while not (long.done and short.done):
        step(scheduler)
    alone = generate(one.model, one.tokenizer, [5] * 90, max_tokens=30)
    assert long.rows[0].tokens == alone.tokens
    assert torch.equal(
        torch.tensor(short.rows[0].tokens),
        torch.tensor(generate(one.model, one.tokenizer, [6], max_tokens=40).tokens),
    )
