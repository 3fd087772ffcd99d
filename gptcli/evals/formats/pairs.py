"""Formats of texts in pairs: translations, articles and their summaries, GPT-3's synthetic
samples.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from gptcli.errors import InputError
from gptcli.evals.formats.files import Row, content, kind_of, line_id, lines, objects, read_whole


def read_parallel(path: Path) -> Iterator[Row]:
    """WMT's test sets: a row a sentence, with a field for each language, {en, fr}.

    `path` is one side, its partners the files beside it that differ in the language and in src or
    ref alone: newstest2014-fren-src.en.sgm and newstest2014-fren-ref.fr.sgm, or newstest2014.en and
    newstest2014.fr with a sentence a line.
    """
    named = re.fullmatch(
        r"(.+?)(-src|-ref)?\.([a-z]{2})((?:\.sgm)?(?:\.gz|\.bz2|\.zst)?)", path.name
    )
    if not named:
        raise InputError(
            "names no language",
            where=path,
            hint="such as newstest2014-fren-src.en.sgm, or newstest2014.en",
        )
    stem, role, language, rest = named.groups()
    other = {"-src": "-ref", "-ref": "-src"}.get(role or "", "")
    pattern = re.compile(rf"{re.escape(stem + other)}\.([a-z]{{2}}){re.escape(rest)}")
    sides = {language: path}
    sides |= {
        found[1]: file
        for file in sorted(path.parent.iterdir())
        if (found := pattern.fullmatch(file.name)) and found[1] != language
    }
    if len(sides) < 2:
        raise InputError(
            f"no file beside it holds the same sentences in another language: {stem}{other}.XX{rest}",
            where=path,
        )
    texts = {name: _sentences(file) for name, file in sides.items()}
    for name, sentences in texts.items():
        if len(sentences) != len(texts[language]):
            raise InputError(
                f"{len(sentences)} sentences, beside {len(texts[language])} of {path.name}",
                where=sides[name],
            )
    for number in range(len(texts[language])):
        yield {
            "id": f"{stem}:{number + 1}",
            **{name: sentences[number] for name, sentences in texts.items()},
        }


def _sentences(path: Path) -> list[str]:
    if kind_of(path) == ".sgm":
        found = re.findall(r"<seg[^>]*>(.*?)</seg>", read_whole(path), re.DOTALL | re.IGNORECASE)
        return [" ".join(html.unescape(sentence).split()) for sentence in found]
    return [line.strip() for _, line in lines(path)]


def read_summaries(path: Path) -> Iterator[Row]:
    """CNN and Daily Mail: {article, summary}, highlights a line each, of .story files, one or a
    folder of them, or of JSON lines.
    """
    if kind_of(path) == ".jsonl":
        for node in objects(path):
            listed = isinstance(node.value.get("highlights"), list)
            highlights = (
                node.texts("highlights") if listed else node.text("highlights").splitlines()
            )
            yield {
                "id": str(node.value.get("id", line_id(node.where))),
                "article": node.text("article"),
                "summary": "\n".join(highlights),
            }
        return
    for file in sorted(path.glob("*.story")) if path.is_dir() else [path]:
        article, *highlights = (
            " ".join(part.split()) for part in read_whole(file).split("@highlight")
        )
        if not article or not highlights:
            raise InputError("not an article with highlights below it", where=file)
        yield {"id": file.stem, "article": article, "summary": "\n".join(highlights)}


def read_synthetic(path: Path) -> Iterator[Row]:
    """GPT-3's released samples: {prompt, answer} of lines {"context": "\\n\\nQ: ..\\n\\nA:",
    "completion": " 143"}.
    """
    for node in objects(path):
        yield {
            "id": line_id(node.where),
            "prompt": node.text("context").lstrip("\n"),
            "answer": node.text("completion").strip(" "),
        }


def read_enwik8(path: Path) -> Iterator[Row]:
    """enwik8 and text8: the last 5 million bytes of the 100, which are the test part; a smaller
    file whole.

    A character that the cut divides is left out.
    """
    data = content(path)
    test = data[-5_000_000:] if len(data) == 100_000_000 else data
    start = next((place for place, byte in enumerate(test[:4]) if byte & 0xC0 != 0x80), 0)
    try:
        text = test[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        if len(test) - start - error.start >= 4 or error.reason != "unexpected end of data":
            raise InputError(
                f"not valid UTF-8 at byte {len(data) - len(test) + start + error.start}", where=path
            ) from None
        text = test[start : start + error.start].decode("utf-8")
    yield {"id": path.name, "text": text}
