"""A corpus that every Python carries: the standard library's documentation and source, one JSON line a document.

Usage: python make_corpus.py OUTPUT.jsonl

Two kinds of documents: the language reference that `help()` shows, a topic each, and the library's modules, docstrings and all. Tests are
left out: they are long and repeat themselves.
"""

from __future__ import annotations

import json
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "pydoc_data"}
BYTES = 12_000_000  # enough for a demo, and much the same on every Python


def documents() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if SKIPPED.isdisjoint(path.relative_to(library).parts):
            try:
                with tokenize.open(path) as file:  # heeds the file's own encoding line
                    yield file.read()
            except (SyntaxError, UnicodeDecodeError):
                continue


def main(output: str) -> None:
    count = size = 0
    partial = Path(f"{output}.partial")  # the name is given once the file is whole: make trusts names
    with open(partial, "w", encoding="utf-8") as file:
        for text in documents():
            if text.strip() and size < BYTES:
                file.write(json.dumps({"text": text}) + "\n")
                count += 1
                size += len(text.encode())
    partial.replace(output)
    print(f"{output}: {count:,} documents, {size / 1e6:.1f} MB of Python's own documentation and source")


if __name__ == "__main__":
    main(sys.argv[1])
