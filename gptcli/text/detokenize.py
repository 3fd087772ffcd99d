"""Detokenizers: undo a data set's tokenization, and redo it to the byte.

GPT-2 removed tokenization artifacts with invertible de-tokenizers (section 3.1), because a model of
ordinary text should not be charged for " ," and " @-@ ". Perplexity is still per unit of the
original file. `tokenize` inserts spaces by rules that depend on the text alone, and `detokenize`
removes every space that these rules insert again. Where a rule would split a word that the file
does not split ("approx." before a space), a word joiner, U+2060, is put into the word to prevent
it; `tokenize` removes it. A joiner in the original text is doubled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

JOINER = "\u2060"
BARE = f"{JOINER} "  # begins a line without the spaces that begin and end other lines
_WORD = rf"[^\s{JOINER}]"


class Detokenizer(Protocol):
    """Invertible tokenization of a data set."""

    def detokenize(self, text: str) -> str:
        """Return ordinary text for the text of the data set."""
        ...

    def tokenize(self, text: str) -> str:
        """Return the text of the data set for ordinary text."""
        ...

    def units(self, text: str) -> int:
        """Return the units of the data set's text that perplexity is measured per."""
        ...


@dataclass(frozen=True)
class Spacing:
    """Tokenization that put spaces around marks, undone and redone line by line."""

    left: re.Pattern[str]
    """Tokens attached to the word before them, such as "," and "'s"."""
    right: re.Pattern[str]
    """Tokens attached to the word after them, such as "("."""
    splits: tuple[re.Pattern[str], ...]
    """Patterns with empty matches, applied in this order, at which a space is inserted again."""
    infix: re.Pattern[str] | None = None
    """Marks inside words that are tokens between at signs, such as the "-" of " @-@ "."""
    padded: bool = False
    """True if a space begins and ends each line."""

    def detokenize(self, text: str) -> str:
        """Return ordinary text for the text of the data set."""
        *lines, last = text.split("\n")
        return "".join(f"{self._detokenize_line(line)}\n" for line in lines) + (
            self._detokenize_line(last, at_end=True) if last else ""
        )

    def tokenize(self, text: str) -> str:
        """Return the text of the data set for ordinary text."""
        *lines, last = text.split("\n")
        return "".join(f"{self._tokenize_line(line)}\n" for line in lines) + (
            self._tokenize_line(last) if last else ""
        )

    def units(self, text: str) -> int:
        """Return the words and newlines of the original text."""
        return len(text.split()) + text.count("\n")

    def _tokenize_line(self, line: str) -> str:
        is_bare = not self.padded or line.startswith(BARE)
        line = _space_quotes(line.removeprefix(BARE) if self.padded else line)
        for split in self.splits:
            line = split.sub(" ", line)
        if self.infix:
            line = self.infix.sub(r" @\g<0>@ ", line)
        line = re.sub(f"{JOINER}({JOINER}?)", r"\1", line)
        return line if is_bare else f" {line} " if line else " "

    def _detokenize_line(self, line: str, *, at_end: bool = False) -> str:
        if self.padded and line == " " and not at_end:
            return ""
        spaced = self.padded and len(line) > 2 and line[0] == line[-1] == " "
        start = BARE if self.padded and not spaced else ""
        words = (line[1:-1] if spaced else line).replace(JOINER, JOINER * 2).split(" ")
        joins = self._joins(words)
        plain = start + _join(words, joins)
        if self._tokenize_line(plain) == line:
            return plain
        words = [word if word == '"' else self._protect(word) for word in words]
        kept: set[int] = set()
        parts = [joins]
        while parts:  # remove the spaces that tokenizing restores: of a part, or of its halves
            part = parts.pop()
            if self._tokenize_line(start + _join(words, kept.union(part))) == line:
                kept.update(part)
            elif len(part) > 1:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        return start + _join(words, kept)

    def _joins(self, words: list[str]) -> list[int]:
        """Return the spaces that may be removed, by the index of the word before them.

        The negative index of an "@-@" means both spaces around it and its at signs.
        """
        joins, open_quote = [], False
        for number, word in enumerate(words):
            first, last = number == 0, number == len(words) - 1
            if word == '"':
                open_quote = not open_quote
                if not (last if open_quote else first):
                    joins.append(number if open_quote else number - 1)
            elif not first and not last and len(word) == 3 and word[0] == word[2] == "@":
                joins.append(-number)
            elif not first and (
                self.left.fullmatch(word) or (word == "'" and words[number - 1].endswith("s"))
            ):
                joins.append(number - 1)
            elif not last and self.right.fullmatch(word):
                joins.append(number)
        return list(dict.fromkeys(joins))

    def _protect(self, word: str) -> str:
        """Return the word with joiners that prevent every rule from splitting it."""
        for split in self.splits:
            word = split.sub(JOINER, word)
        if self.infix:
            word = self.infix.sub(rf"{JOINER}\g<0>", word)
        return re.sub(rf'(?<!{JOINER})"', f'{JOINER}"', word)


