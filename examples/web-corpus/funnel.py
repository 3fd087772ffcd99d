"""Draw the numbers of documents that a build kept and dropped.

Usage: python funnel.py shards/manifest.json funnel.svg
"""

from __future__ import annotations

import json
import sys
from html import escape
from pathlib import Path

WIDTH, BAR, GAP, LABEL = 520, 18, 4, 200
KEPT, DROPPED = "#2b7a3d", "#b5523b"


def draw(manifest: dict[str, list[dict[str, object]]]) -> str:
    """Return an SVG with the documents read, dropped by reason and kept, for each source."""
    rows: list[tuple[str, int, int, str]] = []  # label, documents, documents read, colour
    for source in manifest["sources"]:
        total = int(str(source["documents_in"]))
        rows.append((f"{source['name']}: read", total, total, "#4a5a6a"))
        dropped = source["dropped"]
        assert isinstance(dropped, dict)
        rows += [
            (f"– {reason}", count, total, DROPPED)
            for reason, count in sorted(dropped.items(), key=lambda item: -item[1])
        ]
        rows.append(("kept", int(str(source["documents_kept"])), total, KEPT))
    lines = []
    for number, (label, count, total, colour) in enumerate(rows):
        y = number * (BAR + GAP) + 8
        length = max(1, round(WIDTH * count / total))
        lines.append(f'<text x="{LABEL - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        lines.append(f'<rect x="{LABEL}" y="{y}" width="{length}" height="{BAR}" fill="{colour}"/>')
        lines.append(f'<text x="{LABEL + length + 6}" y="{y + 13}">{count:,}</text>')
    size = f'width="{LABEL + WIDTH + 70}" height="{len(rows) * (BAR + GAP) + 16}"'
    style = '<rect width="100%" height="100%" fill="white"/>'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    )
    return f"{head}{style}{''.join(lines)}</svg>\n"


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8"
    )
