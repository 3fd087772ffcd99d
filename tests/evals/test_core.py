"""CORE equals a second reading of both conventions' rules, task by task, on a small model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from gptcli.errors import InputError, UsageError
from gptcli.evals.core import Convention, build_core_items, core_tasks, evaluate_core
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.papers.core import CORE_TASKS, CoreTask
from gptcli.tokenizer.tokenizer import Tokenizer

WORDS = [
    "self",
    "text",
    "width",
    "line",
    "the",
    "of",
    "and",
    "naïve",
    "def",
    "wrap",
    "return",
    "word",
    "split",
    "length",
]


@pytest.fixture(scope="module")
def long_model(tokenizer: Tokenizer) -> GPT:
    model = GPT(
        ModelConfig(
            n_layer=2, n_head=2, d_model=32, n_ctx=160, vocab_size=tokenizer.vocab_size, tied=False
        )
    ).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle with 12 random items of each task, some with spaces around their texts."""
    folder, drawing = tmp_path_factory.mktemp("bundle"), random.Random(0)

    def text(words: int) -> str:
        return " ".join(drawing.choice(WORDS) for _ in range(words))

    for task in CORE_TASKS:
        rows: list[dict[str, Any]] = []
        for number in range(12):
            choices = [f"{text(2)} {letter}" for letter in "abc"]
            gold = drawing.randrange(3)
            if task.kind == "multiple_choice":
                rows.append({"query": text(4), "choices": choices, "gold": gold})
            elif task.kind == "schema":
                contexts = [f"{text(3)} {letter}" for letter in "xy"]
                rows.append(
                    {"context_options": contexts, "continuation": text(3), "gold": gold % 2}
                )
            else:
                rows.append({"context": text(4) + " " * (number % 2), "continuation": text(1)})
        path = folder / "eval_data" / task.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@torch.inference_mode()
def losses_and_greedy(model: GPT, tokens: list[int], start: int) -> tuple[float, bool]:
    """Return the mean loss of tokens[start:], and whether each is the likeliest."""
    logits = model(torch.tensor([tokens]))[0]
    loss = cross_entropy(logits[start - 1 : -1], torch.tensor(tokens[start:]))
    return float(loss), bool(
        (logits[start - 1 : -1].argmax(-1) == torch.tensor(tokens[start:])).all()
    )


def nanochat(model: GPT, tokenizer: Tokenizer, task: CoreTask, rows: list[Any]) -> float:
    """Return the accuracy by a plain reading of nanochat's rules."""
    rows = list(rows)
    random.Random(1337).shuffle(rows)
    right = 0
    for number, row in enumerate(rows):
        others = [n for n in range(len(rows)) if n != number]
        shots = [rows[n] for n in random.Random(1234 + number).sample(others, task.shots)]

        def prompt(row: Any, choice: int, task: CoreTask = task) -> str:
            if task.kind == "multiple_choice":
                return str(row["query"] + task.delimiter + row["choices"][choice])
            if task.kind == "schema":
                return str(row["context_options"][choice] + task.delimiter + row["continuation"])
            return str(row["context"].strip() + task.delimiter + row["continuation"])

        before = "".join(prompt(shot, shot.get("gold", 0)) + "\n\n" for shot in shots)
        count = {"multiple_choice": 3, "schema": 2}.get(task.kind, 1)
        assert tokenizer.eot_id is not None
        tokens = [
            [tokenizer.eot_id, *tokenizer.encode(before + prompt(row, choice))]
            for choice in range(count)
        ]
        if task.kind == "language_modeling":
            without = (before + row["context"].strip() + task.delimiter).strip()
            start = 1 + len(tokenizer.encode(without))
            cut = max(0, len(tokens[0]) - model.config.n_ctx)
            right += losses_and_greedy(model, tokens[0][cut:], start - cut)[1]
            continue
        if task.kind == "multiple_choice":
            same = next(
                n for n, column in enumerate(zip(*tokens, strict=False)) if len({*column}) > 1
            )
            starts = [same] * count
        else:
            back = next(
                n
                for n, column in enumerate(zip(*(one[::-1] for one in tokens), strict=False))
                if len({*column}) > 1
            )
            starts = [len(one) - back for one in tokens]
        found = []
        for one, start in zip(tokens, starts, strict=True):
            cut = max(0, len(one) - model.config.n_ctx)
            found.append(losses_and_greedy(model, one[cut:], start - cut)[0])
        right += found.index(min(found)) == row["gold"]
    return 100 * right / len(rows)


