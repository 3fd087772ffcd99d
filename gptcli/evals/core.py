"""CORE, the suite of DCLM: 22 tasks, centred accuracy, by either of two conventions.

Both take the answer with the highest mean log-probability per token, and an answer to write as
correct if each of its tokens is the likeliest. CORE is the mean over tasks of (accuracy - baseline)
/ (1 - baseline), where the baseline is that of random answers. They differ in the prompt:

nanochat  items in the order of a seeded shuffle, examples drawn by `Random(1234 + item)`, a blank
          line after each; end-of-text in front; prompt and answer encoded together, and scored from
          the first token in which the choices differ. The last n_ctx tokens are read.
dclm      llm-foundry's, which DCLM uses: items in order, examples drawn in turn by one
          `Random(1234)`, a newline after each; nothing in front; examples, item and answer encoded
          separately.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gptcli.errors import InputError, UsageError
from gptcli.evals.formats.files import JsonNode
from gptcli.evals.formats.tables import table_rows
from gptcli.evals.loglikelihood import BATCH_TOKENS, LogLikelihoodScorer, batches
from gptcli.evals.shared_prefix import Group
from gptcli.evals.stderr import mean_stderr
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.numbers import counted
from gptcli.papers.core import CORE_TASKS, CoreTask
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.toml_json import shown

Convention = Literal["nanochat", "dclm"]
CONVENTIONS: tuple[Convention, ...] = get_args(Convention)
SHUFFLE_SEED, SHOTS_SEED, CONTROL_SEED = 1337, 1234, 0
EVAL_DATA = "eval_data"


@dataclass(frozen=True, slots=True)
class CoreScore:
    """Score of one task of CORE; accuracies are in percent."""

    task: str
    """Name of the task."""
    kind: str
    """Kind of task."""
    shots: int
    """Number of few-shot examples, K."""
    items: int
    """Number of scored items."""
    skipped: int
    """Number of items whose answer alone is longer than the context."""
    accuracy: float
    """Share of correct items."""
    stderr: float | None
    """Its standard error; None for a single item."""
    baseline: float
    """Accuracy of random answers."""
    shuffled: float | None
    """Accuracy by the correct answers of other items, a control that should be near the baseline;
    None if the answers are written.
    """
    centred: float
    """(accuracy - baseline) / (100 - baseline)."""


@dataclass(frozen=True, slots=True)
class CoreReport:
    """Scores of the tasks of CORE whose files were there."""

    convention: Convention
    """Convention of the prompts."""
    tasks: list[CoreScore]
    """Score of each task."""
    missing: list[str]
    """Names of tasks without a file."""

    @property
    def core(self) -> float | None:
        """CORE, the mean centred accuracy; None if a task is missing."""
        return None if self.missing else self.mean

    @property
    def mean(self) -> float:
        """Mean centred accuracy of the tasks that were scored."""
        return sum(one.centred for one in self.tasks) / len(self.tasks)


@dataclass(frozen=True, slots=True)
class CoreItem:
    """An item as tokens: one sequence per choice, with the number of scored tokens at its end."""

    index: int
    """Index of the item in its file."""
    sequences: list[list[int]]
    """Tokens of context and answer."""
    counts: list[int]
    """Number of scored tokens of each sequence."""
    gold: int
    """Index of the correct choice."""


def core_tasks(data: Path) -> tuple[list[tuple[CoreTask, Path]], list[str]]:
    """Return the tasks whose files are in DCLM's bundle, and the names of the others.

    `data` is the bundle or its folder eval_data. Raises InputError if there is none of them.
    """
    folder = data / EVAL_DATA if (data / EVAL_DATA).is_dir() else data
    found = [(task, folder / task.file) for task in CORE_TASKS if (folder / task.file).is_file()]
    if not found:
        raise InputError(
            "contains none of CORE's files",
            where=data,
            hint=f"{{option:data}} names DCLM's evaluation bundle, with {EVAL_DATA}/"
            f"{CORE_TASKS[0].file} and others",
        )
    names = {task.name for task, _ in found}
    return found, [task.name for task in CORE_TASKS if task.name not in names]


def read_core_items(task: CoreTask, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a task's file, checked. Raises InputError if one is broken."""
    rows = []
    for node in table_rows(path):
        if task.kind == "language_modeling":
            node.text("context")
            node.text("continuation")
        else:
            choices = node.texts("choices" if task.kind == "multiple_choice" else "context_options")
            node.text("query" if task.kind == "multiple_choice" else "continuation")
            _check_gold(node, len(choices))
        rows.append(node.value)
    if len(rows) <= task.shots:
        raise UsageError(
            f"{task.name} has {counted(len(rows), 'item')}, too few for "
            f"{counted(task.shots, 'example')}",
            where=path,
        )
    return rows


