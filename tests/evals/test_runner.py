"""LAMBADA's metrics equal a direct computation with transformers; generated answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.errors import InputError, RunError
from gptcli.evals.check import EvalOptions
from gptcli.evals.records import Records
from gptcli.evals.requests import Request
from gptcli.evals.runner import (
    SINGLE_PROCESS,
    generate_answers,
    init_processes,
    local_device,
    run_task,
)
from gptcli.evals.task import find_task
from gptcli.evals.task_data import Item
from gptcli.files import sha256
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer

LAMBADA = find_task("lambada")


@pytest.fixture(scope="session")
def passages(model: GPT, tokenizer: Tokenizer) -> list[str]:
    """Return forty passages of random words, shorter than, longer than and as long as the context.

    The model predicts the whole last word of ten, only its last token of ten, its first of ten.
    """
    random = np.random.default_rng(0)
    words = ["self", "text", "width", "naïve", "café", "日本語", "line,", "🙂", "indent"]
    texts: dict[str, list[str]] = {"word": [], "last": [], "first": [], "random": []}
    while min(len(found) for found in texts.values()) < 10:
        context = " ".join(random.choice(words, size=random.integers(2, 14)))
        for kind, before, after in (("word", "", ""), ("last", " x", ""), ("first", "", "🙂")):
            ids = tokenizer.encode(context) + tokenizer.encode(before)
            with torch.no_grad():
                greedy = int(model(torch.tensor([ids[-24:]]))[0, -1].argmax())
            text = context + before + tokenizer.decode([greedy]) + after
            whole_word = (
                text.rpartition(" ")[0] == context
                and "\ufffd" not in text
                and text.split() == text.split(" ")
            )
            if whole_word and tokenizer.encode(text) == [*ids, greedy, *tokenizer.encode(after)]:
                texts[kind].append(text)
        # exactly the context and the target, or one token more
        if len(tokenizer.encode(f"{context} text")) in (25, 26):
            texts["random"].append(f"{context} text")
    return [text for found in texts.values() for text in found[:10]]


@pytest.fixture
def data(tmp_path: Path, passages: list[str]) -> Path:
    path = tmp_path / "lambada_test.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in passages))
    return path


def test_lambada_metrics_equal_a_direct_computation(
    model: GPT, theirs: Any, tokenizer: Tokenizer, data: Path, passages: list[str]
) -> None:
    words, tokens, right_words, right_tokens, cut = [], [], 0, 0, 0
    for text in passages:
        context, _, word = text.rpartition(" ")
        target = tokenizer.encode(" " + word)
        read = tokenizer.encode(context)
        cut += len(read) + len(target) - 1 > 24
        read = (read + target[:-1])[-24:]
        with torch.no_grad():
            logits = theirs(torch.tensor([read])).logits[0, -len(target) :]
        log_probs = logits.double().log_softmax(dim=-1)[torch.arange(len(target)), target]
        right = logits.argmax(dim=-1) == torch.tensor(target)
        words.append(float(log_probs.sum()))
        tokens.append(float(log_probs[-1]))
        right_words += bool(right.all())
        right_tokens += bool(right[-1])
    assert 10 <= right_words < right_tokens < 30  # the two rules differ on this fixture
    assert 0 < cut < 40

    results, records = run_task(model, tokenizer, LAMBADA, data)
    assert [result.scoring for result in results] == [
        "last_word",
        "last_token",
        "last_word_filtered",
        "last_token_filtered",
    ]
    for result, right_count, exact in zip(
        results[:2], (right_words, right_tokens), (words, tokens), strict=True
    ):
        share, found = right_count / 40, result.as_dict()
        assert (found["items"], found["correct"], found["truncated"], found["shots"]) == (
            40,
            right_count,
            cut,
            0,
        )
        assert found["accuracy"] == pytest.approx(100 * share)
        assert found["accuracy_stderr"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 39))
        assert found["perplexity"] == pytest.approx(math.exp(-np.mean(exact)), rel=1e-4)
        assert found["perplexity_stderr"] == pytest.approx(
            math.exp(-np.mean(exact)) * np.std(exact, ddof=1) / math.sqrt(40), rel=1e-4
        )
        assert found["data_sha256"] == sha256(data)
    assert [sum(record["log_probs"]) for record in records] == pytest.approx(words, abs=1e-4)
    assert sum(record["truncated"] for record in records) == cut
    assert sum(all(record["likeliest"]) for record in records) == right_words


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_scores_do_not_depend_on_the_batch_size(
    model: GPT, tokenizer: Tokenizer, data: Path, batch_size: int
) -> None:
    results, records = run_task(model, tokenizer, LAMBADA, data, EvalOptions(batch_size=batch_size))
    same_results, same_records = run_task(model, tokenizer, LAMBADA, data)
    for record, same in zip(records, same_records, strict=True):
        assert record.pop("log_probs") == pytest.approx(same.pop("log_probs"), abs=1e-5)
        assert record == same
    assert [result.correct for result in results] == [result.correct for result in same_results]


def test_scores_do_not_depend_on_item_order(
    model: GPT, tokenizer: Tokenizer, data: Path, tmp_path: Path
) -> None:
    lines = data.read_text().splitlines(keepends=True)
    shuffled = tmp_path / "shuffled.jsonl"
    shuffled.write_text("".join(reversed(lines)))
    for one, other in zip(
        run_task(model, tokenizer, LAMBADA, data)[0],
        run_task(model, tokenizer, LAMBADA, shuffled)[0],
        strict=True,
    ):
        assert one.correct == other.correct
        assert one.metrics["perplexity"].value == pytest.approx(
            other.metrics["perplexity"].value, rel=1e-5
        )


def test_one_item_has_no_standard_error(model: GPT, tokenizer: Tokenizer, data: Path) -> None:
    [result, *_], [record] = run_task(model, tokenizer, LAMBADA, data, EvalOptions(limit=1))
    assert (result.conditions.items, [figure.stderr for figure in result.metrics.values()]) == (
        1,
        [None, None],
    )
    assert record["id"] == "lambada_test.jsonl:1"


def test_a_word_longer_than_the_context_is_skipped(
    model: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "lambada.jsonl"
    path.write_text(json.dumps({"text": "a " + "xq" * 40}) + "\n")
    with pytest.raises(InputError, match="every item was skipped: 1 \\(an answer longer"):
        run_task(model, tokenizer, LAMBADA, path)
    path.write_text(path.read_text() + json.dumps({"text": "a b"}) + "\n")
    [result, *_], [record] = run_task(model, tokenizer, LAMBADA, path)
    assert (result.conditions.items, result.conditions.skipped) == (
        1,
        {"an answer longer than the context": 1},
    )
    assert record["index"] == 1


def test_broken_weights_raise_an_error(model: GPT, tokenizer: Tokenizer, data: Path) -> None:
    broken = GPT(model.config).eval()
    torch.nn.init.constant_(broken.get_parameter("ln_f.bias"), math.nan)
    with pytest.raises(RunError, match="weights are broken"):
        run_task(broken, tokenizer, LAMBADA, data)


SUMMARIES = replace(find_task("cnn_dailymail"), max_tokens=12)  # top-k 2


def test_generated_answers_depend_on_the_item_index_and_not_on_the_batch(
    model: GPT, tokenizer: Tokenizer
) -> None:
    texts = ["the text", "def wrap(self", "naïve café", "the text"]
    questions = [
        Request(
            index,
            Item(id=str(index), prompt=text),
            [(np.array(tokenizer.encode(text)), np.array([]))],
            [],
            0,
            False,
            1,
        )
        for index, text in enumerate(texts)
    ]
    together = [made.tokens for made in generate_answers(model, tokenizer, questions, SUMMARIES)]
    alone = [
        made.tokens
        for question in reversed(questions)
        for made in generate_answers(model, tokenizer, [question], SUMMARIES)
    ]
    assert together == alone[::-1]
    assert together[0] != together[3]  # the same prompt at another index

    for task in (
        SUMMARIES,
        replace(SUMMARIES, top_k=0, beam=1),
        replace(SUMMARIES, top_k=0, beam=3),
    ):
        [whole] = generate_answers(model, tokenizer, questions[:1], replace(task, stop=[]))
        stop = whole.text[3:5]
        [stopped] = generate_answers(model, tokenizer, questions[:1], replace(task, stop=[stop]))
        assert stop not in stopped.text
        assert task.beam > 1 or stopped.text == whole.text.partition(stop)[0]


def test_a_single_process_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")  # set by another program
    assert init_processes() is SINGLE_PROCESS
    records = Records(None, "t", {})
    records.add([{"index": 0}])
    assert list(SINGLE_PROCESS.gather(records)) == []
    SINGLE_PROCESS.shut_down()


def test_each_process_uses_its_own_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {
        "RANK": "7",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    }
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    for there, device in ((True, "cuda:3"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert local_device() == device
