"""Published rules for web text: Gopher's, C4's and FineWeb's, and rules of one's own.

    filters = ["gopher", "c4", "fineweb", "pii"]      a key of a source in a recipe
    filters = ["mine:keep", "command:./keep --fast"]  a function, a program (`CommandFilter`)

Each rule measures a text and drops it at a threshold of its paper; a document is counted under the
first rule that it fails. A word is what white space divides, a line or a paragraph one that is not
blank. C4's rules also take lines out of a text. The lists of bad words of C4 are not shipped:
`bad_words` names a file of them.

- Gopher: Rae et al. 2021, "Scaling Language Models", section A1.1 and Table A1.
- C4: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 2.2. Its removal of
  repeated spans of three sentences compares documents, which is left to `dedup`.
- FineWeb: Penedo et al. 2024, "The FineWeb Datasets", section 3.6.
- pii, personal information, drops nothing. It puts other text in its place, as FineWeb does for
  addresses of e-mail and public addresses of the internet (section 3.7), and Dolma for telephone
  numbers of North America (Soldaini et al. 2024, section 4.3).
"""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Never

from gptcli.corpus.documents import Document
from gptcli.errors import GptError, RunError, UsageError, nearest
from gptcli.files import read_text

Measure = tuple[str, float, bool]
"""Name of a rule, what it measured, and True if the text fails it."""
Rules = Callable[[str], Iterator[Measure]]

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "-")
ELLIPSES = ("...", "…")
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
C4_ENDS = (".", "!", "?", '"', "\u201d")
POLICY_PHRASES = (
    "terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies",
    "use cookies",
)  # fmt: skip
MIN_SENTENCES, MIN_LINE_WORDS, MAX_WORD = 5, 3, 1000
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.!?]+[\"'\u201d\u2019)]*(?=\s|$)")
FINEWEB_ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f", "\u061f", "\u0964")
SHORT_LINE = 30  # characters
_LOCAL = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_OCTET = r"(?:25[0-5]|2[0-4][0-9]|[01]?[0-9][0-9]?)"
_BEFORE_AT = re.compile(rf"\b{_LOCAL}(?:\.{_LOCAL})*\Z")
_AT = re.compile(
    rf"@(?:(?:{_LABEL}\.)+{_LABEL}|\[(?:{_OCTET}\.){{3}}(?:{_OCTET}|[A-Za-z0-9-]*[A-Za-z0-9]:)\])"
)
MAX_LOCAL = 256  # characters before the @; mail allows 64
_IP = re.compile(rf"(?:{_OCTET}\.){{3}}{_OCTET}")
_PHONE = re.compile(
    r"(?<![\w(])(?:\+?1[-. ]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-. ])[2-9]\d{2}[-. ]\d{4}(?![\w]|[-.]\d)"
)
EMAILS = ("email@example.com", "firstname.lastname@example.org")
IPS = (
    "22.214.171.124", "126.96.36.199", "188.8.131.52", "184.108.40.206", "220.127.116.11",
    "18.104.22.168",
)  # fmt: skip
PHONE = "|||PHONE_NUMBER|||"


def gopher_quality(text: str) -> Iterator[Measure]:
    """Yield Gopher's rules of quality (Rae et al. 2021, section A1.1)."""
    words = text.split()
    count = len(words)
    yield "words", count, not 50 <= count <= 100_000
    length = sum(map(len, words)) / count
    yield "mean word length", length, not 3 <= length <= 10
    hashes = text.count("#") / count
    yield "hashes per word", hashes, hashes > 0.1
    ellipses = sum(map(text.count, ELLIPSES)) / count
    yield "ellipses per word", ellipses, ellipses > 0.1
    lines = _lines(text)
    bullets = sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines)
    yield "lines that begin with a bullet", bullets, bullets > 0.9
    trailing = sum(line.rstrip().endswith(ELLIPSES) for line in lines) / len(lines)
    yield "lines that end in an ellipsis", trailing, trailing > 0.3
    letters = sum(any(map(str.isalpha, word)) for word in words) / count
    yield "words with a letter", letters, letters < 0.8
    stops = len(STOP_WORDS.intersection(words))
    yield "stop words", stops, stops < 2


def gopher_repetition(text: str) -> Iterator[Measure]:
    """Yield Gopher's rules of repetition (Rae et al. 2021, Table A1).

    A line, paragraph or n-gram is a duplicate where it occurs again; the second and later ones
    count.
    """
    parts = {"lines": _lines(text), "paragraphs": re.split(r"\n{2,}", text.strip())}
    for kind, pieces in parts.items():
        repeated, characters = _repeated(pieces)
        share = repeated / len(pieces)
        yield f"duplicate {kind}", share, share > 0.30
        share = characters / len(text)
        yield f"characters in duplicate {kind}", share, share > 0.20
    words = text.split()
    for size, limit in TOP_NGRAMS.items():
        share = _top_ngram(words, size) / len(text)
        yield f"characters in the most frequent {size}-gram", share, share > limit
    for size, limit in REPEATED_NGRAMS.items():
        share = _repeated_ngrams(words, size) / len(text)
        yield f"characters in duplicate {size}-grams", share, share > limit