def _check_gold(node: JsonNode, choices: int) -> None:
    if not 0 <= node.number("gold") < choices:
        raise InputError(
            f"the correct choice is {shown(node.value['gold'])}, but there are "
            f"{counted(choices, 'choice')}",
            where=node.where,
        )


def evaluate_core(
    model: GPT,
    tokenizer: Tokenizer,
    data: Path,
    *,
    convention: Convention = "nanochat",
    limit: int | None = None,
    batch_size: int | None = None,
    events: Events = SILENT,
) -> CoreReport:
    """Score a model on the tasks of CORE in DCLM's bundle.

    `limit` is the number of items of each task, of which the examples are drawn too, as in
    nanochat. Every file is read before the first item is scored. Raises InputError or UsageError if
    a file is broken, and RunError if the model's scores are not finite.
    """
    found, missing = core_tasks(data)
    read = [(task, read_core_items(task, path)) for task, path in found]
    scores = [
        _score_task(model, tokenizer, task, rows, convention, limit, batch_size, events)
        for task, rows in read
    ]
    return CoreReport(convention, scores, missing)


def _score_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: CoreTask,
    rows: list[dict[str, Any]],
    convention: Convention,
    limit: int | None,
    batch_size: int | None,
    events: Events,
) -> CoreScore:
    n_ctx = model.config.n_ctx
    items, skipped = build_core_items(task, rows, tokenizer, n_ctx, convention, limit)
    if not items:
        raise InputError(
            f"every item of {task.name} is longer than the context of {counted(n_ctx, 'token')}"
        )
    scorer = LogLikelihoodScorer(model, events=events)
    order = sorted(range(len(items)), key=lambda n: -sum(map(len, items[n].sequences)))
    sizes = [sum(map(len, items[n].sequences)) for n in order]
    predicted = np.zeros(len(items), dtype=np.int64)
    for span in batches(sizes, batch_size, BATCH_TOKENS[model.wte.weight.device.type]):
        some = [order[place] for place in span]
        groups = [
            Group(
                [s for s, count in zip(items[n].sequences, items[n].counts, strict=True) if count],
                [count for count in items[n].counts if count],
            )
            for n in some
        ]
        scored = scorer.score([group for group in groups if group.sequences])
        results = iter(scored)
        for n, group in zip(some, groups, strict=True):
            found = iter(next(results)) if group.sequences else iter(())
            if task.kind == "language_modeling":
                predicted[n] = int(not all(next(found).is_greedy))
                continue
            losses = [
                -float(next(found).log_probs.mean(dtype=np.float64)) if count else float("nan")
                for count in items[n].counts
            ]
            predicted[n] = losses.index(min(losses))
        events.progress(task.name, span.stop, len(items), "items")
    events.finish(task.name)
    gold = np.array([item.gold for item in items])
    correct = predicted == gold
    shuffled = None
    if task.kind != "language_modeling":
        others = np.random.default_rng(CONTROL_SEED).permutation(gold)
        shuffled = 100 * float((predicted == others).mean())
    stderr = mean_stderr(correct.astype(np.float64))
    accuracy = 100 * float(correct.mean())
    return CoreScore(
        task=task.name,
        kind=task.kind,
        shots=task.shots,
        items=len(items),
        skipped=skipped,
        accuracy=accuracy,
        stderr=None if stderr is None else 100 * stderr,
        baseline=task.baseline,
        shuffled=shuffled,
        centred=(accuracy - task.baseline) / (100 - task.baseline),
    )


def build_core_items(
    task: CoreTask,
    rows: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    n_ctx: int,
    convention: Convention,
    limit: int | None = None,
) -> tuple[list[CoreItem], int]:
    """Return a task's items as tokens, and how many are left out for being too long."""
    build = _nanochat_items if convention == "nanochat" else _dclm_items
    items, skipped = [], 0
    for index, pairs, gold in build(task, rows, tokenizer, limit):
        sequences, counts = [], []
        for context, answer in pairs:
            # nanochat reads n_ctx tokens in all, the last one of which is only predicted
            whole = (context + answer)[-n_ctx:] if convention == "nanochat" else context + answer
            sequences.append(whole[-n_ctx - 1 :])
            counts.append(len(answer))
        if any(count >= len(one) for one, count in zip(sequences, counts, strict=True)):
            skipped += 1
            continue
        items.append(CoreItem(index, sequences, counts, gold))
    return items, skipped


