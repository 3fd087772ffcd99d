"""Tests of README, the examples' READMEs and the documentation: every option is there, every file and
page that they name too, every block of Python runs, and the reference has all options.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import gptcli
from gptcli.cli import build_app
from tests.golden.surface import options

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ROOT / "examples" / "docs" / "pages"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "FORMATS.md",
    *sorted(ROOT.glob("examples/*/README.md")),
    *sorted(PAGES.rglob("*.md")),
]
WITH_PYTHON = [path for path in DOCUMENTS if "```python" in path.read_text(encoding="utf-8")]
FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHELLS = ("", "sh", "bash", "console")
SPOKEN = re.compile(r"(?<!`)`(gpt [a-z-]+ [^`\n]*)`")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_parse(document, parse):
    text = document.read_text(encoding="utf-8")
    shell = [block for language, block in FENCED.findall(text) if language in SHELLS]
    lines = [line for block in shell for line in parse.commands(block)]
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
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
        target = document.parent / link if link else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"
    for path in re.findall(r"`((?:gptcli|examples|tests)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def anchors(document: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs name them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


COSTS = {  # commands of `gpt cost` whose figures a page quotes, by the page
    "gpt3-350M": ["--size 350M --tokens 300B --gpu h100 --gpus 8"],
    "gpt2-124M": [
        f"--size gpt2 --tokens {tokens} --gpu {gpu} --gpus 8"
        for tokens in ("10B", "294.912B")
        for gpu in ("h100", "a100")
    ],
}
COST_FIGURE = re.compile(
    r"\$[\d,.]*\d|[\d.]+e\d+(?= FLOP)|\d+ (?:d|h) \d+ (?:h|min)|[\d.]+(?= TFLOP/s)"
)


def cost(words: str) -> str:
    """Return what `gpt cost` prints."""
    argv = ["cost", *words.split()]
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("name", COSTS)
def test_costs_on_a_page_are_what_the_command_prints(name: str):
    [_, expected] = (ROOT / "examples" / name / "README.md").read_text().split("## What to expect")
    quoted = COST_FIGURE.findall(expected.split("\n## ")[0])
    assert len(quoted) > 5
    printed = {
        figure for words in COSTS[name] for figure in re.split(r"\s{2,}|, | an | to ", cost(words))
    }
    missing = [figure for figure in quoted if figure not in printed]
    assert not missing, f"{missing}: gpt cost prints something else today"


def test_the_readme_s_error_of_cost_is_what_the_check_prints():
    quoted = re.search(r"from (\d+)\s+published\s+speeds.*?a median of (\d+) %", README, re.DOTALL)
    row = re.search(r"^all +(\d+) .*? (\d+)% +\d+% +\d+%$", cost("--check"), re.MULTILINE)
    assert quoted is not None
    assert row is not None
    assert quoted.groups() == row.groups()


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


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the documents' Python names: a text, its shards, a pickle of weights."""
    folder = tmp_path_factory.mktemp("book")
    lines = [f"Once upon a time, {n} and {n + 1} were {2 * n + 1}." for n in range(400)]
    text = folder / "book.txt"
    text.write_text("\n\n".join(lines), encoding="utf-8")
    torch.save({"weight": torch.zeros(2)}, folder / "pytorch_model.bin")
    tokenizer = gptcli.train_tokenizer(lines, vocab_size=300)
    gptcli.build_shards(text, folder / "built", tokenizer=tokenizer, documents="paragraph")
    return folder


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_runs(
    document: Path, book: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if document.parent.parent.name == "examples":
        pytest.skip("what a model wrote is not a program")
    monkeypatch.chdir(book)
    torch.set_num_threads(1)
    for language, source in FENCED.findall(document.read_text(encoding="utf-8")):
        if language != "python":
            continue
        if "build_shards" not in source:
            source = source.replace('"shards"', '"built"')
        # a run of four steps in place of a million tokens
        exec(compile(source.replace('"1M"', '"4k"'), str(document), "exec"), {})
    assert "Traceback" not in capsys.readouterr().err


def test_commands_and_python_of_the_readme_follow_each_other_in_one_folder() -> None:
    """The Python must not want to build into the shards or the run that the commands have made."""
    blocks = FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    [python] = [source for language, source in blocks if language == "python"]
    outputs = re.findall(r'"book.txt", "(.*?)"|out="(.*?)"', python)
    assert len(outputs) == 2
    commands = next(source for _, source in blocks if "gpt build-shards" in source)
    assert not {"shards", *re.findall(r"-o (\S+)", commands)} & {a or b for a, b in outputs}


def test_errors_of_the_page_are_those_of_the_program():
    """Each heading in code is the text of a message."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in ROOT.glob("gptcli/**/*.py"))
    joined = re.sub(r'"\n\s+f?"', "", source)
    headings = re.findall(r"^### `(.*)`$", (PAGES / "faq.md").read_text("utf-8"), re.MULTILINE)
    assert len(headings) > 10
    assert [message for message in headings if message not in joined] == []


@pytest.mark.parametrize("page", sorted(PAGES.rglob("*.md")), ids=lambda path: path.stem)
def test_options_that_a_page_names_exist(page: Path):
    known = {name for names in options().values() for row in names for name in row.split("/")}
    known |= {"--debug", "--install-completion", "--help"}
    text = page.read_text(encoding="utf-8")
    if page.stem == "coming-from":  # the other columns have the words of others
        text = "\n".join(line.rstrip("| ").rpartition("|")[2] for line in text.splitlines())
    named = {name for code in re.findall(r"`(--?[a-z][^`]*)`", text) for name in code.split()[:1]}
    assert named - known - {"--nnodes"} == set()


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    """The hook that generates the reference."""
    sys.path.insert(0, str(PAGES.parent))
    try:
        import reference
    finally:
        sys.path.pop(0)
    return reference


@pytest.fixture(scope="module")
def generated(reference: Any) -> dict[str, str]:
    return reference.generated()


def test_the_reference_has_every_option_and_public_name(reference: Any, generated: dict[str, str]):
    for command, parameters in options().items():
        page = generated[f"reference/{command.split()[0]}.md"]
        for spellings in parameters:
            names = [name for name in spellings.split("/") if name.startswith("-")]
            assert all(f"`{name}`" in page for name in names), spellings
    named = [name for names in reference.API.values() for name in names]
    assert sorted(named) == sorted(gptcli.__all__)
    assert all(f"### `{name}`" in generated["reference/python.md"] for name in named)
    assert " object at 0x" not in "".join(generated.values())


def test_the_navigation_has_every_page(generated: dict[str, str]):
    settings = (PAGES.parent / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r": (\S+\.md)$", settings, re.MULTILINE)
    pages = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == pages | generated.keys()


def test_links_of_the_repository_are_links_of_the_site(reference: Any):
    text = "[a](../../../mup/README.md#x) [b](faq.md) [c](https://x.org) ![d](run.svg)"
    page = "examples/docs/pages/how-to/gpu.md"
    assert reference.on_page_markdown(text, source=page) == (
        "[a](../examples/mup/README.md#x) [b](faq.md) [c](https://x.org) ![d](run.svg)"
    )
    page = "examples/course/README.md"
    assert reference.on_page_markdown("[t](../docs/pages/tutorial.md)", source=page) == (
        "[t](../../tutorial.md)"
    )


def test_the_site_is_built_and_needs_no_network(tmp_path: Path):
    pytest.importorskip("material", reason="mkdocs-material is not installed: the extra docs")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    settings = load_config(str(PAGES.parent / "mkdocs.yml"), site_dir=str(tmp_path), strict=True)
    build(settings)
    html = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html"))
    assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?https?://[^>]*', html) == []
