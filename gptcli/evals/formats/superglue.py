"""Formats of SuperGLUE's eight tasks: the original JSON lines, and the hub's exports."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.choice import ENTAILMENT_LABELS
from gptcli.evals.formats.files import JsonNode, Row, line_id
from gptcli.evals.formats.tables import table_rows
from gptcli.evals.metrics import normalize_answer
from gptcli.toml_json import shown

RTE_LABELS = {"entailment": 0, "not_entailment": 1, "0": 0, "1": 1}  # numbers as on the hub
# Words either side of where a WSC item says its pronoun is: some of its items are off by one.
WSC_TOLERANCE = (0, -1, 1)


def _id(node: JsonNode) -> str:
    index = node.value.get("idx", line_id(node.where))
    return "/".join(map(str, index.values())) if isinstance(index, dict) else str(index)


def read_boolq(path: Path) -> Iterator[Row]:
    """Read BoolQ: {passage, question, gold}, 0 for yes.

    JSON lines {query: passage and "Question: ..?", choices, gold} are also accepted.
    """
    for node in table_rows(path):
        if node.has("query"):
            passage, found, question = (
                node.text("query").removesuffix("?\nAnswer:").rpartition("\nQuestion: ")
            )
            if not found:
                raise InputError("the query contains no question", where=node.where)
            words, gold = ["yes", "no"], node.number("gold")
            listed = node.texts("choices") if node.has("choices") else words
            if sorted(listed) != ["no", "yes"] or gold not in (0, 1):
                raise InputError(
                    f"the correct choice is number {gold} of {listed}, not yes or no",
                    where=node.where,
                )
            gold = words.index(listed[gold])
        else:
            passage, question = node.text("passage"), node.text("question")
            key = "label" if node.has("label") else "answer"  # "answer" before SuperGLUE renamed it
            gold = 0 if node.boolean(key) else 1
        question = question.removesuffix("?").rstrip()
        yield {"id": _id(node), "passage": passage, "question": question, "gold": gold}


def read_cb(path: Path) -> Iterator[Row]:
    """Read CommitmentBank: {premise, hypothesis, gold}, 0 for true, 1 for false, 2 for neither."""
    for node in table_rows(path):
        labels = {**ENTAILMENT_LABELS, "0": 0, "1": 1, "2": 2}
        yield _pair(node, node.one_of("label", labels))


def read_rte(path: Path) -> Iterator[Row]:
    """Read RTE: {premise, hypothesis, gold}, 0 for entailment."""
    for node in table_rows(path):
        yield _pair(node, node.one_of("label", RTE_LABELS))


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
    for node in table_rows(path):
        relation = node.text("question")
        if relation not in ("cause", "effect"):
            raise InputError(
                f"'question' is {shown(relation)}, not cause or effect", where=node.where
            )
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
    for node in table_rows(path):
        texts = {name: node.text(name) for name in ("sentence1", "sentence2", "word")}
        yield {"id": _id(node), **texts, "gold": 0 if node.boolean("label") else 1}


def read_wsc(path: Path) -> Iterator[Row]:
    """Read WSC: {passage, pronoun, answers, label}, with the pronoun in asterisks in the passage.

    The noun is in lower case, as in GPT-3's figure G.33. If the label is false, it is the wrong one
    and the correct one is unknown. `answers` is then "" and the noun, and the item is no few-shot
    example.
    """
    for node in table_rows(path):
        words = node.text("text").split(" ")
        target = node.node("target") if node.has("target") else node
        pronoun, stated = target.text("span2_text"), target.number("span2_index")
        length = len(pronoun.split())
        places = [
            stated + by
            for by in WSC_TOLERANCE
            if stated + by >= 0
            and re.search(
                rf"(?<!\w){re.escape(pronoun)}(?!\w)",
                " ".join(words[stated + by : stated + by + length]),
                re.IGNORECASE,
            )
        ]
        if not places:
            raise InputError(
                f"{shown(pronoun)} is not at word {stated} of the text", where=node.where
            )
        place = places[0]
        marked = " ".join(words[place : place + length])
        words[place : place + length] = [
            re.sub(
                rf"(?<!\w){re.escape(pronoun)}(?!\w)",
                lambda found: f"*{found[0]}*",
                marked,
                count=1,
                flags=re.IGNORECASE,
            )
        ]
        noun, label = target.text("span1_text").lower(), node.boolean("label")
        passage = re.sub(r" (?=[.,;:!?]|'s\b|n't\b)", "", " ".join(words))
        yield {
            "id": _id(node),
            "passage": passage,
            "pronoun": pronoun,
            "answers": [noun] if label else ["", noun],
            "label": label,
        }


def read_multirc(path: Path) -> Iterator[Row]:
    """Read MultiRC: {passage, question, option, gold, group, key}, a row per option, 0 for true.

    The options of a question are a group, and `key` contains all of them with their labels, a line
    each: the question as a few-shot example.
    """
    for _, options in groupby(_multirc_options(path), key=itemgetter("group")):
        rows = list(options)
        key = "\n".join(f"- [{'False' if row['gold'] else 'True'}] {row['option']}" for row in rows)
        for row in rows:
            yield {**row, "key": key}


def _multirc_options(path: Path) -> Iterator[Row]:
    for node in table_rows(path):
        if not isinstance(node.value.get("passage"), dict):  # an export of the hub
            index = node.node("idx")
            group = f"{index.number('paragraph')}/{index.number('question')}"
            yield _multirc_option(
                f"{group}/{index.number('answer')}",
                (node.text("paragraph"), node.text("question"), node.text("answer")),
                node,
            )
            continue
        passage = node.node("passage")
        for question in passage.nodes("questions"):
            for option in question.nodes("answers"):
                yield _multirc_option(
                    f"{_id(node)}/{question.number('idx')}/{option.number('idx')}",
                    (passage.text("text"), question.text("question"), option.text("text")),
                    option,
                )


def _multirc_option(row_id: str, texts: tuple[str, str, str], option: JsonNode) -> Row:
    passage, question, text = texts
    return {
        "id": row_id,
        "passage": passage,
        "question": question,
        "option": text,
        "gold": 0 if option.boolean("label") else 1,
        "group": row_id.rpartition("/")[0],
    }


def read_record(path: Path) -> Iterator[Row]:
    """Read ReCoRD: {passage, before, after, choices, gold, answers, group}.

    `before` and `after` surround the gap; the choices are the distinct entities of the passage, of
    which several may be correct: those that equal an accepted answer after normalisation, as in
    ReCoRD's script. The highlights follow the passage as bullets, "- ..".
    """
    for node in table_rows(path):
        if isinstance(node.value.get("passage"), str):  # an export of the hub
            index = node.node("idx")
            yield _record_row(
                node,
                (index.number("passage"), index.number("query")),
                node.text("passage"),
                node.texts("entities"),
                node.texts("answers"),
            )
            continue
        text = node.node("passage").text("text")
        entities = [
            text[one.number("start") : one.number("end") + 1]
            for one in node.node("passage").nodes("entities")
        ]
        for query in node.nodes("qas"):
            answers = [answer.text("text") for answer in query.nodes("answers")]
            yield _record_row(query, (_id(node), query.number("idx")), text, entities, answers)


def _record_row(
    query: JsonNode, ids: tuple[object, object], text: str, entities: list[str], answers: list[str]
) -> Row:
    before, gap, after = query.text("query").partition("@placeholder")
    choices = list(dict.fromkeys(entities))
    right = {normalize_answer(answer) for answer in answers}
    gold = [n for n, entity in enumerate(choices) if normalize_answer(entity) in right]
    if not gap or not gold:
        raise InputError(
            "the query has no @placeholder, or its answer is not an entity of the passage",
            where=query.where,
        )
    body, *highlights = re.split(r"\n@highlight\n+", text)
    return {
        "id": f"{ids[0]}/{ids[1]}",
        "passage": "\n".join([f"{body}\n", *(f"- {highlight}" for highlight in highlights)]),
        "before": before,
        "after": after,
        "choices": choices,
        "gold": gold,
        "answers": list(dict.fromkeys(answers)),
        "group": str(ids[0]),
    }