def fineweb(text: str) -> Iterator[Measure]:
    """Yield FineWeb's three rules (Penedo et al. 2024, section 3.6)."""
    lines = _lines(text)
    ended = sum(line.rstrip().endswith(FINEWEB_ENDS) for line in lines) / len(lines)
    yield "lines that end in punctuation", ended, ended <= 0.12
    share = _repeated(lines)[1] / len(text.replace("\n", ""))
    yield "characters in duplicate lines", share, share >= 0.1
    short = sum(len(line) < SHORT_LINE for line in lines) / len(lines)
    yield "short lines", short, short >= 0.67


def clean_c4(text: str, bad_words: re.Pattern[str] | None = None) -> tuple[str, str]:
    """Return what C4's rules leave of a text, and the rule that drops it or "".

    Lines without a terminal punctuation mark, of fewer than 3 words, with a word of more than 1,000
    characters, about JavaScript, cookies or terms of use are taken out, and marks of citations. A
    text is dropped if "lorem ipsum", a curly bracket or a bad word is in it, or if fewer than 5
    sentences are left (Raffel et al. 2020, section 2.2; long words, cookies, terms and citations
    are in its released code).
    """
    lower = text.lower()
    if "lorem ipsum" in lower:
        return text, "lorem ipsum"
    if "{" in text:
        return text, "curly bracket"
    if bad_words is not None and bad_words.search(lower):
        return text, "bad word"
    lines = []
    sentences = 0
    for line in text.splitlines():
        line = _CITATION.sub("", line).strip()
        line_lower, words = line.lower(), line.split()
        if (
            not line.endswith(C4_ENDS)
            or line.endswith("...")
            or len(words) < MIN_LINE_WORDS
            or max(map(len, words)) > MAX_WORD
            or "javascript" in line_lower
            or any(phrase in line_lower for phrase in POLICY_PHRASES)
        ):
            continue
        sentences += max(1, len(_SENTENCE_END.findall(line)))
        lines.append(line)
    return "\n".join(lines), "" if sentences >= MIN_SENTENCES else "sentences"


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def _repeated(pieces: Sequence[str]) -> tuple[int, int]:
    """Return the number of pieces that occurred before, and their characters."""
    seen: set[str] = set()
    again = [piece for piece in pieces if piece in seen or seen.add(piece)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def _top_ngram(words: list[str], size: int) -> int:
    """Return the characters in all occurrences of the most frequent n-gram, blanks included."""
    counts = Counter(zip(*(words[start:] for start in range(size)), strict=False))
    if not counts:
        return 0
    ngram, count = counts.most_common(1)[0]
    return count * (sum(map(len, ngram)) + size - 1)


def _repeated_ngrams(words: list[str], size: int) -> int:
    """Return the characters of words in n-grams that occurred before, each character once."""
    seen: set[tuple[str, ...]] = set()
    characters = at = 0
    while at <= len(words) - size:
        ngram = tuple(words[at : at + size])
        if ngram in seen:
            characters += sum(map(len, ngram))
            at += size
        else:
            seen.add(ngram)
            at += 1
    return characters


RULES: dict[str, Rules] = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "fineweb": fineweb,
}
FILTERS = ("gopher", *RULES, "c4", "pii")
"""Names of filters; "gopher" is both of Gopher's."""
COMMAND = "command:"


def filter_names(wanted: Sequence[str]) -> list[str]:
    """Return the filters that a recipe asks for, one by one.

    Raises UsageError if there is no such filter.
    """
    names: list[str] = []
    for name in wanted:
        if name not in FILTERS and ":" not in name:
            raise UsageError(
                f"unknown filter {name!r}",
                where="filters",
                hint=nearest(name, FILTERS)
                or "a function of your own is module:function, and a "
                "program of your own command:PROGRAM",
            )
        names += ["gopher_quality", "gopher_repetition"] if name == "gopher" else [name]
    return list(dict.fromkeys(names))


def heuristic_filter(name: str, bad_words: str = "") -> Callable[[Document], str]:
    """Return the filter of a name: a function that returns the reason to drop a document, or "".

    `bad_words` names a file with a word or phrase a line, for C4's rule. Raises UsageError if a
    function of one's own cannot be imported, InputError if the file cannot be read.
    """
    if name in RULES:
        return partial(_by_rules, name, RULES[name])
    if name == "pii":
        return _by_pii
    if name == "c4":
        return partial(_by_c4, _pattern_of(bad_words) if bad_words else None)
    if name.startswith(COMMAND):
        return partial(_by_function, name, CommandFilter(name.removeprefix(COMMAND)))
    return partial(_by_function, name, load_function(name))


