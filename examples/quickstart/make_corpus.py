"""Write a corpus of the documentation and source code that come with Python.

Usage: python make_corpus.py OUTPUT.jsonl [--everything]

Each line is one document: a topic of the language reference that `help()` shows, or a module of
the standard library. Three kinds of module are left out: tests, which are long and repetitive;
packages that Debian distributes separately or that only some versions have, so that the corpus is
much the same everywhere; and tables such as codecs and entities, in which less than a quarter of
the tokens are names. `--everything` leaves out only the tests.
"""

from __future__ import annotations

import io
import json
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

NOT_THE_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "pydoc_data"}
TESTS = {"test", "tests", "idle_test", "lib2to3"}
ELSEWHERE = {"idlelib", "tkinter", "turtle.py", "turtledemo", "ensurepip", "distutils"}
TABLES = {"encodings"}
MIN_NAMES = 0.25  # about half in code, almost none in the table of an encoding
COUNTED = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}


def is_table(source: str) -> bool:
    """Return whether less than a quarter of the tokens of `source` are names, as in a table."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kinds = [token.type for token in tokens if token.type in COUNTED]
    return kinds.count(tokenize.NAME) < MIN_NAMES * len(kinds)


def documents(library: Path, *, everything: bool) -> Iterator[str]:
    """Yield the topics of `help()`, then the modules below `library`."""
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    skipped = NOT_THE_LIBRARY | TESTS | (set() if everything else ELSEWHERE | TABLES)
    for path in sorted(library.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(library).parts):
            try:
                with tokenize.open(path) as file:  # respects the file's encoding declaration
                    source = file.read()
                if everything or not is_table(source):
                    yield source
            except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
                continue


def main(output: str, *options: str) -> None:
    """Write the corpus to `output` in one step, and print its size."""
    count = size = 0
    # make treats an existing file as complete, so it is renamed only when it is
    partial = Path(f"{output}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        library = Path(sysconfig.get_paths()["stdlib"])
        for text in documents(library, everything="--everything" in options):
            if text.strip():
                file.write(json.dumps({"text": text}) + "\n")
                count += 1
                size += len(text.encode())
    partial.replace(output)
    print(
        f"{output}: {count:,} documents, "
        f"{size / 1e6:.1f} MB of Python's own documentation and source"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
