"""Price of a snapshot of Common Crawl, by its published size and pages like its own.

A dry run takes the name of a snapshot for an input, as if its files were one. If no WARC file is
among the inputs, pages are made for a sample: text in English, from Python's manual, of the mean
length of extracted pages, in the midst of markup, as large as the snapshot's pages are on average
when compressed. Real pages differ in language and quality: what filters drop is only seen in a real
sample.
"""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Iterable
from pathlib import Path

from gptcli.errors import InputError, nearest
from gptcli.papers.common_crawl import DOCUMENT_TOKENS, SNAPSHOTS, Snapshot

NAME = re.compile(r"CC-MAIN-\d{4}-\d{2}", re.IGNORECASE)
MISTYPED = re.compile(r"CC-MAIN[\w-]{0,10}", re.IGNORECASE)
FILES = "s3://commoncrawl/crawl-data/{}/segments/*/warc/*.warc.gz"
_FILES = re.compile(re.escape(FILES).replace(r"\{\}", f"({NAME.pattern})"))
SAMPLE_PAGES = 64
TOKEN_BYTES = 4.4  # of English


def find_snapshot(name: str) -> str | None:
    """Return the files of the snapshot that `name` names as a pattern, or None if it names none.

    Raises InputError if nothing is known of its size.
    """
    if not NAME.fullmatch(name):
        if MISTYPED.fullmatch(name) and not Path(name).exists():
            raise InputError(
                "no snapshot of Common Crawl has this name",
                where=name,
                hint=nearest(name.upper(), SNAPSHOTS, beyond="a name is like CC-MAIN-2024-10"),
            )
        return None
    if name.upper() not in SNAPSHOTS:
        first, *_, last = SNAPSHOTS
        raise InputError(
            "the size of this snapshot of Common Crawl is not known",
            where=name,
            hint=f"known are {len(SNAPSHOTS)}, from {first} to {last}: take the nearest, and "
            "multiply by the ratio of their sizes",
        )
    return FILES.format(name.upper())


def snapshot_of(path: str) -> Snapshot | None:
    """Return the snapshot whose files a path of `find_snapshot` names, or None for any other."""
    found = _FILES.fullmatch(path)
    return SNAPSHOTS.get(found[1]) if found else None


def refuse_snapshots(paths: Iterable[str]) -> None:
    """Raise InputError if a snapshot, which can only be priced, is among the inputs."""
    for path in paths:
        if (snapshot := snapshot_of(path)) is not None:
            name = f"CC-MAIN-{snapshot.name}"
            raise InputError(
                f"a snapshot of {snapshot.warc_tib:,.0f} TiB is priced by its name, not read",
                where=name,
                hint="build-shards {option:dry_run} prices it; to build from it, name its files: "
                + f"s3://commoncrawl/crawl-data/{name}/segments/SEGMENT/warc/",
            )


def write_sample(snapshot: Snapshot, path: Path) -> None:
    """Write a WARC file of SAMPLE_PAGES pages like those of a snapshot."""
    from pydoc_data.topics import topics

    chance = random.Random(0)
    paragraphs = [
        " ".join(part.split())
        for topic in sorted(topics)
        for part in re.split(r"\n\s*\n", topics[topic])
        if len(part) > 200 and not re.search(r"^\s*(>>>|\w+ *::=)", part)
    ]
    text_bytes = DOCUMENT_TOKENS * TOKEN_BYTES
    page_bytes = snapshot.warc_bytes / snapshot.pages
    # what a link adds to a compressed page
    many = 1000
    link_bytes = len(gzip.compress("".join(_link(chance) for _ in range(many)).encode())) / many
    with open(path, "wb") as file:
        for number in range(SAMPLE_PAGES):
            text: list[str] = []
            while sum(map(len, text)) < text_bytes:
                text.append(f"<p>{chance.choice(paragraphs)}</p>\n")
            body = "".join(text)
            left = page_bytes - len(gzip.compress(_record(number, body)))
            links = "".join(_link(chance) for _ in range(max(0, round(left / link_bytes))))
            file.write(gzip.compress(_record(number, f"<nav>{links}</nav>\n<main>{body}</main>")))


def _link(chance: random.Random) -> str:
    """Return markup as menus have it: a sixth of its size when compressed, as whole pages are."""
    word = f"{chance.getrandbits(80):x}"
    return (
        f'<div class="menu-item menu-type-{word[:2]}" id="m{word[:3]}">'
        f'<a class="menu-link" href="https://example.com/{word}">Category {word[:2]}</a></div>\n'
    )


def _record(number: int, body: str) -> bytes:
    """Return a page as a response record of a WARC file."""
    page = (
        f"<!DOCTYPE html><html><head><title>Page {number}</title></head><body>{body}</body></html>"
    )
    response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.encode()
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-03-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-4000-8000-{number:012x}>\r\n"
        f"WARC-Target-URI: https://example.com/page/{number}\r\n"
        "Content-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(response)}\r\n\r\n"
    )
    return head.encode() + response + b"\r\n\r\n"
