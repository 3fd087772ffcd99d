"""Formats of multiple choice: rows with a question or context, `choices`, and the index `gold`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.files import (
    JsonNode,
    Row,
    content_suffix,
    json_document,
    json_lines,
    line_id,
    numbered_lines,
    read_csv,
)

# Choices of entailment tasks: true, false, neither.
ENTAILMENT_LABELS = {"e": 0, "c": 1, "n": 2, "entailment": 0, "contradiction": 1, "neutral": 2}


def read_arc(path: Path) -> Iterator[Row]:
    """Read ARC and OpenBookQA: {question, choices, gold}.

    JSON lines {query: "Question: ..\\nAnswer:", choices, gold} are also accepted.
    """
    for node in json_lines(path):
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
        stem = node.node("question")
        choices = stem.nodes("choices")
        labels = [choice.text("label") for choice in choices]
        key = node.text("answerKey")
        if key not in labels:
            raise InputError(
                f"the answer {key!r} is not one of {', '.join(labels)}", where=node.where
            )
        yield {
            "id": row_id,
            "question": stem.text("stem"),
            "choices": [choice.text("text") for choice in choices],
            "gold": labels.index(key),
        }


def read_hellaswag(path: Path) -> Iterator[Row]:
    """Read HellaSwag: {context, choices, gold}.

    The file is the original JSON lines, or text with six lines per item: context, gold and four
    endings.
    """
    return _hellaswag_json(path) if content_suffix(path) == ".jsonl" else _hellaswag_text(path)


def _hellaswag_json(path: Path) -> Iterator[Row]:
    for node in json_lines(path):
        context = (
            f"{node.text('activity_label')}: {node.text('ctx_a')} {node.text('ctx_b').capitalize()}"
        )
        label = node.value.get("label")
        if label not in (0, 1, 2, 3, "0", "1", "2", "3"):
            raise InputError(
                f"the correct ending is {label!r}, not 0 to 3",
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
                raise InputError(f"the correct ending is {item[1]!r}, not 0 to 3", where=where)
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
    """Read StoryCloze's table: {context, choices, gold}."""
    sentences = [f"InputSentence{number}" for number in range(1, 5)]
    endings = ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2"]
    for row in read_csv(path):
        node = JsonNode(row, f"{path}: {row['id']}")
        yield {
            "id": node.text("InputStoryid"),
            "context": " ".join(node.text(name) for name in sentences),
            "choices": [node.text(name) for name in endings],
            "gold": node.one_of("AnswerRightEnding", {"1": 0, "2": 1}),
        }


def read_piqa(path: Path) -> Iterator[Row]:
    """Read PIQA: {goal, choices, gold}; labels are in NAME-labels.lst next to NAME.jsonl."""
    labels_path = path.with_name(f"{path.name.removesuffix('.jsonl')}-labels.lst")
    labels = [(where, line.strip()) for where, line in numbered_lines(labels_path) if line.strip()]
    nodes = list(json_lines(path))
    if len(labels) != len(nodes):
        raise InputError(f"{len(labels)} labels for {len(nodes)} items", where=labels_path)
    for node, (where, label) in zip(nodes, labels, strict=True):
        if label not in ("0", "1"):
            raise InputError(f"the label is {label!r}, not 0 or 1", where=where)
        choices = [node.text("sol1"), node.text("sol2")]
        yield {
            "id": line_id(node.where),
            "goal": node.text("goal"),
            "choices": choices,
            "gold": int(label),
        }


def read_race(path: Path) -> Iterator[Row]:
    """Read RACE: {article, question, choices, gold, group}, a row per question.

    `path` is a file or a folder of files, such as RACE/test/high.
    """
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
            if answer not in ("A", "B", "C", "D"):
                raise InputError(
                    f"the answer {answer!r} is not one of A, B, C, D",
                    where=f"{file}: question {number}",
                )
            yield {
                "id": f"{file.stem}:{number}"
                if path.is_file()
                else f"{file.relative_to(path).with_suffix('')}:{number}",
                "article": node.text("article"),
                "question": question,
                "choices": JsonNode(
                    {"options": options[number]}, f"{file}: question {number}"
                ).texts("options"),
                "gold": "ABCD".index(answer),
                "group": file.stem,
            }


def read_anli(path: Path) -> Iterator[Row]:
    """Read ANLI: {premise, hypothesis, gold}, 0 for true, 1 for false, 2 for neither."""
    for node in json_lines(path):
        yield {
            "id": node.text("uid"),
            "premise": node.text("context"),
            "hypothesis": node.text("hypothesis"),
            "gold": node.one_of("label", ENTAILMENT_LABELS),
        }


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


def _id(node: JsonNode) -> str:
    return str(node.value.get("idx", line_id(node.where)))


def read_boolq(path: Path) -> Iterator[Row]:
    """Read BoolQ: {passage, question, gold}, 0 for yes.

    JSON lines {query: passage and "Question: ..?", choices, gold} are also accepted.
    """
    for node in json_lines(path):
        if node.has("query"):
            passage, found, question = (
                node.text("query").removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
            )
            if not found:
                raise InputError("the query contains no question", where=node.where)
            gold = node.number("gold")
        else:
            passage, question = node.text("passage"), node.text("question")
            key = "label" if node.has("label") else "answer"  # "answer" before SuperGLUE renamed it
            gold = 0 if node.boolean(key) else 1
        yield {"id": _id(node), "passage": passage, "question": question, "gold": gold}


