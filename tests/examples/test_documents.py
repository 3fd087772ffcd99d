"""Tests of the commands in README and the examples' READMEs: every option is there, every file that
they name too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "FORMATS.md",
    *sorted(ROOT.glob("examples/*/README.md")),
]
TOLD = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPOKEN = re.compile(r"(?<!`)`(gpt [a-z-]+ [^`\n]*)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(document, parse):
    text = document.read_text(encoding="utf-8")
    lines = [line for block in TOLD.findall(text) for line in parse.commands(block)]
    lines += [words for words in SPOKEN.findall(text) if "..." not in words and "|" not in words]
    if document == ROOT / "README.md":
        assert {line.split()[1] for line in lines} == {
            "tokenize",
            "build-shards",
            "train",
            "sample",
            "eval",
            "cost",
        }
    for line in lines:
        parse(line)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / link).exists(), link
    for path in re.findall(r"`((?:gptcli|examples|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_make_targets_exist():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    for document in DOCUMENTS[:2]:
        for target in re.findall(
            r"^make (\w+)", document.read_text(encoding="utf-8"), re.MULTILINE
        ):
            assert re.search(rf"^{target}:", rules, re.MULTILINE), target


def test_the_parser_itself_refuses(parse):
    assert parse.commands(
        "$ gpt cost --size 1 \\\n  --json | gpt sample x  # gpt eval\necho gpt y"
    ) == [
        "gpt cost --size 1    --json",
        "gpt sample x",
    ]
    assert parse("gpt tokenize train x --vocab-size 300")["vocab_size"]
    for wrong in ("gpt cost --sise 175B", "gpt nonsense", "gpt sample"):
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            parse(wrong)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_source_files_that_a_document_names_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|toml))`", text))
    missing = {
        name
        for name in named
        if not (ROOT / name).exists() and not (ROOT / "gptcli" / name).exists()
    }
    assert not missing
