"""Formats of SuperGLUE's eight tasks, all JSON lines."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.choice import ENTAILMENT_LABELS
from gptcli.evals.formats.files import JsonNode, Row, json_lines, line_id


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