def read_cb(path: Path) -> Iterator[Row]:
    """Read CommitmentBank: {premise, hypothesis, gold}, 0 for true, 1 for false, 2 for neither."""
    for node in json_lines(path):
        yield _pair(node, node.one_of("label", ENTAILMENT_LABELS))


def read_rte(path: Path) -> Iterator[Row]:
    """Read RTE: {premise, hypothesis, gold}, 0 for entailment."""
    for node in json_lines(path):
        yield _pair(node, node.one_of("label", {"entailment": 0, "not_entailment": 1}))


def _pair(node: JsonNode, gold: int) -> Row:
    return {
        "id": _id(node),
        "premise": node.text("premise"),
        "hypothesis": node.text("hypothesis"),
        "gold": gold,
    }


def read_copa(path: Path) -> Iterator[Row]:
    """Read COPA: {context, choices, gold}.

    A context is like "The man turned on the faucet so", a choice "water flowed from the spout.".
    """
    for node in json_lines(path):
        relation = node.text("question")
        if relation not in ("cause", "effect"):
            raise InputError(f"'question' is {relation!r}, not cause or effect", where=node.where)
        premise = node.text("premise").strip().removesuffix(".")
        choices = [node.text("choice1"), node.text("choice2")]
        yield {
            "id": _id(node),
            "context": f"{premise} {'because' if relation == 'cause' else 'so'}",
            "choices": [_uncapitalize(choice) for choice in choices],
            "gold": node.number("label"),
        }


def _uncapitalize(sentence: str) -> str:
    return sentence if sentence.startswith(("I ", "I'")) else sentence[:1].lower() + sentence[1:]


def read_wic(path: Path) -> Iterator[Row]:
    """Read WiC: {sentence1, sentence2, word, gold}, 0 for yes."""
    for node in json_lines(path):
        texts = {name: node.text(name) for name in ("sentence1", "sentence2", "word")}
        yield {"id": _id(node), **texts, "gold": 0 if node.boolean("label") else 1}


def read_wsc(path: Path) -> Iterator[Row]:
    """Read WSC: {passage, pronoun, answers, label}, with the pronoun in asterisks in the passage.

    If the label is false, the noun is the wrong one and the correct one is unknown. `answers` is
    then "" and the noun, and the item is no few-shot example.
    """
    for node in json_lines(path):
        words, target = node.text("text").split(" "), node.node("target")
        place, pronoun = target.number("span2_index"), target.text("span2_text")
        marked = " ".join(words[place : place + len(pronoun.split())])
        if pronoun.lower() not in marked.lower():
            raise InputError(f"{pronoun!r} is not at word {place} of the text", where=node.where)
        words[place : place + len(pronoun.split())] = [
            re.sub(re.escape(pronoun), lambda found: f"*{found[0]}*", marked, count=1, flags=re.I)
        ]
        noun, label = target.text("span1_text"), node.boolean("label")
        passage = re.sub(r" (?=[.,;:!?]|'s\b|n't\b)", "", " ".join(words))
        yield {
            "id": _id(node),
            "passage": passage,
            "pronoun": pronoun,
            "answers": [noun] if label else ["", noun],
            "label": label,
        }


def read_multirc(path: Path) -> Iterator[Row]:
    """Read MultiRC: {passage, question, option, gold, group}, a row per option, 0 for true.

    The options of a question are a group.
    """
    for node in json_lines(path):
        passage = node.node("passage")
        for question in passage.nodes("questions"):
            for option in question.nodes("answers"):
                yield {
                    "id": f"{_id(node)}/{question.number('idx')}/{option.number('idx')}",
                    "passage": passage.text("text"),
                    "question": question.text("question"),
                    "option": option.text("text"),
                    "gold": {1: 0, 0: 1}.get(option.number("label"), -1),
                    "group": f"{_id(node)}/{question.number('idx')}",
                }


def read_record(path: Path) -> Iterator[Row]:
    """Read ReCoRD: {passage, before, after, choices, gold, group}.

    `before` and `after` surround the gap; the choices are the distinct entities of the passage, of
    which several may be correct. The highlights of the passage follow it as bullets, "- ..".
    """
    for node in json_lines(path):
        passage = node.node("passage")
        text = passage.text("text")
        entities = list(
            dict.fromkeys(
                text[one.number("start") : one.number("end") + 1]
                for one in passage.nodes("entities")
            )
        )
        body, *highlights = text.split("\n@highlight\n")
        for query in node.nodes("qas"):
            before, gap, after = query.text("query").partition("@placeholder")
            right = {answer.text("text") for answer in query.nodes("answers")}
            if not gap or not right & set(entities):
                raise InputError(
                    "the query has no @placeholder, or its answer is not an entity of the passage",
                    where=query.where,
                )
            yield {
                "id": f"{_id(node)}/{query.number('idx')}",
                "passage": "\n".join([body, *(f"- {highlight}" for highlight in highlights)]),
                "before": before,
                "after": after,
                "choices": entities,
                "gold": [number for number, entity in enumerate(entities) if entity in right],
                "group": _id(node),
            }