Built = Iterator[tuple[int, list[tuple[list[int], list[int]]], int]]


def _nanochat_items(
    task: CoreTask, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, limit: int | None
) -> Built:
    """Yield (index, context and answer of each sequence, correct sequence) as nanochat does."""
    order = list(range(len(rows)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    order = order[:limit]
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]

    def encode(text: str) -> list[int]:
        return start + tokenizer.encode(text)

    for place, index in enumerate(order):
        others = [number for number in range(len(order)) if number != place]
        shots = random.Random(SHOTS_SEED + place).sample(others, task.shots) if task.shots else []
        examples = "".join(_solved(task, rows[order[shot]]) + "\n\n" for shot in shots)
        row = rows[index]
        if task.kind == "language_modeling":
            prompt = examples + row["context"].strip() + task.delimiter
            whole = encode(prompt + row["continuation"])
            size = _common([encode(prompt.strip()), whole])
            yield index, [(whole[:size], whole[size:])], 0
        elif task.kind == "multiple_choice":
            tokens = [
                encode(examples + row["query"] + task.delimiter + choice)
                for choice in row["choices"]
            ]
            size = _common(tokens)
            yield index, [(one[:size], one[size:]) for one in tokens], int(row["gold"])
        else:
            tokens = [
                encode(examples + context + task.delimiter + row["continuation"])
                for context in row["context_options"]
            ]
            size = _common([one[::-1] for one in tokens])
            pairs = [(one[: len(one) - size], one[len(one) - size :]) for one in tokens]
            yield index, pairs, int(row["gold"])


def _common(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all sequences begin with."""
    for number, column in enumerate(zip(*sequences, strict=False)):
        if len(set(column)) > 1:
            return number
    return min(map(len, sequences))


def _dclm_items(
    task: CoreTask, rows: Sequence[dict[str, Any]], tokenizer: Tokenizer, limit: int | None
) -> Built:
    """Yield (index, context and answer of each sequence, correct sequence) as llm-foundry does."""
    rows = [_stripped(row) for row in rows[:limit]]
    drawing = random.Random(SHOTS_SEED)
    for index, row in enumerate(rows):
        shots = _foundry_shots(len(rows), task.shots, index, drawing)
        examples = "\n".join(_solved(task, rows[shot]) for shot in shots)
        preamble = tokenizer.encode(examples) if examples else []
        between = "\n" if examples else ""

        def context(text: str, preamble: list[int] = preamble, between: str = between) -> list[int]:
            return preamble + tokenizer.encode((between + text + task.delimiter).rstrip())

        def answer(text: str) -> list[int]:
            return tokenizer.encode(text if text.startswith(" ") else f" {text}")

        if task.kind == "language_modeling":
            yield index, [(context(row["context"]), answer(row["continuation"]))], 0
        elif task.kind == "multiple_choice":
            prompt = context(row["query"])
            yield index, [(prompt, answer(one)) for one in row["choices"]], int(row["gold"])
        else:
            target = answer(row["continuation"])
            pairs = [(context(one), target) for one in row["context_options"]]
            yield index, pairs, int(row["gold"])


def _foundry_shots(size: int, shots: int, index: int, drawing: random.Random) -> list[int]:
    """Return the examples of an item; another is drawn for the item itself.

    They are in the order of a set of their numbers, as in llm-foundry.
    """
    found = set(drawing.sample(range(size), min(size - 1, shots)))
    if index in found:
        found.remove(index)
        other = drawing.choice(range(size))
        while other in found or other == index:
            other = drawing.choice(range(size))
        found.add(other)
    return list(found)


def _stripped(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its texts stripped."""
    return {
        name: value.strip()
        if isinstance(value, str)
        else [one.strip() if isinstance(one, str) else one for one in value]
        if isinstance(value, list)
        else value
        for name, value in row.items()
    }


def _solved(task: CoreTask, row: dict[str, Any]) -> str:
    """Return an item with its answer."""
    if task.kind == "multiple_choice":
        return str(row["query"] + task.delimiter + row["choices"][int(row["gold"])])
    if task.kind == "schema":
        context = row["context_options"][int(row["gold"])]
        return str(context + task.delimiter + row["continuation"])
    return str(row["context"].strip() + task.delimiter + row["continuation"])