def _join(words: list[str], joins: Iterable[int]) -> str:
    joins = set(joins)
    parts = []
    for number, word in enumerate(words):
        parts.append(word[1] if -number in joins and number else word)
        glued = number in joins or (-number in joins and number > 0) or -(number + 1) in joins
        parts.append("" if glued else " ")
    return "".join(parts[:-1])


def _space_quotes(line: str) -> str:
    """Insert a space after each opening and before each closing quotation mark.

    A quotation mark after a joiner is part of a word.
    """
    opens = False

    def add_space(found: re.Match[str]) -> str:
        nonlocal opens
        opens = not opens
        before, after = line[: found.start()][-1:], line[found.end() :][:1]
        if opens:
            return '" ' if after not in ("", " ") else '"'
        return ' "' if before not in ("", " ") else '"'

    return re.sub(rf'(?<!{JOINER})"', add_space, line)


# A full stop is part of these words, of initials, and of words that already contain one.
_ABBREVIATIONS = (
    "Mr Mrs Ms Dr St Jr Sr Lt Gen Col Sgt Capt Maj Cmdr Adm Gov Sen Rep Rev Hon Prof "
    "vs Inc Ltd Co Corp Bros Mt Ft No etc"
)
_NO_STOP = (
    "".join(rf"(?<!\b{word})" for word in _ABBREVIATIONS.split(" "))
    + rf"(?<!\b[^\W\d_])(?<=[^.{JOINER}\s])"
)
_MARKS = (
    re.compile(rf"(?<=[(\[])(?={_WORD})|(?=[)\]])(?<={_WORD})"),
    re.compile(rf"(?=[,;:!?](?:[ ]|$))(?<={_WORD})"),
    re.compile(rf"(?=\.(?:[ ]|$)){_NO_STOP}"),  # the lookahead is first because it fails fastest
    re.compile(r"(?<=[$£])(?=\d)|(?=%)(?<=\d)"),
)
_OWNERS = re.compile(r"(?='(?:[ ]|$))(?<=s)")

WIKITEXT = Spacing(
    left=re.compile(r"[,;:!?.%)\]]|'\w+"),
    right=re.compile(r"[(\[$£]"),
    splits=(*_MARKS, re.compile(r"(?='\w)(?<=\w)"), _OWNERS),
    infix=re.compile(r"(?<=[\w>])-(?=[\w<])|(?<=\d)[,.](?=\d)"),
    padded=True,
)
PENN_TREEBANK = Spacing(
    left=re.compile(r"n't|'(?:s|re|ve|ll|d|m)|%"),
    right=re.compile(r"[$#]"),
    splits=(
        re.compile(r"(?=n't(?:[ ]|$))(?<=\w)|(?='(?:s|re|ve|ll|d|m)(?:[ ]|$))(?<=[\w.>])"),
        re.compile(r"(?<=[$#])(?=N)|(?<=N)(?=%)"),
        _OWNERS,
    ),
    padded=True,
)
ONE_BILLION_WORDS = Spacing(
    left=re.compile(r"[,;:!?.%)\]]|n't|'\w+"),
    right=re.compile(r"[(\[$£]"),
    splits=(*_MARKS, re.compile(r"(?=n't(?:[ ]|$))(?<=\w)|(?='\w)(?<=[\w.])(?<!n)"), _OWNERS),
)


@dataclass(frozen=True)
class Unchanged:
    """Text without tokenization, measured in bytes or characters."""

    unit: Literal["bytes", "characters"]
    """Unit of measurement."""

    def detokenize(self, text: str) -> str:
        """Return the text unchanged."""
        return text

    def tokenize(self, text: str) -> str:
        """Return the text unchanged."""
        return text

    def units(self, text: str) -> int:
        """Return the length of the text in its unit."""
        return len(text.encode("utf-8")) if self.unit == "bytes" else len(text)


DETOKENIZERS: dict[str, Detokenizer] = {
    "wikitext": WIKITEXT,
    "ptb": PENN_TREEBANK,
    "1bw": ONE_BILLION_WORDS,
    "bytes": Unchanged("bytes"),
    "characters": Unchanged("characters"),
}


def detokenize_book(text: str) -> str:
    """Return a passage of the Children's Book Test as running text.

    Its tokenization is like the Penn Treebank's. This is not invertible.
    """
    for token, mark in {
        "-LRB-": "(",
        "-RRB-": ")",
        "-LSB-": "[",
        "-RSB-": "]",
        "-LCB-": "{",
        "-RCB-": "}",
    }.items():
        text = text.replace(token, mark)
    text = re.sub(r"(``|`|[(\[{]) ", r"\1", text)
    text = re.sub(r" (?=''|'(?:[ ]|$)|[,.;:!?)\]}]|n't\b|'(?:s|re|ve|ll|d|m)\b)", "", text)
    return text.replace("``", '"').replace("''", '"').replace("`", "'")
