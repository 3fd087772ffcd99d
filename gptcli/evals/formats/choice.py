"""Formats of multiple choice: rows with a question or context, `choices`, and the index `gold`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.files import (
    JsonNode,
    Row,
    json_document,
    line_id,
    numbered_lines,
    turn,
)
from gptcli.evals.formats.tables import is_table, table_rows
from gptcli.numbers import counted
from gptcli.toml_json import shown

# Choices of entailment tasks: true, false, neither.
ENTAILMENT_LABELS = {"e": 0, "c": 1, "n": 2, "entailment": 0, "contradiction": 1, "neutral": 2}


def read_arc(path: Path) -> Iterator[Row]:
    """Read ARC and OpenBookQA: {question, choices, gold}.

    The hub's exports have the stem under "question" or "question_stem" and the choices beside it.
    JSON lines {query: "Question: ..\\nAnswer:", choices, gold} are also accepted.
    """
    for node in table_rows(path):
        row_id = str(node.value.get("id", line_id(node.where)))
        if node.has("query"):
            question = node.text("query").removeprefix("Question: ").removesuffix("\nAnswer:")
            yield {
                "id": row_id,
                "question": question,
                "choices": node.texts("choices"),
                "gold": node.number("gold"),
            }
            continue
        inner = node.node("question") if isinstance(node.value.get("question"), dict) else node
        stem = next((key for key in ("stem", "question_stem") if inner.has(key)), "question")
        pairs = inner.columns("choices", "label", "text")
        labels, choices = [label for label, _ in pairs], [text for _, text in pairs]
        key = node.text("answerKey")
        if labels.count(key) != 1:
            found = f"not one of {', '.join(labels)}" if key not in labels else "that of several"
            raise InputError(
                f"the answer {shown(key)} is {found if labels else 'given, but no choices'}",
                where=node.where,
            )
        yield {
            "id": row_id,
            "question": inner.text(stem),
            "choices": choices,
            "gold": labels.index(key),
        }


def read_hellaswag(path: Path) -> Iterator[Row]:
    """Read HellaSwag: {context, choices, gold}.

    The file is the original JSON lines, an export of the hub with the same fields, or text with six
    lines per item: context, gold and four endings.
    """
    return _hellaswag_rows(path) if is_table(path) else _hellaswag_text(path)


def _hellaswag_rows(path: Path) -> Iterator[Row]:
    for node in table_rows(path):
        context = (
            f"{node.text('activity_label')}: {node.text('ctx_a')} {node.text('ctx_b').capitalize()}"
        )
        label = node.value.get("label")
        if isinstance(label, bool) or label not in (0, 1, 2, 3, "0", "1", "2", "3"):
            raise InputError(
                f"the correct ending is {shown(label)}, not 0 to 3",
                where=node.where,
                hint="the test set has no labels: use the validation set",
            )
        yield {
            "id": line_id(node.where),
            "context": _without_markup(context),
            "choices": [_without_markup(ending) for ending in node.texts("endings")],
            "gold": int(label),
        }


def _without_markup(text: str) -> str:
    """Remove WikiHow's "[header]" and "[step]" marks; " [title]" becomes a full stop."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def _hellaswag_text(path: Path) -> Iterator[Row]:
    item: list[str] = []
    first = str(path)
    for where, line in numbered_lines(path):
        first = first if item else where
        item.append(line)
        if len(item) == 6:
            if item[1] not in ("0", "1", "2", "3"):
                raise InputError(f"the correct ending is {shown(item[1])}, not 0 to 3", where=where)
            yield {
                "id": line_id(first),
                "context": item[0],
                "choices": item[2:],
                "gold": int(item[1]),
            }
            item = []
    if any(item):
        raise InputError(f"the file ends after {len(item)} of an item's six lines", where=first)


def read_story_cloze(path: Path) -> Iterator[Row]:
    """Read StoryCloze's table, or its export of the hub: {context, choices, gold}."""
    for node in table_rows(path):
        exported = node.has("input_sentence_1")
        sentence = "input_sentence_{}" if exported else "InputSentence{}"
        ending = "sentence_quiz{}" if exported else "RandomFifthSentenceQuiz{}"
        yield {
            "id": node.text("story_id" if exported else "InputStoryid"),
            "context": " ".join(node.text(sentence.format(number)) for number in range(1, 5)),
            "choices": [node.text(ending.format(number)) for number in (1, 2)],
            "gold": node.one_of(
                "answer_right_ending" if exported else "AnswerRightEnding", {"1": 0, "2": 1}
            ),
        }


def read_piqa(path: Path) -> Iterator[Row]:
    """Read PIQA: {goal, choices, gold}.

    Labels are in NAME-labels.lst next to NAME.jsonl or, as in the hub's exports, with each item.
    """
    nodes = list(table_rows(path))
    if nodes and nodes[0].has("label"):
        golds = [node.one_of("label", {"0": 0, "1": 1}) for node in nodes]
    else:
        golds = _piqa_labels(path, len(nodes))
    for node, gold in zip(nodes, golds, strict=True):
        yield {
            "id": line_id(node.where),
            "goal": node.text("goal"),
            "choices": [node.text("sol1"), node.text("sol2")],
            "gold": gold,
        }


