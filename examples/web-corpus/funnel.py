"""Draw the numbers of documents that a build kept and dropped.

Usage: python funnel.py shards/manifest.json funnel.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from gptcli.runs.charts import bar_chart
from gptcli.runs.svg import Scale


def draw(manifest: dict[str, Any]) -> str:
    """Return an SVG with the documents read, dropped by reason and kept, for each source."""
    rows: list[tuple[str, float, str, str]] = []  # label, documents, group, text
    for source in manifest["sources"]:
        read, kept = source["documents_in"], source["documents_kept"]
        rows.append((f"{source['name']}: read", read, "read", f"{read:,}"))
        rows += [
            (reason, count, "dropped", f"{count:,}")
            for reason, count in sorted(source["dropped"].items(), key=lambda item: -item[1])
        ]
        rows.append((f"{source['name']}: kept", kept, "kept", f"{kept:,}"))
    high = max(documents for _, documents, _, _ in rows)
    return bar_chart(
        "What is kept of a crawl",
        "documents by source, and why others were dropped",
        rows,
        Scale("documents", 0, high, log=False, format=lambda count: f"{count:,.0f}"),
    )


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(
        draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), encoding="utf-8"
    )
