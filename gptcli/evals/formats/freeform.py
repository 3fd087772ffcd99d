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
    line_id,
    numbered_lines,
    read_whole_text,
    turn,
)
from gptcli.evals.formats.tables import is_table, table_rows
from gptcli.evals.metrics import Spans

NO_ANSWER = "N/A"


def read_squad(path: Path) -> Iterator[Row]:
    """Read SQuAD 1.1 and 2.0: {title, context, history, question, answers}.

    The history contains the paragraph's earlier questions, each with its first answer, as in
    GPT-3's figure G.28. The answer to a question that the context does not answer is N/A.
    """
    history, context = "", ""
    for row in _squad_rows(path):
        history = history if row["context"] == context else ""
        context = row["context"]
        yield {**row, "history": history}
        history += turn(row["question"], row["answers"][0])


def _squad_rows(path: Path) -> Iterator[Row]:
    for node in table_rows(path):
        if not node.has("paragraphs"):  # an export of the hub
            yield _squad_row(node, node.text("title"), node.text("context"))
            continue
        for paragraph in node.nodes("paragraphs"):
            for question in paragraph.nodes("qas"):
                yield _squad_row(question, node.text("title"), paragraph.text("context"))


def _squad_row(question: JsonNode, title: str, context: str) -> Row:
    return {
        "id": question.text("id"),
        "title": title,
        "context": context,
        "question": question.text("question"),
        "answers": _unique(text for (text,) in question.columns("answers", "text")) or [NO_ANSWER],
    }


def read_quac(path: Path) -> Iterator[Row]:
    """Read QuAC: {title, section, context, history, question, answers, group}.

    The history contains the earlier questions, each with its first answer.
    """
    for node in table_rows(path):
        if node.has("dialogue_id"):  # an export of the hub
            turns = _quac_exported(node)
            names = ("wikipedia_page_title", "section_title", "context")
            yield from _quac_dialogue([node.text(name) for name in names], turns)
            continue
        for paragraph in node.nodes("paragraphs"):
            turns = [
                (
                    question.text("id"),
                    question.text("question"),
                    [answer.text("text") for answer in question.nodes("answers")],
                    question.where,
                )
                for question in paragraph.nodes("qas")
            ]
            texts = [node.text("title"), node.text("section_title"), paragraph.text("context")]
            yield from _quac_dialogue(texts, turns)


def _quac_exported(node: JsonNode) -> list[tuple[str, str, list[str], str]]:
    ids, questions = node.texts("turn_ids"), node.texts("questions")
    answers = node.node("answers").value.get("texts")
    if not isinstance(answers, list) or not len(ids) == len(questions) == len(answers):
        raise InputError(
            f"{len(questions)} questions, but another number of answers", where=node.where
        )
    lists = [JsonNode({"texts": texts}, node.where).texts("texts") for texts in answers]
    return [(*one, node.where) for one in zip(ids, questions, lists, strict=True)]


def _quac_dialogue(texts: list[str], turns: list[tuple[str, str, list[str], str]]) -> Iterator[Row]:
    title, section, context = texts
    history = ""
    for row_id, question, answers, where in turns:
        if not answers:
            raise InputError("has no answers", where=where)
        yield {
            "id": row_id,
            "title": title,
            "section": section,
            "context": context.removesuffix("CANNOTANSWER").rstrip(),
            "history": history,
            "question": question,
            "answers": answers,
            "group": row_id.partition("_q#")[0],
        }
        history += turn(question, answers[0])


def read_coqa(path: Path) -> Iterator[Row]:
    """Read CoQA: {story, history, question, answers, group}, a row per turn.

    The file is the original JSON, an export of the hub, or JSON lines with a story each.
    """
    for story in table_rows(path):
        turns = (
            [(one.text("question"), one.texts("answers")) for one in story.nodes("turns")]
            if story.has("turns")
            else _coqa_turns(story)
        )
        name = story.text("id") if story.has("id") else line_id(story.where)
        history = ""
        for number, (question, answers) in enumerate(turns, 1):
            if not answers:
                raise InputError(f"turn {number} has no answers", where=story.where)
            yield {
                "id": f"{name}:{number}",
                "story": story.text("story"),
                "history": history,
                "question": question,
                "answers": answers,
                "group": name,
            }
            history += turn(question, answers[0])


def _coqa_turns(story: JsonNode) -> list[tuple[str, list[str]]]:
    def texts(node: JsonNode, key: str) -> list[str]:
        value = node.value.get(key)
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            return value  # an export of the hub has no more than the text of a question
        return [text for (text,) in node.columns(key, "input_text")]

    lists = [texts(story, "answers")]
    if story.has("additional_answers"):
        more = story.node("additional_answers")
        lists += [texts(more, name) for name in sorted(more.value) if more.has(name)]
    questions = texts(story, "questions")
    if any(len(answers) != len(questions) for answers in lists):
        raise InputError(
            f"{len(questions)} questions, but another number of answers", where=story.where
        )
    return [(question, answers) for question, *answers in zip(questions, *lists, strict=True)]


def read_drop(path: Path) -> Iterator[Row]:
    """Read DROP: {passage, question, answers}, with numbers, dates and spans as text.

    The spans of one answer are joined by ", ". The hub's export lists all accepted answers, each as
    a span.
    """
    for node in table_rows(path):
        if node.has("passage"):  # an export of the hub
            yield _drop_row(node, node.text("passage"))
            continue
        for name in node.value:
            passage = node.node(name)
            for pair in passage.nodes("qa_pairs"):
                yield _drop_row(pair, passage.text("passage"))


