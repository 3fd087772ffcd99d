"""Formats of questions answered in free form: rows with `answers`, the accepted ones, of which the
first is shown in solved examples.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.files import Node, Row, document, kind_of, line_id, objects

NO_ANSWER = "N/A"


def read_squad(path: Path) -> Iterator[Row]:
    """SQuAD 1.1 and 2.0: {title, context, question, answers}; a question that the text leaves open
    is answered N/A.
    """
    for article in document(path).nodes("data"):
        for paragraph in article.nodes("paragraphs"):
            for question in paragraph.nodes("qas"):
                answers = _unique(answer.text("text") for answer in question.nodes("answers"))
                yield {
                    "id": question.text("id"),
                    "title": article.text("title"),
                    "context": paragraph.text("context"),
                    "question": question.text("question"),
                    "answers": answers or [NO_ANSWER],
                }


def read_quac(path: Path) -> Iterator[Row]:
    """QuAC: {title, section, context, history, question, answers, group}; the history shows the
    first answers to earlier questions.
    """
    for article in document(path).nodes("data"):
        for paragraph in article.nodes("paragraphs"):
            history = ""
            for question in paragraph.nodes("qas"):
                answers = [answer.text("text") for answer in question.nodes("answers")]
                if not answers:
                    raise InputError("has no answers", where=question.where)
                yield {
                    "id": question.text("id"),
                    "title": article.text("title"),
                    "section": article.text("section_title"),
                    "context": paragraph.text("context").removesuffix("CANNOTANSWER").rstrip(),
                    "history": history,
                    "question": question.text("question"),
                    "answers": answers,
                    "group": question.text("id").partition("_q#")[0],
                }
                history += _turn(question.text("question"), answers[0])


def read_coqa(path: Path) -> Iterator[Row]:
    """CoQA: {story, history, question, answers, group}, a row a turn, of the original JSON or of a
    story a line.
    """
    stories = objects(path) if kind_of(path) == ".jsonl" else iter(document(path).nodes("data"))
    for story in stories:
        turns = (
            [(turn.text("question"), turn.texts("answers")) for turn in story.nodes("turns")]
            if story.has("turns")
            else _coqa_turns(story)
        )
        history = ""
        for number, (question, answers) in enumerate(turns, 1):
            if not answers:
                raise InputError(f"turn {number} has no answers", where=story.where)
            yield {
                "id": f"{story.text('id')}:{number}",
                "story": story.text("story"),
                "history": history,
                "question": question,
                "answers": answers,
                "group": story.text("id"),
            }
            history += _turn(question, answers[0])


def _turn(question: str, answer: str) -> str:
    return f"Q: {question}\n\nA: {answer}\n\n"


def _coqa_turns(story: Node) -> list[tuple[str, list[str]]]:
    lists = [story.nodes("answers")]
    if story.has("additional_answers"):
        more = story.node("additional_answers")
        lists += [more.nodes(name) for name in sorted(more.value)]
    questions = story.nodes("questions")
    if any(len(answers) != len(questions) for answers in lists):
        raise InputError(
            f"{len(questions)} questions, and answers to another number", where=story.where
        )
    return [
        (question.text("input_text"), [answer.text("input_text") for answer in answers])
        for question, *answers in zip(questions, *lists, strict=True)
    ]


def read_drop(path: Path) -> Iterator[Row]:
    """DROP: {passage, question, answers}: numbers, dates and spans as text; the spans of one answer
    are joined by commas.
    """
    node = document(path)
    for name in node.value if isinstance(node.value, dict) else ():
        passage = node.node(name)
        for pair in passage.nodes("qa_pairs"):
            given = [
                pair.node("answer"),
                *(pair.nodes("validated_answers") if pair.has("validated_answers") else []),
            ]
            answers = _unique(filter(None, map(_drop_answer, given)))
            if not answers:
                raise InputError("has no answer", where=pair.where)
            yield {
                "id": pair.text("query_id"),
                "passage": passage.text("passage").strip(),
                "question": pair.text("question"),
                "answers": answers,
            }


def _drop_answer(answer: Node) -> str:
    if answer.has("number") and answer.value["number"] != "":
        return str(answer.value["number"])
    if spans := answer.texts("spans"):
        return ", ".join(spans)
    date = answer.node("date")
    return " ".join(
        date.text(part) for part in ("day", "month", "year") if date.has(part) and date.text(part)
    )


def read_trivia_qa(path: Path) -> Iterator[Row]:
    """TriviaQA: {question, answers}, the value and its aliases."""
    for node in document(path).nodes("Data"):
        answer = node.node("Answer")
        yield {
            "id": node.text("QuestionId"),
            "question": node.text("Question"),
            "answers": _unique([answer.text("Value"), *answer.texts("Aliases")]),
        }


def read_natural_questions(path: Path) -> Iterator[Row]:
    """Natural Questions, open: {question, answers}; the question begins large and ends in a
    question mark, as GPT-3 was asked.
    """
    for node in objects(path):
        question = node.text("question").rstrip("? ")
        answers = node.texts("answer")
        if not question or not answers:
            raise InputError("has no question or no answer", where=node.where)
        yield {
            "id": line_id(node.where),
            "question": f"{question[0].upper()}{question[1:]}?",
            "answers": answers,
        }


def read_web_questions(path: Path) -> Iterator[Row]:
    """WebQuestions: {question, answers} of its JSON list, whose answers are written (list
    (description "Lightning rod")).
    """
    root = document(path)
    for node in Node({"file": root.value}, str(path)).nodes("file"):
        answers = [
            quoted or bare
            for quoted, bare in re.findall(
                r'\(description (?:"([^"]*)"|([^()"]+))\)', node.text("targetValue")
            )
        ]
        if not answers:
            raise InputError("'targetValue' holds no (description ..)", where=node.where)
        question = node.text("utterance")
        yield {
            "id": line_id(f"{path}:{node.where.rpartition('[')[2][:-1]}"),
            "question": question,
            "answers": answers,
        }


def _unique(texts: Iterator[str] | filter[str] | list[str]) -> list[str]:
    return list(dict.fromkeys(texts))