def _by_rules(name: str, rules: Rules, document: Document) -> str:
    reason = ""
    for rule, value, is_bad in rules(document.text):
        if document.scores is not None:
            document.scores[f"{name}: {rule}"] = value
        if is_bad:
            reason = f"{name}: {rule}"
            break
    return reason


def _by_c4(bad_words: re.Pattern[str] | None, document: Document) -> str:
    text, rule = clean_c4(document.text, bad_words)
    if rule:
        return f"c4: {rule}"
    if text != document.text:
        document.text, document.changed = text, "c4"
    return ""


def mask_pii(text: str) -> str:
    """Return a text whose e-mail addresses, public IP addresses and telephone numbers are others.

    The replacements are those of FineWeb and of Dolma, in turn.
    """
    emails, ips = cycle(EMAILS), cycle(IPS)

    def other_ip(found: re.Match[str]) -> str:
        """Return another address for a public one, else what was found."""
        try:
            return next(ips) if ipaddress.ip_address(found[0]).is_global else found[0]
        except ValueError:  # 08.8.8.8
            return found[0]

    parts, end = [], 0
    for found in _AT.finditer(text):
        local = _BEFORE_AT.search(text, max(end, found.start() - MAX_LOCAL), found.start())
        if local is not None:
            parts += [text[end : local.start()], next(emails)]
            end = found.end()
    text = "".join([*parts, text[end:]])
    return _PHONE.sub(PHONE, _IP.sub(other_ip, text))


def _by_pii(document: Document) -> str:
    text = mask_pii(document.text)
    if text != document.text:
        document.text, document.changed = text, "pii"
    return ""


def _pattern_of(path: str) -> re.Pattern[str]:
    words = [line.strip().lower() for line in read_text(Path(path)).splitlines() if line.strip()]
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words)) or '(?!)'})(?!\w)")


def _by_function(name: str, function: Callable[[str], object], document: Document) -> str:
    try:
        with _exit_raised():
            found = function(document.text)
    except GptError:
        raise
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"the filter {name} failed: {type(error).__name__}: {error}", where=document.where
        ) from error
    if type(found).__name__ == "bool_":  # numpy's
        found = bool(found)
    if found is True or found is None or (isinstance(found, str) and not found):
        return ""
    if found is False:
        return name
    if not isinstance(found, str):
        raise UsageError(
            f"the filter {name} returned {type(found).__name__}",
            where=document.where,
            hint="it returns True to keep a text, and False or the reason to drop it",
        )
    return f"{name}: {found.encode('utf-8', 'replace').decode()}"


@contextlib.contextmanager
def _exit_raised() -> Iterator[None]:
    """Make `os._exit` raise SystemExit in the block, in which a build would end as if it were done."""

    def leave(status: int) -> Never:
        """Raise SystemExit."""
        raise SystemExit(status)

    before = os._exit
    os._exit = leave
    try:
        yield
    finally:
        os._exit = before


class CommandFilter:
    """A command that reads a JSON string a line and answers each with a line: true to keep the text,
    false or the reason, a JSON string, to drop it.

    Every worker starts its own, at its first document.
    """

    def __init__(self, command: str) -> None:
        """Raise UsageError if there is no such program."""
        try:
            self.words = shlex.split(command)
        except ValueError as error:
            raise UsageError(
                f"the command {command!r} is not valid: {error}", where="filters"
            ) from None
        if not self.words or shutil.which(self.words[0]) is None:
            program = self.words[0] if self.words else command
            raise UsageError(f"there is no program {program!r}", where="filters")
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, text: str) -> Any:
        """Return the answer for a text. Raises RunError if the command ends or does not answer so."""
        if self._process is None:
            self._process = subprocess.Popen(  # it ends with its standard input
                self.words, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(text).encode() + b"\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            code = self._process.wait()
            raise RunError(
                f"the filter {self.words[0]!r} ended with code {code} before it answered",
                hint="it answers every line of its input with a line, at once",
            )
        with contextlib.suppress(ValueError):
            return json.loads(answer)
        raise RunError(
            f"the filter {self.words[0]!r} answered {answer[:60].decode('utf-8', 'replace')!r}",
            hint="an answer is a line: true, false, or a reason in quotes",
        )


def load_function(name: str) -> Callable[[str], Any]:
    """Return the function that "module:function" names, also of a module in the current folder.

    Raises UsageError if there is none.
    """
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        with _exit_raised():
            found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # whatever the module does
        raise UsageError(
            f"the filter {name!r} cannot be imported: {type(error).__name__}: {error}",
            where="filters",
            hint="it is the path of a module, a colon, and a function in it",
        ) from None
    if not callable(found):
        raise UsageError(f"{name!r} is no function", where="filters")
    return found
