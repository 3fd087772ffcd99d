"""Formats of free-form tasks: question answering, translation, summaries, synthetic tasks.

Rows of questions contain the accepted `answers`, the first of which few-shot examples show.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Iterator
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
    read_whole_text,
)

NO_ANSWER = "N/A"


def read_squad(path: Path) -> Iterator[Row]:
    """Read SQuAD 1.1 and 2.0: {title, context, question, answers}.

    The answer to a question that the context does not answer is N/A.
    """
    for article in json_document(path).nodes("data"):
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
    """Read QuAC: {title, section, context, history, question, answers, group}.

    The history contains the earlier questions, each with its first answer.
    """
    for article in json_document(path).nodes("data"):
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
    """Read CoQA: {story, history, question, answers, group}, a row per turn.

    The file is the original JSON, or JSON lines with a story each.
    """
    stories = (
        json_lines(path)
        if content_suffix(path) == ".jsonl"
        else iter(json_document(path).nodes("data"))
    )
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


def _coqa_turns(story: JsonNode) -> list[tuple[str, list[str]]]:
    lists = [story.nodes("answers")]
    if story.has("additional_answers"):
        more = story.node("additional_answers")
        lists += [more.nodes(name) for name in sorted(more.value)]
    questions = story.nodes("questions")
    if any(len(answers) != len(questions) for answers in lists):
        raise InputError(
            f"{len(questions)} questions, but another number of answers", where=story.where
        )
    return [
        (question.text("input_text"), [answer.text("input_text") for answer in answers])
        for question, *answers in zip(questions, *lists, strict=True)
    ]


def read_drop(path: Path) -> Iterator[Row]:
    """Read DROP: {passage, question, answers}, with numbers, dates and spans as text.

    The spans of one answer are joined by ", ".
    """
    node = json_document(path)
    for name in node.value if isinstance(node.value, dict) else ():
        passage = node.node(name)
        for pair in passage.nodes("qa_pairs"):
            candidates = [
                pair.node("answer"),
                *(pair.nodes("validated_answers") if pair.has("validated_answers") else []),
            ]
            answers = _unique(filter(None, map(_drop_answer, candidates)))
            if not answers:
                raise InputError("has no answer", where=pair.where)
            yield {
                "id": pair.text("query_id"),
                "passage": passage.text("passage").strip(),
                "question": pair.text("question"),
                "answers": answers,
            }


def _drop_answer(answer: JsonNode) -> str:
    if answer.has("number") and answer.value["number"] != "":
        return str(answer.value["number"])
    if spans := answer.texts("spans"):
        return ", ".join(spans)
    date = answer.node("date")
    return " ".join(
        date.text(part) for part in ("day", "month", "year") if date.has(part) and date.text(part)
    )


def read_trivia_qa(path: Path) -> Iterator[Row]:
    """Read TriviaQA: {question, answers}, the value and its aliases."""
    for node in json_document(path).nodes("Data"):
        answer = node.node("Answer")
        yield {
            "id": node.text("QuestionId"),
            "question": node.text("Question"),
            "answers": _unique([answer.text("Value"), *answer.texts("Aliases")]),
        }


def read_natural_questions(path: Path) -> Iterator[Row]:
    """Read open Natural Questions: {question, answers}.

    The question is capitalized and ends with a question mark, as in GPT-3's prompts.
    """
    for node in json_lines(path):
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
    """Read WebQuestions: {question, answers}.

    In the JSON list answers are written (list (description "Lightning rod")).
    """
    root = json_document(path)
    for node in JsonNode({"file": root.value}, str(path)).nodes("file"):
        answers = [
            quoted or bare
            for quoted, bare in re.findall(
                r'\(description (?:"([^"]*)"|([^()"]+))\)', node.text("targetValue")
            )
        ]
        if not answers:
            raise InputError("'targetValue' contains no (description ..)", where=node.where)
        question = node.text("utterance")
        yield {
            "id": line_id(f"{path}:{node.where.rpartition('[')[2][:-1]}"),
            "question": question,
            "answers": answers,
        }


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def read_parallel(path: Path) -> Iterator[Row]:
    """Read WMT's test sets: a row per sentence, with a field per language, {en, fr}.

    `path` is the file of one language. The others are the files next to it whose names differ only
    in the language and in src or ref: newstest2014-fren-src.en.sgm and
    newstest2014-fren-ref.fr.sgm, or newstest2014.en and newstest2014.fr with a sentence per line.
    """
    match = re.fullmatch(
        r"(.+?)(-src|-ref)?\.([a-z]{2})((?:\.sgm)?(?:\.gz|\.bz2|\.zst)?)", path.name
    )
    if not match:
        raise InputError(
            "the file name has no language",
            where=path,
            hint="it should be like newstest2014-fren-src.en.sgm, or newstest2014.en",
        )
    stem, role, language, rest = match.groups()
    other = {"-src": "-ref", "-ref": "-src"}.get(role or "", "")
    pattern = re.compile(rf"{re.escape(stem + other)}\.([a-z]{{2}}){re.escape(rest)}")
    files = {language: path}
    files |= {
        found[1]: file
        for file in sorted(path.parent.iterdir())
        if (found := pattern.fullmatch(file.name)) and found[1] != language
    }
    if len(files) < 2:
        raise InputError(
            "there is no file with the same sentences in another language",
            where=path,
            hint=f"expected next to it: {stem}{other}.XX{rest}",
        )
    texts = {name: _sentences(file) for name, file in files.items()}
    for name, sentences in texts.items():
        if len(sentences) != len(texts[language]):
            raise InputError(
                f"{len(sentences)} sentences, but {path.name} has {len(texts[language])}",
                where=files[name],
            )
    for number in range(len(texts[language])):
        yield {
            "id": f"{stem}:{number + 1}",
            **{name: sentences[number] for name, sentences in texts.items()},
        }


def _sentences(path: Path) -> list[str]:
    if content_suffix(path) == ".sgm":
        found = re.findall(
            r"<seg[^>]*>(.*?)</seg>", read_whole_text(path), re.DOTALL | re.IGNORECASE
        )
        return [" ".join(html.unescape(sentence).split()) for sentence in found]
    return [line.strip() for _, line in numbered_lines(path)]


def read_summaries(path: Path) -> Iterator[Row]:
    """Read CNN / Daily Mail: {article, summary}, with the highlights as the lines of the summary.

    `path` is a .story file, a folder of them, or JSON lines.
    """
    if content_suffix(path) == ".jsonl":
        for node in json_lines(path):
            is_list = isinstance(node.value.get("highlights"), list)
            highlights = (
                node.texts("highlights") if is_list else node.text("highlights").splitlines()
            )
            yield {
                "id": str(node.value.get("id", line_id(node.where))),
                "article": node.text("article"),
                "summary": "\n".join(highlights),
            }
        return
    for file in sorted(path.glob("*.story")) if path.is_dir() else [path]:
        article, *highlights = (
            " ".join(part.split()) for part in read_whole_text(file).split("@highlight")
        )
        if not article or not highlights:
            raise InputError("not an article followed by highlights", where=file)
        yield {"id": file.stem, "article": article, "summary": "\n".join(highlights)}


def read_synthetic(path: Path) -> Iterator[Row]:
    """Read GPT-3's released samples of synthetic tasks: {prompt, answer}.

    They are JSON lines {"context": "\\n\\nQ: ..\\n\\nA:", "completion": " 143"}.
    """
    for node in json_lines(path):
        yield {
            "id": line_id(node.where),
            "prompt": node.text("context").lstrip("\n"),
            "answer": node.text("completion").strip(" "),
        }