def _piqa_labels(path: Path, items: int) -> list[int]:
    labels_path = path.with_name(f"{path.name.partition('.json')[0]}-labels.lst")
    if not labels_path.is_file():
        raise InputError(
            "the items have no labels",
            where=path,
            hint=f"put {labels_path.name} next to it; PIQA's test set has none",
        )
    labels = [(where, line.strip()) for where, line in numbered_lines(labels_path) if line.strip()]
    if len(labels) != items:
        raise InputError(f"{len(labels)} labels for {counted(items, 'item')}", where=labels_path)
    for where, label in labels:
        if label not in ("0", "1"):
            raise InputError(f"the label is {shown(label)}, not 0 or 1", where=where)
    return [int(label) for _, label in labels]


def read_race(path: Path) -> Iterator[Row]:
    """Read RACE: {article, history, question, choices, gold, group, level}, a row per question.

    The history contains the article's earlier questions, each with its correct answer, as in
    GPT-3's figures G.1 and G.3. `path` is a file or a folder of files, such as RACE/test/high, or
    an export of the hub with a question per row.
    """
    history, article = "", ""
    for where, row in _race_exported(path) if is_table(path) else _race_original(path):
        question, answer, choices = row["question"], row.pop("answer"), row["choices"]
        if answer not in ("A", "B", "C", "D") or "ABCD".index(answer) >= len(choices):
            raise InputError(f"the answer {shown(answer)} is not one of A, B, C, D", where=where)
        history = history if row["article"] == article else ""
        article = row["article"]
        gold = "ABCD".index(answer)
        yield {**row, "history": history, "gold": gold}
        history += turn(question, choices[gold])


def _race_level(*names: str) -> str | None:
    """Return the level that a folder, file or id names, "high" or "middle"; None if none does."""
    levels = (level for name in names for level in ("high", "middle") if name.startswith(level))
    return next(levels, None)


def _race_original(path: Path) -> Iterator[tuple[str, Row]]:
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise InputError("contains no .txt files", where=path)
    for file in files:
        node = json_document(file)
        questions, answers = node.texts("questions"), node.texts("answers")
        options = node.value.get("options")
        if not isinstance(options, list) or not len(questions) == len(answers) == len(options):
            raise InputError(
                f"{len(questions)} questions and {len(answers)} answers, "
                "but another number of options",
                where=file,
            )
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            where = f"{file}: question {number}"
            yield (
                where,
                {
                    "id": f"{file.stem}:{number}"
                    if path.is_file()
                    else f"{file.relative_to(path).with_suffix('')}:{number}",
                    "article": node.text("article"),
                    "question": question,
                    "choices": JsonNode({"options": options[number]}, where).texts("options"),
                    "answer": answer,
                    "group": file.stem,
                    "level": _race_level(file.parent.name, file.stem),
                },
            )


def _race_exported(path: Path) -> Iterator[tuple[str, Row]]:
    for node in table_rows(path):
        yield (
            node.where,
            {
                "id": line_id(node.where),
                "article": node.text("article"),
                "question": node.text("question"),
                "choices": node.texts("options"),
                "answer": node.text("answer"),
                "group": node.text("example_id").removesuffix(".txt"),
                "level": _race_level(node.text("example_id")),
            },
        )


def read_anli(path: Path) -> Iterator[Row]:
    """Read ANLI: {premise, hypothesis, gold, round}, 0 for true, 1 for false, 2 for neither.

    The round, such as "r2", is that of the item's tag, or else of the file (test_r2.jsonl) or of
    the folder, if one of them has it.
    """
    names = [path.name, path.absolute().parent.name]
    for node in table_rows(path):
        found = map(_anli_round, [str(node.value.get("tag")), *names])
        part = next(filter(None, found), None)
        yield {
            "id": node.text("uid"),
            "premise": node.text("context" if node.has("context") else "premise"),
            "hypothesis": node.text("hypothesis"),
            # the hub numbers entailment, neutral, contradiction
            "gold": node.one_of("label", {**ENTAILMENT_LABELS, "0": 0, "1": 2, "2": 1}),
            **({"round": part} if part else {}),
        }


def _anli_round(name: str) -> str | None:
    """Return the round in a name whose parts are separated, such as "r2" in test_r2.jsonl."""
    parts = re.split(r"[\W_]+", name.lower())
    return next((part for part in parts if part in ("r1", "r2", "r3")), None)


def read_sat(path: Path) -> Iterator[Row]:
    """Read SAT analogies (Turney's file): {a, b, choices, gold}.

    A block consists of a source, a stem pair, five pairs and the letter of the correct one.
    """
    block: list[tuple[str, str]] = []
    for where, line in [*numbered_lines(path), (str(path), "")]:
        if line.strip() and not line.startswith("#"):
            block.append((where, line.strip()))
        elif block and not line.strip():
            yield _analogy(block)
            block = []


def _analogy(block: list[tuple[str, str]]) -> Row:
    where = block[0][0]
    letter = block[-1][1]
    pairs = [line.split()[:2] for _, line in block[1:-1]]
    if (
        len(pairs) != 6
        or any(len(pair) != 2 for pair in pairs)
        or letter not in ("a", "b", "c", "d", "e")
    ):
        raise InputError(
            "expected a source, six pairs of words and a letter from a to e", where=where
        )
    (a, b), *others = pairs
    return {
        "id": line_id(where),
        "a": a,
        "b": b,
        "choices": [f"{c} is to {d}" for c, d in others],
        "gold": "abcde".index(letter),
    }
