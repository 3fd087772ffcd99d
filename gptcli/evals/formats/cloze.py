"""Formats with a missing word: LAMBADA, the Children's Book Test, Winograd and Winogrande."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.files import Row, line_id, numbered_lines, read_bytes
from gptcli.evals.formats.tables import is_table, table_rows
from gptcli.text.detokenize import detokenize_book
from gptcli.toml_json import shown

WINOGRAD_SCHEMAS = 273
POSSESSIVE = ("his", "their", "its", "my", "our")


def read_lambada(path: Path) -> Iterator[Row]:
    """Read LAMBADA: {text, context, word}.

    The file is a table with "text" (OpenAI's version) or a passage per line (the original).
    """
    passages = (
        ((node.where, node.text("text")) for node in table_rows(path))
        if is_table(path)
        else (one for one in numbered_lines(path) if one[1].strip())
    )
    for where, text in passages:
        context, _, word = text.rpartition(" ")
        if not context.strip() or not word.strip():
            raise InputError("has no last word to predict", where=where)
        yield {"id": line_id(where), "text": text, "context": context, "word": word}


def read_cbt(path: Path) -> Iterator[Row]:
    """Read the Children's Book Test: {context, before, after, choices, gold}.

    The context is twenty sentences; `before` and `after` surround the gap in the next one. The
    tokenization is undone; the choices keep their order.
    """
    if not is_table(path):
        yield from _cbt_lines(path)
        return
    for node in table_rows(path):
        texts = (node.text("question"), node.text("answer"), node.texts("options"))
        yield _cbt_row(node.where, node.texts("sentences"), *texts)


def _cbt_row(
    where: str, sentences: list[str], question: str, answer: str, choices: list[str]
) -> Row:
    if answer not in choices or question.count("XXXXX") != 1:
        raise InputError(
            "expected a sentence with one XXXXX, its answer, and choices that contain it",
            where=where,
        )
    before, _, after = detokenize_book(question).partition("XXXXX")
    return {
        "id": line_id(where),
        "context": detokenize_book(" ".join(sentences)),
        "before": before,
        "after": after,
        "choices": choices,
        "gold": choices.index(answer),
    }


def _cbt_lines(path: Path) -> Iterator[Row]:
    sentences: list[str] = []
    first = str(path)
    for where, line in numbered_lines(path):
        if not line.strip():
            if sentences:
                raise InputError(
                    f"an item ends after {len(sentences)} sentences, without a question",
                    where=where,
                )
            continue
        first = first if sentences else where
        number, _, text = line.partition(" ")
        if number != str(len(sentences) + 1):
            raise InputError(
                f"sentence number {shown(number)} follows number {len(sentences)}", where=where
            )
        if "\t" not in text:
            sentences.append(text)
            continue
        question, answer, *more = text.split("\t")
        choices = more[-1].split("|") if more else []
        yield _cbt_row(first, sentences, question, answer, choices)
        sentences = []
    if sentences:
        raise InputError(
            f"the last item has {len(sentences)} sentences, but no question", where=first
        )


def read_winogrande(path: Path) -> Iterator[Row]:
    """Read Winogrande: {contexts, target, sentences, gold}.

    A context ends with an option in the gap; the target is the text after the gap.
    """
    for node in table_rows(path):
        before, gap, after = node.text("sentence").partition("_")
        if not gap:
            raise InputError("the sentence has no _", where=node.where)
        options = [node.text("option1"), node.text("option2")]
        gold = node.one_of("answer", {"1": 0, "2": 1})
        yield _schema(
            str(node.value.get("qID", line_id(node.where))),
            [before + option for option in options],
            after,
            gold,
        )


def read_winograd(path: Path) -> Iterator[Row]:
    """Read Winograd schemas: {contexts, target, sentences, gold}.

    The file is the published XML, its export of the hub, or JSON lines {context_options,
    continuation, gold}. The 273 schemas of both papers are the first of today's 285.
    """
    rows = _winograd_rows(path) if is_table(path) else _winograd_xml(path)
    yield from islice(rows, WINOGRAD_SCHEMAS)


def _winograd_rows(path: Path) -> Iterator[Row]:
    for node in table_rows(path):
        if node.has("context_options"):
            contexts, target = node.texts("context_options"), " " + node.text("continuation")
            yield _schema(line_id(node.where), contexts, target, node.number("gold"))
            continue
        text, pronoun, place = node.text("text"), node.text("pronoun"), node.number("pronoun_loc")
        options, gold = node.texts("options"), node.number("label")
        if text[place : place + len(pronoun)] != pronoun or not 0 <= gold < len(options):
            raise InputError(
                f"{shown(pronoun)} is not at {place} of the text, or the label is not one of the "
                f"{len(options)} options",
                where=node.where,
            )
        before, after = text[:place].rstrip(), text[place + len(pronoun) :].lstrip()
        yield _substituted(line_id(node.where), (before, pronoun, after), options, gold)


def _winograd_xml(path: Path) -> Iterator[Row]:
    try:  # bytes, because the file declares its encoding
        root = ElementTree.fromstring(read_bytes(path))
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        line = f":{error.position[0]}" if isinstance(error, ElementTree.ParseError) else ""
        raise InputError(f"not valid XML: {error}", where=f"{path}{line}") from None
    for number, schema in enumerate(root.iter("schema"), 1):
        where = f"{path}: schema {number}"
        before, pronoun, after = (
            _words(schema, f"text/{part}", where) for part in ("txt1", "pron", "txt2")
        )
        answers = [
            " ".join((answer.text or "").split()) for answer in schema.iterfind("answers/answer")
        ]
        right = _words(schema, "correctAnswer", where).strip(". ")
        if (
            not all(answers)
            or not 2 <= len(answers) <= 5
            or right not in list("ABCDE"[: len(answers)])
        ):
            raise InputError(
                f"the correct answer is {shown(right)} of {len(answers)}, or an answer is empty",
                where=where,
            )
        gold = "ABCDE".index(right)
        yield _substituted(f"{path.name}:{number}", (before, pronoun, after), answers, gold)


def _substituted(row_id: str, parts: tuple[str, str, str], answers: list[str], gold: int) -> Row:
    """Return the schema with each answer in place of the pronoun, the middle one of `parts`."""
    before, pronoun, after = parts
    contexts = [
        f"{before} {_substitute(answer, before, pronoun, after)}".lstrip() for answer in answers
    ]
    gap = "" if re.match(r"[.,;:!?']", after) else " "
    return _schema(row_id, contexts, gap + after, gold)


def _words(schema: ElementTree.Element, tag: str, where: str) -> str:
    element = schema.find(tag)
    if element is None:
        raise InputError(f"has no <{tag.rpartition('/')[2]}>", where=where)
    return " ".join((element.text or "").split())


def _substitute(answer: str, before: str, pronoun: str, after: str) -> str:
    """Return an answer in the form that replaces the pronoun.

    "The trophy" becomes "the trophy" inside a sentence, and "the trophy's" for a possessive "his".
    """
    begins_sentence = not before or before[-1] in '.!?"'
    article, space, rest = answer.partition(" ")
    if not begins_sentence and article in ("The", "A", "An", "My", "His", "Her", "Their"):
        answer = article.lower() + space + rest
    if begins_sentence:
        answer = answer[0].upper() + answer[1:]
    is_possessive = pronoun.lower() in POSSESSIVE or (
        pronoun.lower() == "her" and re.match(r"\w", after)
    )
    return f"{answer}'s" if is_possessive else answer


def _schema(row_id: str, contexts: list[str], target: str, gold: int) -> Row:
    return {
        "id": row_id,
        "contexts": contexts,
        "target": target,
        "sentences": [context + target for context in contexts],
        "gold": gold,
    }