def _drop_row(pair: JsonNode, passage: str) -> Row:
    if pair.has("answers_spans"):
        answers = [Spans([span]) for span in pair.node("answers_spans").texts("spans") if span]
    else:
        candidates = [pair.node("answer")]
        validated = pair.value.get("validated_answers")
        if isinstance(validated, list):
            candidates += pair.nodes("validated_answers")
        elif isinstance(validated, dict):  # an object of lists
            columns = {name: list(values) for name, values in validated.items()}
            candidates += [
                JsonNode(dict(zip(columns, values, strict=True)), pair.where)
                for values in zip(*columns.values(), strict=False)
            ]
        answers = [answer for answer in map(_drop_answer, candidates) if answer]
    if not answers:
        raise InputError("has no answer", where=pair.where)
    return {
        "id": pair.text("query_id"),
        "passage": passage.strip(),
        "question": pair.text("question"),
        "answers": list(dict.fromkeys(answers)),
    }


def _drop_answer(answer: JsonNode) -> Spans:
    if answer.has("number") and answer.value["number"] != "":
        return Spans([str(answer.value["number"])])
    if answer.has("spans") and (spans := answer.texts("spans")):
        return Spans(spans)
    date = answer.node("date")
    parts = (date.text(part) for part in ("day", "month", "year") if date.has(part))
    return Spans([" ".join(filter(None, parts))])


def read_trivia_qa(path: Path) -> Iterator[Row]:
    """Read TriviaQA, or its export of the hub: {question, answers}, the value and its aliases."""
    for node in table_rows(path):
        exported = node.has("question")
        answer = node.node("answer" if exported else "Answer")
        value, aliases = ("value", "aliases") if exported else ("Value", "Aliases")
        yield {
            "id": node.text("question_id" if exported else "QuestionId"),
            "question": node.text("question" if exported else "Question"),
            "answers": _unique([answer.text(value), *answer.texts(aliases)]),
        }


def read_natural_questions(path: Path) -> Iterator[Row]:
    """Read open Natural Questions: {question, answers}.

    The question is capitalized and ends with a question mark, as in GPT-3's prompts.
    """
    for node in table_rows(path):
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
    """Read WebQuestions, or its export of the hub: {question, answers}.

    In the JSON list answers are written (list (description "Lightning rod")). The question begins
    with a capital and is otherwise as in the file, as in GPT-3's figure G.35.
    """
    for number, node in enumerate(table_rows(path)):
        exported = node.has("answers")
        answers = (
            node.texts("answers")
            if exported
            else descriptions(node.text("targetValue"), node.where)
        )
        question = node.text("question" if exported else "utterance")
        if not question or not answers:
            raise InputError("has no question or no answer", where=node.where)
        yield {
            "id": f"{path.name}:{number}",
            "question": question[0].upper() + question[1:],
            "answers": answers,
        }


_DESCRIPTION = re.compile(r"\(description (.*?)\)(?=\s*(?:\(description |\)\s*$))", re.DOTALL)


def descriptions(text: str, where: str) -> list[str]:
    """Return the answers in (list (description "Jazz") (description Blues)).

    An answer may contain brackets, and quotes, escaped or not. Raises InputError if there is none,
    or one that cannot be read.
    """
    answers = []
    for body in _DESCRIPTION.findall(text):
        body = body.strip()
        if len(body) > 1 and body[0] == body[-1] == '"':
            body = re.sub(r'\\(["\\])', r"\1", body[1:-1])
        answers.append(body)
    if not all(answers) or not answers or len(answers) != text.count("(description "):
        raise InputError(
            "'targetValue' contains no (description ..), or one that cannot be read", where=where
        )
    return answers


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(texts))


def read_parallel(path: Path) -> Iterator[Row]:
    """Read WMT's test sets: a row per sentence, with a field per language, {en, fr}.

    An export of the hub has a column "translation" with both. Otherwise `path` is the file of one
    language. The others are the files next to it whose names differ only in the language and in src
    or ref: newstest2014-fren-src.en.sgm and newstest2014-fren-ref.fr.sgm, or newstest2014.en and
    newstest2014.fr with a sentence per line.
    """
    if is_table(path):
        for node in table_rows(path):
            pair = node.node("translation") if node.has("translation") else node
            texts = {name: pair.text(name) for name in pair.value if re.fullmatch("[a-z]{2}", name)}
            if len(texts) < 2:
                raise InputError(
                    "has no two languages",
                    where=node.where,
                    hint="'translation' contains the sentence by language, such as en and fr",
                )
            yield {"id": line_id(node.where), **texts}
        return
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
    columns = {name: _sentences(file) for name, file in files.items()}
    for name, sentences in columns.items():
        if len(sentences) != len(columns[language]):
            raise InputError(
                f"{len(sentences)} sentences, but {path.name} has {len(columns[language])}",
                where=files[name],
            )
    for number in range(len(columns[language])):
        yield {
            "id": f"{stem}:{number + 1}",
            **{name: sentences[number] for name, sentences in columns.items()},
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

    `path` is a .story file, a folder of them, or a table, such as the hub's export.
    """
    if is_table(path):
        for node in table_rows(path):
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
    for node in table_rows(path):
        yield {
            "id": line_id(node.where),
            "prompt": node.text("context").lstrip("\n"),
            "answer": node.text("completion").strip(" "),
        }
