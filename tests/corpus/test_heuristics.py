"""Published rules at the thresholds of their papers, each in a text that fails it alone, and beside
datatrove where that is installed.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest

from gptcli.corpus.documents import Document
from gptcli.corpus.heuristics import (
    PHONE,
    RULES,
    clean_c4,
    filter_names,
    heuristic_filter,
    mask_pii,
)
from gptcli.errors import RunError, UsageError

WORDS = [
    *("river", "stone", "light", "cloud", "garden", "window", "bridge", "paper", "silver"),
    *("morning", "valley", "winter", "summer", "copper", "lantern", "harbor", "meadow", "timber"),
    *("castle", "market", "engine", "planet", "signal", "forest", "canyon", "island", "desert"),
]


def prose(count: int, seed: int = 0) -> list[str]:
    """Return words of sentences, with stop words and no repetition to speak of."""
    chance = random.Random(seed)
    words = [f"{chance.choice(WORDS)}{chance.choice(WORDS)[:3]}" for _ in range(count)]
    words[:4] = ["the", "to", "of", "and"][: len(words)]
    return words


def verdict(name: str, text: str) -> str:
    document = Document(text, "a", scores={})
    return heuristic_filter(name)(document)


def lines_of(words: list[str], size: int, end: str = "") -> str:
    rows = (words[start : start + size] for start in range(0, len(words), size))
    return "\n".join(" ".join(row) + end for row in rows)


@pytest.mark.parametrize(
    ("rule", "kept", "dropped"),
    [
        ("words", prose(50), prose(49)),
        ("words", prose(100_000), prose(100_001)),
        ("mean word length", ["the", "and", *["abc"] * 98], ["the", "and", *["ab"] * 98]),
        ("mean word length", ["the", "and", *["a" * 10] * 98], ["the", "and", *["a" * 11] * 98]),
        ("hashes per word", [*prose(90), *["#abc"] * 10], [*prose(89), *["#abc"] * 11]),
        (
            "ellipses per word",
            [*["abc…"] * 10, *prose(90)],
            [*["abc..."] * 11, *prose(89)],
        ),
        ("words with a letter", [*prose(80), *["1234"] * 20], [*prose(79), *["1234"] * 21]),
        ("stop words", ["the", "of", *["word"] * 60], ["the", "the", *["word"] * 60]),
    ],
)
def test_gophers_rules_of_words(rule: str, kept: list[str], dropped: list[str]) -> None:
    assert verdict("gopher_quality", " ".join(kept)) == ""
    assert verdict("gopher_quality", " ".join(dropped)) == f"gopher_quality: {rule}"


def test_gophers_rules_of_lines() -> None:
    rows = [" ".join(prose(8, seed)) for seed in range(10)]
    bullets = [f"- {row}" for row in rows]
    assert verdict("gopher_quality", "\n".join([*bullets[:9], rows[9]])) == ""
    assert "begin with a bullet" in verdict("gopher_quality", "\n".join(bullets))
    trailing = [f"{row}..." for row in rows]
    assert verdict("gopher_quality", "\n".join([*trailing[:3], *rows[3:]])) == ""
    assert "end in an ellipsis" in verdict("gopher_quality", "\n".join([*trailing[:4], *rows[4:]]))


def test_gophers_repetition_of_lines_and_paragraphs() -> None:
    unique = [" ".join(prose(12, seed)) for seed in range(20)]
    assert verdict("gopher_repetition", "\n".join(unique)) == ""
    short = ["a b"] * 4  # 3 of 10 lines occurred before
    assert verdict("gopher_repetition", "\n".join([*unique[:6], *short])) == ""
    assert verdict("gopher_repetition", "\n".join([*unique[:5], "a b", *short])) == (
        "gopher_repetition: duplicate lines"
    )
    long = "\n".join([*unique[:8], unique[0], unique[1], unique[2]])
    assert verdict("gopher_repetition", long) == "gopher_repetition: characters in duplicate lines"
    paragraphs = [f"{one}\n{two}" for one, two in zip(unique[:10], unique[10:], strict=True)]
    for number, paragraph in enumerate(paragraphs):  # lines differ, if by their order alone
        paragraphs[number] = paragraph + f"\n{number}"
    text = "\n\n".join(paragraphs)
    assert verdict("gopher_repetition", text) == ""


@pytest.mark.parametrize("size", range(2, 11))
def test_gophers_shares_of_ngrams_are_exact(size: int) -> None:
    """In `x` words of one letter, k copies of an n-gram among words that occur once."""
    ngram = [f"<{number}>" for number in range(size)]
    words: list[str] = []
    for number in range(6):
        words += [*ngram, f"w{number:07}"]
    text = " ".join(words)
    found = {rule: value for rule, value, _ in RULES["gopher_repetition"](text)}
    characters = sum(map(len, ngram))
    if size <= 4:
        expected = 6 * (characters + size - 1) / len(text)
        assert found[f"characters in the most frequent {size}-gram"] == pytest.approx(expected)
    else:
        assert found[f"characters in duplicate {size}-grams"] == 5 * characters / len(text)


def test_finewebs_three_rules() -> None:
    rows = [" ".join(prose(8, seed)) for seed in range(100)]
    ended = [f"{row}." for row in rows]
    assert verdict("fineweb", "\n".join([*ended[:13], *rows[13:]])) == ""
    assert verdict("fineweb", "\n".join([*ended[:12], *rows[12:]])) == (
        "fineweb: lines that end in punctuation"
    )
    short = [f"{number}." for number in range(66)]
    assert verdict("fineweb", "\n".join([*short, *ended[:34]])) == ""
    assert verdict("fineweb", "\n".join([*short, "99.", *ended[:33]])) == "fineweb: short lines"
    assert verdict("fineweb", "\n".join([*ended[:90], *ended[:9]])) == ""
    assert verdict("fineweb", "\n".join([*ended[:90], *ended[:12]])) == (
        "fineweb: characters in duplicate lines"
    )


def test_c4_takes_out_lines_and_drops_pages() -> None:
    good = [f"The river is {word} in the morning." for word in WORDS[:5]]
    taken = [
        *(
            "A line without its mark",
            "Two words.",
            "This line trails off...",
            "Enable JavaScript now, please.",
        ),
        *("Read our Privacy Policy before you go.", "This is " + "a" * 1001 + " here."),
    ]
    text = "\n".join([taken[0], *good, *taken[1:]])
    assert clean_c4(text) == ("\n".join(good), "")
    assert clean_c4("\n".join(good[:4]))[1] == "sentences"
    assert clean_c4(" ".join(good))[1] == ""  # five sentences in one line
    assert clean_c4("\n".join([*good, "Lorem Ipsum"]))[1] == "lorem ipsum"
    assert clean_c4("\n".join([*good, "a {"]))[1] == "curly bracket"
    assert clean_c4("\n".join([*good, "It was cited[12] and [citation needed] here."]))[0].endswith(
        "It was cited and  here."
    )


def test_c4s_bad_words_are_those_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_text("Rude Word\nugly\n")
    good = " ".join(f"The river is {word} in the morning." for word in WORDS[:5])
    check = heuristic_filter("c4", str(tmp_path / "bad.txt"))
    assert check(Document(f"{good} smugly uglyness", "a")) != "c4: bad word"
    for word in ("Ugly!", "a RUDE word"):
        assert check(Document(f"{good} {word}.", "a")) == "c4: bad word"


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_for_test.py").write_text(
        "def keep(text):\n    return 'no river' if 'river' not in text else True\n"
        "def drop(text):\n    return False\n"
        "def fail(text):\n    return 1 / 0\n"
        "def odd(text):\n    return 0.5\nvalue = 3\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert verdict("mine_for_test:keep", "a river") == ""
    assert verdict("mine_for_test:keep", "a stone") == "mine_for_test:keep: no river"
    assert verdict("mine_for_test:drop", "a") == "mine_for_test:drop"
    for name, message in (
        ("mine_for_test:fail", "ZeroDivisionError"),
        ("mine_for_test:odd", "returned float"),
        ("mine_for_test:absent", "cannot be imported"),
        ("mine_for_test:value", "no function"),
        ("no_such_module_at_all:keep", "cannot be imported"),
    ):
        with pytest.raises(UsageError, match=message):
            verdict(name, "a")
    with pytest.raises(UsageError, match="unknown filter 'gophr'"):
        filter_names(["gophr"])
    assert filter_names(["gopher", "c4", "gopher_quality"]) == [
        *("gopher_quality", "gopher_repetition", "c4")
    ]


def drawn_text(chance: random.Random) -> str:
    """Return a page of prose, lists, repeated lines and odd marks, in any mixture."""
    lines: list[str] = []
    for _ in range(chance.randrange(1, 40)):
        words = [
            chance.choice([*WORDS, "the", "of", "and", "12", "#tag", "so…"])
            for _ in range(chance.randrange(1, 25))
        ]
        end = chance.choice([".", ".", "!", "", "...", "…"])
        line = chance.choice(["", "", "", "-", "•"]) + " ".join(words) + end
        lines.append(chance.choice([line, *lines[-3:]]) if chance.random() < 0.3 else line)
        lines += [""] * (chance.random() < 0.2)
    return "\n".join(lines).strip()


def test_rules_equal_datatroves_where_words_are_the_same() -> None:
    """Given the same words, datatrove decides alike. By itself it differs, one by one:

    - its words are spaCy's tokens, of which a punctuation mark is one; ours are divided by white
      space, as the papers count them;
    - it leaves out marks that stand alone when it counts words and their length;
    - for Gopher's rules of bullets and ellipses, blank lines are lines;
    - for FineWeb it takes 0.01 for the characters in duplicate lines, where the paper has 0.1;
      counts a line of 30 characters as short; and has a fourth rule, of lists.
    """
    pytest.importorskip("datatrove")
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.filters import gopher_quality_filter, gopher_repetition_filter
    from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

    def split(text: str, _: str) -> list[str]:
        return text.split()

    patch = pytest.MonkeyPatch()
    for module in (gopher_quality_filter, gopher_repetition_filter):
        patch.setattr(module, "split_into_words", split)
    patch.setattr("datatrove.pipeline.filters.fineweb_quality_filter.split_into_words", split)
    theirs = {
        "gopher_quality": gopher_quality_filter.GopherQualityFilter(),
        "gopher_repetition": gopher_repetition_filter.GopherRepetitionFilter(),
        "fineweb": FineWebQualityFilter(
            char_duplicates_ratio=0.1, new_line_ratio=1e9, short_line_length=29
        ),
    }
    chance = random.Random(5)
    verdicts = {name: [0, 0] for name in theirs}
    try:
        for number in range(600):
            text = drawn_text(chance)
            for name, other in theirs.items():
                given = re.sub("\n+", "\n", text) if name == "gopher_quality" else text
                result = other.filter(Theirs(text=given, id=str(number)))
                is_kept = result is True
                verdicts[name][is_kept] += 1
                assert (verdict(name, text) == "") == is_kept, (
                    name,
                    result,
                    verdict(name, text),
                    text,
                )
    finally:
        patch.undo()
    assert all(min(counts) > 20 for counts in verdicts.values()), verdicts


ADDRESSES = [
    *("a.b@c.org", "x@y", "joe+tag@mail.example.co.uk", "..a@b.de", "a..b@c.de", "@", "a@-b.com"),
    *("8.8.8.8", "192.168.0.1", "1.2.3.4.5", "256.1.1.1", "8.8.8.8:80", "08.8.8.8", "a@[8.8.8.8]"),
    *("ü@x.de", "<a@b.com>", "a@b.com.", "a@b-.com", "a@b.c@d.e", "'a@b.co'", "1.1.1.1,2.2.2.2"),
]


def test_masking_is_finewebs() -> None:
    pii = pytest.importorskip("datatrove.pipeline.formatters.pii")
    chance = random.Random(0)
    for _ in range(300):
        text = " ".join(chance.choices([*ADDRESSES, "the", "river\n"], k=chance.randint(1, 8)))
        assert mask_pii(text) == pii.PIIFormatter().format(text)


def test_personal_information_is_masked_and_counted() -> None:
    found = "Write to joe@mail.example.com or 8.8.8.8, not 10.0.0.1; call (212) 555-0123."
    masked = "Write to email@example.com or 22.214.171.124, not 10.0.0.1; call |||PHONE_NUMBER|||."
    document = Document(found, "a")
    assert heuristic_filter("pii")(document) == ""
    assert (document.text, document.changed) == (masked, "pii")
    for text in ("no such thing", "in 2020-10-2021", "2125550123", "a 1-2 b", "12.5 212-555-01234"):
        assert mask_pii(text) == text
    for text in ("+1 212 555 0123", "1-800-555-0123", "212.555.0123", "212-555-0123"):
        assert mask_pii(text) == PHONE
    for text in ("a." * 100_000, "a@" * 100_000, "1." * 100_000, "a@" + "b-" * 100_000):
        mask_pii(text)  # in no time


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise RuntimeError('no')", "RuntimeError: no"),
        ("raise SystemExit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "SystemExit: 0"),
        ("return keep(text)", "RecursionError"),
        ("return 5", "returned int"),
        ("return [text]", "returned list"),
        ("yield True", "returned generator"),
    ],
)
def test_a_function_that_fails_or_answers_nonsense_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "odd.py").write_text(f"def keep(text):\n    {body}\n")
    monkeypatch.delitem(sys.modules, "odd", raising=False)
    with pytest.raises(UsageError, match=message):
        heuristic_filter("odd:keep")(Document("words", "a"))
    monkeypatch.delitem(sys.modules, "odd", raising=False)


@pytest.mark.parametrize(
    "content", ["def keep(:", "1 / 0", "raise SystemExit(3)", "import os; os._exit(0)", ""]
)
def test_a_module_that_cannot_be_imported_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_one.py").write_text(content)
    with pytest.raises(UsageError, match="cannot be imported"):
        heuristic_filter("broken_one:keep")


PROGRAM = """import json, sys
for line in sys.stdin:
    text = json.loads(line)
    if text == "die": sys.exit(3)
    if text == "nonsense": print("maybe", flush=True); continue
    if text == "number": print(7, flush=True); continue
    print(json.dumps("too short" if len(text) < 4 else "x" not in text), flush=True)
"""


def test_a_program_is_a_filter(tmp_path: Path) -> None:
    (tmp_path / "keep.py").write_text(PROGRAM)
    name = f"command:{sys.executable} {tmp_path / 'keep.py'}"
    assert filter_names(["gopher", name])[-1] == name

    def of(text: str) -> str:
        return own(Document(text, "a"))

    own = heuristic_filter(name)
    assert [of(text) for text in ("a\nlong one", "x in it", "abc", "\ud800 long")] == [
        *("", name, f"{name}: too short", "")
    ]
    with pytest.raises(UsageError, match="returned int"):
        of("number")
    with pytest.raises(RunError, match="answered 'maybe"):
        of("nonsense")
    for _ in range(2):
        with pytest.raises(RunError, match="ended with code 3"):
            of("die")
    for command in ("command:", "command:no-such-program", "command:'open"):
        with pytest.raises(UsageError, match=r"no program|not valid"):
            heuristic_filter(command)