def dclm(model: GPT, tokenizer: Tokenizer, task: CoreTask, rows: list[Any]) -> float:
    """Return the accuracy by a plain reading of llm-foundry's rules."""
    drawing, right = random.Random(1234), 0
    for number, row in enumerate(rows):
        chosen = set(drawing.sample(range(len(rows)), task.shots))
        if number in chosen:
            chosen.remove(number)
            new = drawing.choice(range(len(rows)))
            while new in chosen or new == number:
                new = drawing.choice(range(len(rows)))
            chosen.add(new)
        parts = []
        for shot in (rows[n] for n in chosen):
            if task.kind == "multiple_choice":
                question, answer = shot["query"], shot["choices"][shot["gold"]]
            elif task.kind == "schema":
                question = shot["context_options"][shot["gold"]]
                answer = shot["continuation"]
            else:
                question, answer = shot["context"].strip(), shot["continuation"]
            parts.append(question + task.delimiter + answer)
        preamble = "\n".join(parts)
        if task.kind == "multiple_choice":
            pairs = [(row["query"], choice) for choice in row["choices"]]
        elif task.kind == "schema":
            pairs = [(context, row["continuation"]) for context in row["context_options"]]
        else:
            pairs = [(row["context"].strip(), row["continuation"])]
        found = []
        for question, answer in pairs:
            question = ("\n" if preamble else "") + question + task.delimiter
            context = tokenizer.encode(preamble) + tokenizer.encode(question.rstrip())
            target = tokenizer.encode(" " + answer)
            tokens = (context + target)[-model.config.n_ctx - 1 :]
            logits_tokens = tokens[:-1]
            with torch.inference_mode():
                logits = model(torch.tensor([logits_tokens]))[0][-len(target) :]
            loss = float(cross_entropy(logits, torch.tensor(target)))
            greedy = bool((logits.argmax(-1) == torch.tensor(target)).all())
            found.append((loss, greedy))
        if task.kind == "language_modeling":
            right += found[0][1]
        else:
            losses = [loss for loss, _ in found]
            right += losses.index(min(losses)) == row["gold"]
    return 100 * right / len(rows)


@pytest.mark.parametrize("convention", ["nanochat", "dclm"])
def test_core_equals_a_plain_reading_of_the_rules(
    long_model: GPT, tokenizer: Tokenizer, bundle: Path, convention: Convention
) -> None:
    report = evaluate_core(long_model, tokenizer, bundle, convention=convention)
    assert [score.task for score in report.tasks] == [task.name for task in CORE_TASKS]
    reading = {"nanochat": nanochat, "dclm": dclm}[convention]
    centred = []
    for task, score in zip(CORE_TASKS, report.tasks, strict=True):
        lines = (bundle / "eval_data" / task.file).read_text().splitlines()
        accuracy = reading(long_model, tokenizer, task, [json.loads(line) for line in lines])
        assert score.accuracy == pytest.approx(accuracy), task.name
        centred.append((accuracy - task.baseline) / (100 - task.baseline))
        assert score.centred == pytest.approx(centred[-1])
    assert report.core == pytest.approx(sum(centred) / 22, abs=1e-12)


def test_scores_do_not_depend_on_the_batch(
    long_model: GPT, tokenizer: Tokenizer, bundle: Path
) -> None:
    one, many = (
        evaluate_core(long_model, tokenizer, bundle, limit=11, batch_size=size) for size in (1, 7)
    )
    assert one == many
    assert {score.items for score in one.tasks} == {11}


def test_a_long_item_loses_its_beginning_and_an_answer_is_never_cut(tokenizer: Tokenizer) -> None:
    task = CoreTask("t", "t.jsonl", "multiple_choice", 0, 50.0)
    rows = [
        {"query": " ".join(WORDS * 5), "choices": ["self", "text"], "gold": 0},
        {"query": "self", "choices": [" ".join(WORDS * 5), "text"], "gold": 0},
    ]
    items, skipped = build_core_items(task, rows, tokenizer, 24, "nanochat")
    assert (len(items), skipped) == (1, 1)
    assert [len(sequence) for sequence in items[0].sequences] == [24, 24]


def test_missing_and_broken_files(tmp_path: Path, bundle: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="contains none of CORE's files"):
        core_tasks(tmp_path)
    path = tmp_path / CORE_TASKS[0].file
    path.parent.mkdir()
    path.write_text('{"query": "q", "choices": ["a", "b"], "gold": 2}\n')
    found, missing = core_tasks(tmp_path)
    assert [task.name for task, _ in found] == ["hellaswag_zeroshot", "hellaswag"]
    assert len(missing) == 20
    with pytest.raises(InputError, match="the correct choice is 2, but there are 2 choices"):
        evaluate_core(None, tokenizer, tmp_path)  # type: ignore[arg-type]
    path.write_text('{"query": "q", "choices": ["a", "b"], "gold": 1}\n')
    with pytest.raises(UsageError, match="hellaswag has 1 item, too few for 10 examples"):
        evaluate_core(None, tokenizer, tmp_path)  # type: ignore[arg-type]
