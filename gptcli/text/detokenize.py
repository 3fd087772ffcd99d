"""Text as it was before a data set's tokenisation, and back again, to the byte.

GPT-2 removed the artefacts of tokenisation with invertible de-tokenisers (section 3.1): a model of
ordinary text should not pay for " ," and " @-@ ". Perplexity is still per unit of the original
file. `tokenize` puts spaces in by rules that look at the text alone, and `detokenize` takes out
every space that these rules put back. Where a rule would split a word that the file does not split
("approx." before a space), a word joiner, U+2060, stands in the word and holds it together;
`tokenize` takes it out. A joiner of the text's own is doubled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

JOINER = "\u2060"
BARE = f"{JOINER} "  # begins a line that has not the spaces which begin and end the others
_WORD = rf"[^\s{JOINER}]"


class Detokenizer(Protocol):
    def detokenize(self, text: str) -> str: ...

    def tokenize(self, text: str) -> str: ...

    def units(self, text: str) -> int: ...


@dataclass(frozen=True)
class Spacing:
    """A tokenisation that put spaces around marks, undone and redone a line at a time."""

    left: re.Pattern[str]
    """Tokens that stand at the word before them: "," and "'s"."""
    right: re.Pattern[str]
    """Tokens that stand at the word after them: "("."""
    splits: tuple[re.Pattern[str], ...]
    """Empty matches, in this order: where a space is put back."""
    infix: re.Pattern[str] | None = None
    """Where a mark within a word is a token, written between two at signs: the "-" of " @-@ "."""
    padded: bool = False
    """A space begins and ends each line."""

    def detokenize(self, text: str) -> str:
        *lines, last = text.split("\n")
        return "".join(f"{self._undone(line)}\n" for line in lines) + (
            self._undone(last, at_end=True) if last else ""
        )

    def tokenize(self, text: str) -> str:
        *lines, last = text.split("\n")
        return "".join(f"{self._redone(line)}\n" for line in lines) + (
            self._redone(last) if last else ""
        )

    def units(self, text: str) -> int:
        """Words of the original text and newlines: what perplexity is taken per."""
        return len(text.split()) + text.count("\n")

    def _redone(self, line: str) -> str:
        bare = not self.padded or line.startswith(BARE)
        line = _spaced_quotes(line.removeprefix(BARE) if self.padded else line)
        for split in self.splits:
            line = split.sub(" ", line)
        if self.infix:
            line = self.infix.sub(r" @\g<0>@ ", line)
        line = re.sub(f"{JOINER}({JOINER}?)", r"\1", line)
        return line if bare else f" {line} " if line else " "

    def _undone(self, line: str, *, at_end: bool = False) -> str:
        if self.padded and line == " " and not at_end:
            return ""
        spaced = self.padded and len(line) > 2 and line[0] == line[-1] == " "
        start = BARE if self.padded and not spaced else ""
        words = (line[1:-1] if spaced else line).replace(JOINER, JOINER * 2).split(" ")
        joins = self._joins(words)
        plain = start + _joined(words, joins)
        if self._redone(plain) == line:
            return plain
        words = [word if word == '"' else self._held(word) for word in words]
        kept: set[int] = set()
        parts = [joins]
        while parts:  # those that come back as they were: all of a part, or of its halves
            part = parts.pop()
            if self._redone(start + _joined(words, kept.union(part))) == line:
                kept.update(part)
            elif len(part) > 1:
                parts += [part[len(part) // 2 :], part[: len(part) // 2]]
        return start + _joined(words, kept)

    def _joins(self, words: list[str]) -> list[int]:
        """What may go, by the number of the word before: the space after it; or, at an "@-@"
        (-number), both spaces and the at signs.
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

    def _held(self, word: str) -> str:
        """A word that no rule splits any more."""
        for split in self.splits:
            word = split.sub(JOINER, word)
        if self.infix:
            word = self.infix.sub(rf"{JOINER}\g<0>", word)
        return re.sub(rf'(?<!{JOINER})"', f'{JOINER}"', word)


def _joined(words: list[str], joins: Iterable[int]) -> str:
    joins = set(joins)
    parts = []
    for number, word in enumerate(words):
        parts.append(word[1] if -number in joins and number else word)
        glued = number in joins or (-number in joins and number > 0) or -(number + 1) in joins
        parts.append("" if glued else " ")
    return "".join(parts[:-1])


def _spaced_quotes(line: str) -> str:
    """A space behind each quotation mark that opens, before each that closes; those that a joiner
    holds are part of a word.
    """
    opens = False

    def spaced(found: re.Match[str]) -> str:
        nonlocal opens
        opens = not opens
        before, after = line[: found.start()][-1:], line[found.end() :][:1]
        if opens:
            return '" ' if after not in ("", " ") else '"'
        return ' "' if before not in ("", " ") else '"'

    return re.sub(rf'(?<!{JOINER})"', spaced, line)


# A full stop belongs to these, to initials and to what has one within already.
_ABBREVIATED = "Mr Mrs Ms Dr St Jr Sr Lt Gen Col Sgt Capt Maj Cmdr Adm Gov Sen Rep Rev Hon Prof vs Inc Ltd Co Corp Bros Mt Ft No etc"
_NO_STOP = (
    "".join(rf"(?<!\b{word})" for word in _ABBREVIATED.split(" "))
    + rf"(?<!\b[^\W\d_])(?<=[^.{JOINER}\s])"
)
_MARKS = (
    re.compile(rf"(?<=[(\[])(?={_WORD})|(?=[)\]])(?<={_WORD})"),
    re.compile(rf"(?=[,;:!?](?:[ ]|$))(?<={_WORD})"),
    re.compile(rf"(?=\.(?:[ ]|$)){_NO_STOP}"),  # the lookahead first: it fails soonest
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
class AsItIs:
    """Text that nothing was done to, and is measured in bytes or characters."""

    unit: str

    def detokenize(self, text: str) -> str:
        return text

    def tokenize(self, text: str) -> str:
        return text

    def units(self, text: str) -> int:
        return len(text.encode("utf-8")) if self.unit == "bytes" else len(text)


DETOKENIZERS: dict[str, Detokenizer] = {
    "wikitext": WIKITEXT,
    "ptb": PENN_TREEBANK,
    "1bw": ONE_BILLION_WORDS,
    "bytes": AsItIs("bytes"),
    "characters": AsItIs("characters"),
}


def detokenize_book(text: str) -> str:
    """A passage of the Children's Book Test, tokenised like the Penn Treebank, as running text. Not
    invertible: it need not be.
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
