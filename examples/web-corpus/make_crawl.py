"""Generate a small web crawl, a WARC archive, from the documentation of the standard library.

Usage: python make_crawl.py FOLDER

It writes four files to FOLDER: crawl.warc.gz (the pages with menus and footers, mirrors that copy
some of them with a few words changed, shop pages, error pages and pictures), links.csv (the pages
that people linked to, with their karma), books.jsonl (clean text: the language reference), and
eval.jsonl (questions that also occur in crawled pages).
"""

from __future__ import annotations

import csv
import gzip
import html
import importlib
import inspect
import json
import pkgutil
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

MENU = (
    '<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li>'
    '<li><a href="/about">About us</a></li></ul></nav>'
)
FOOTER = (
    "<footer><p>Copyright 2020. All rights reserved. Accept cookies. Privacy policy. "
    "Subscribe to our newsletter.</p></footer>"
)
SHOP = (
    "buy cheap now free shipping sale price cart checkout offer discount deal click here "
    "login account order today"
)
SKIPPED = {"antigravity", "this", "idlelib", "test", "lib2to3", "turtledemo", "__main__"}


def documented() -> Iterator[tuple[str, str]]:
    """Yield name and documentation of the standard modules that have more than 60 words of it."""
    for module in sorted(
        name for name in sys.stdlib_module_names if name not in SKIPPED and not name.startswith("_")
    ):
        names = [module]
        try:
            found: ModuleType | None = importlib.import_module(module)
            names += [
                f"{module}.{inner.name}"
                for inner in pkgutil.iter_modules(getattr(found, "__path__", []))
                if inner.name[0] != "_"
            ]
        except ImportError:
            continue
        for name in names:
            try:
                found = (
                    importlib.import_module(name) if name.split(".")[-1] not in SKIPPED else None
                )
            except Exception:
                continue
            parts = (
                [part for _, part in sorted(vars(found).items(), key=lambda item: item[0])]
                if found
                else []
            )
            texts = [
                inspect.getdoc(part) or ""
                for part in [found, *parts]
                if getattr(part, "__module__", name) == name or part is found
            ]
            text = "\n\n".join(dict.fromkeys(text for text in texts if len(text.split()) > 8))
            if len(text.split()) > 60:
                yield name, text


def page(title: str, text: str) -> bytes:
    """Return an HTML page with a menu, the paragraphs of `text` and a footer."""
    body = "".join(f"<p>{html.escape(paragraph)}</p>" for paragraph in text.split("\n\n"))
    article = f"<main><article><h1>{title}</h1>{body}</article></main>"
    head = f"<head><title>{title}</title></head>"
    return f"<html>{head}<body>{MENU}{article}{FOOTER}</body></html>".encode()


def record(
    url: str, body: bytes, status: str = "200 OK", kind: str = "text/html; charset=utf-8"
) -> bytes:
    """Return a WARC response record."""
    payload = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n".encode() + body
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
    )
    return f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload + b"\r\n\r\n"


def make(folder: Path) -> None:
    """Write the crawl, the links, the books and the evaluation items to `folder`."""
    warnings.simplefilter("ignore")
    from pydoc_data.topics import topics

    chance = random.Random(0)
    documents = list(documented())
    references = [text for _, text in sorted(topics.items()) if len(text.split()) > 60]
    pages = [(f"https://docs.example/{name}", page(name, text)) for name, text in documents]
    for name, text in chance.sample(documents, len(documents) // 4):  # mirrors
        words = text.split(" ")
        for _ in range(len(words) // 100):
            words[chance.randrange(len(words))] = "changed"
        pages.append((f"https://mirror.example/{name}", page(name, " ".join(words))))
    pages += [
        (f"https://books.example/{number}", page("Reference", text))
        for number, text in enumerate(references[:40])
    ]
    pages += [
        (
            f"https://en.wikipedia.org/wiki/{number}",
            page("Wiki", " ".join(chance.choices(documents)[0])),
        )
        for number in range(30)
    ]
    shops = [" ".join(chance.choices(SHOP.split(), k=120)) for _ in range(3000)]
    pages += [
        (f"https://shop.example/{number}", page("Shop", text)) for number, text in enumerate(shops)
    ]
    archive = [record(url, body) for url, body in pages]
    archive += [
        record(f"https://docs.example/gone/{number}", b"not found", "404 Not Found")
        for number in range(20)
    ]
    archive += [
        record(f"https://docs.example/{number}.png", b"\x89PNG", kind="image/png")
        for number in range(20)
    ]
    chance.shuffle(archive)
    (folder / "crawl.warc.gz").write_bytes(b"".join(gzip.compress(one, mtime=0) for one in archive))
    with open(folder / "links.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("url", "karma"))
        rows.writerows((url, chance.randrange(5)) for url, _ in pages if "shop" not in url)
    with open(folder / "books.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in references)
    with open(folder / "eval.jsonl", "w", encoding="utf-8") as file:
        for name, text in chance.sample(documents, 20):
            words = text.split()
            start = chance.randrange(len(words) - 20)
            file.write(
                json.dumps({"question": " ".join(words[start : start + 20]), "answer": name}) + "\n"
            )
    print(f"{folder}: {len(archive):,} records, {len(references):,} books, 20 evaluation items")


if __name__ == "__main__":
    make(Path(sys.argv[1]))
