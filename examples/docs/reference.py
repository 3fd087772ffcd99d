"""Generate the reference of the documentation, as a hook of mkdocs.

The options come from the command line, the Python API from its docstrings, and the other documents
of the repository are taken as they are: nothing of it is stored twice. Links from page to page are
those of the repository, so that they work there too; on the site they lead to the site's pages.

    python examples/docs/reference.py FOLDER     writes the generated pages only
"""

from __future__ import annotations

import inspect
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

import gptcli
from gptcli.cli import COMMANDS, build_app
from gptcli.cli.help_panels import Row, sections

ROOT = Path(__file__).resolve().parents[2]
PAGES = "examples/docs/pages/"
"""Folder of the pages in the repository; on the site it is the root."""
COPIED = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "examples/FORMATS.md",
    "examples/*/README.md",
)
FILES = ("examples/*/*.svg", "examples/*/*.ipynb", "examples/*.ipynb", "examples/*.py")
LINK = re.compile(r"(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")
API = {  # heading: names of `gptcli`
    "From text to a model": ("train_tokenizer", "load_tokenizer", "build_shards", "train"),
    "From a model to text and scores": (
        "load_model",
        "generate",
        "evaluate",
        "export_model",
        "estimate_cost",
    ),
    "Settings": ("ModelConfig", "TrainConfig", "SamplingParams"),
    "Objects": ("GPT", "Tokenizer", "DataLoader", "Events"),
    "Errors": ("GptError", "UsageError", "InputError", "RunError", "Interrupted"),
}


def generated() -> dict[str, str]:
    """Return the Markdown of every generated page, by its path on the site."""
    pages = {f"reference/{name}.md": command_page(name) for name in COMMANDS}
    pages["reference/python.md"] = python_page()
    for path in copied():
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        pages[site_path(name)] = on_page_markdown(text, source=name)
    return pages


def copied() -> list[Path]:
    """Return the documents of the repository that the site contains as they are."""
    return sorted(path for pattern in COPIED for path in ROOT.glob(pattern))


def command_page(name: str) -> str:
    """Return the page of a command: every argument and option of it and of its subcommands."""
    top: Any = typer.main.get_command(build_app([name])).commands[name]  # type: ignore[attr-defined]
    text = [f"# gpt {name}", "", *_leaf(top, f"gpt {name}")]
    for inner, command in getattr(top, "commands", {}).items():
        text += [f"## gpt {name} {inner}", "", *_leaf(command, f"gpt {name} {inner}")]
    return "\n".join(text)


def _leaf(command: Any, path: str) -> Iterator[str]:
    """Yield the lines of one command: its text, its examples, and a table for each panel."""
    context = typer.Context(command, info_name=path)
    about, _, examples = (
        inspect.cleandoc(command.help or "").replace("\b", "").partition("Examples:")
    )
    yield from [about.strip(), ""]
    if examples:
        lines = [line.strip() for line in examples.splitlines() if line.strip()]
        yield from ["```", *lines, "```", ""]
    for title, rows in sections(command, context).items():
        lines = [_row(row) for row in rows if len(row.cells) > 1 and "--help" not in row.cells]
        if lines:
            head = "argument" if title == "Arguments" else "option"
            yield from [
                f"**{title}**",
                "",
                f"| {head} | value | meaning |",
                "|---|---|---|",
                *lines,
                "",
            ]


def _row(row: Row) -> str:
    _, long, short, *_, metavar = row.cells
    names = ", ".join(f"`{name}`" for name in (*long.split(","), *short.split(",")) if name)
    note = " ".join(row.notes).replace("[default: ", "default: ").replace("]", "")
    note = note.replace("[default: ", "default: ").replace("[required]", "required").rstrip("]")
    value = f"`{metavar}`" if metavar and long else ""
    cells = (names, value, _escaped(row.text) + (f" *{note}*" if note else ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def python_page() -> str:
    """Return the page of `import gptcli`: signature and docstring of every public name."""
    text = ["# Python", "", inspect.getdoc(gptcli) or "", ""]
    for heading, names in API.items():
        text += [f"## {heading}", ""]
        for name in names:
            text += _object(name, getattr(gptcli, name))
    return "\n".join(text)


def _object(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of one name; of a class, those of its own public methods too."""
    yield from [f"### `{name}`", "", *_signature(f"gptcli.{name}", value)]
    yield from [_prose(value), ""]
    if not inspect.isclass(value):
        return
    fields = list(_fields(value))
    yield from ["| field | meaning |", "|---|---|", *fields, ""] if fields else []
    for method, member in vars(value).items():
        function = getattr(value, method)
        if not method.startswith("_") and callable(function) and inspect.getdoc(function):
            yield from _signature(f"{name}.{method}", function)
            yield from [_prose(member if isinstance(member, type) else function), ""]


def _signature(name: str, value: Callable[..., Any]) -> Iterator[str]:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return
    words = []
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        word = str(one.replace(annotation=one.empty))
        if " object at 0x" in word:  # no value that a reader could type
            word = f"{one.name}={'SILENT' if one.name == 'events' else '...'}"
        words.append(word)
    call = f"{name}({', '.join(words)})"
    if len(call) > 90:
        call = f"{name}(\n    " + ",\n    ".join(words) + ",\n)"
    yield from ["```python", call, "```", ""]


def _fields(value: type) -> Iterator[str]:
    """Yield a row for each field of a dataclass: texts stand under the fields in the source."""
    for found in re.finditer(
        r'^    (\w+): [^\n=]+(?:= ([^\n]+))?\n    """(.+?)"""',
        inspect.getsource(value),
        re.M | re.S,
    ):
        name, default, text = found.groups()
        words = _escaped(" ".join(text.split())).replace("|", "\\|")
        yield f"| `{name}`{f' = `{default}`' if default else ''} | {words} |"


def _prose(value: Any) -> str:
    return _escaped(inspect.getdoc(value) or "")


def _escaped(text: str) -> str:
    """Return text as Markdown in which <|endoftext|> is no tag; code stays as it is."""
    return re.sub(r"(`[^`]*`)|<", lambda found: found[1] or "&lt;", text)


def on_page_markdown(markdown: str, *, source: str = "", page: Any = None, **_: Any) -> str:
    """Return a page with the repository's links as the site's; `source` is its path there."""
    if page is not None:
        if page.file.generated_by:
            return markdown
        source = PAGES + page.file.src_uri

    def site_link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[2]))
        here, there = site_path(source), site_path(target)
        return found[1] + posixpath.relpath(there, posixpath.dirname(here) or ".") + found[3]

    return LINK.sub(site_link, markdown)


def site_path(path: str) -> str:
    """Return the place on the site of a file of the repository."""
    # the start page of a folder is its README, and the site has one of its own
    return "about.md" if path == "README.md" else path.removeprefix(PAGES)


def on_files(files: Any, config: Any, **_: Any) -> Any:
    """Add the generated pages, and the examples' figures and notebooks, to the files of mkdocs."""
    from mkdocs.structure.files import File

    for name, text in generated().items():
        files.append(File.generated(config, name, content=text))
    for path in sorted(path for pattern in FILES for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, content=path.read_bytes()))
    return files


def main(folder: Path) -> None:
    """Write the generated pages into `folder`."""
    for name, text in generated().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
