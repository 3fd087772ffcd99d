"""Sizes of snapshots that Common Crawl's own announcements say, and the sum of the table."""

from __future__ import annotations

from gptcli.papers.common_crawl import SNAPSHOTS, TIB


def test_rows_and_their_sum() -> None:
    assert len(SNAPSHOTS) == 97
    assert list(SNAPSHOTS) == sorted(SNAPSHOTS)
    # the total of the published table, in which a size has two digits
    assert abs(sum(row.warc_tib for row in SNAPSHOTS.values()) - 5432.77) < 0.01
    for name, row in SNAPSHOTS.items():
        assert name == f"CC-MAIN-{row.name}"
        assert 10_000 < row.warc_bytes / row.pages < 40_000


def test_sizes_of_the_announcements() -> None:
    """commoncrawl.org, "September 2016 Crawl Archive Now Available" (1.72 billion pages, WARC 28.94
    TiB) and "February 2019 crawl archive now available" (2.9 billion, 59.86 TiB).
    """
    for name, pages, tib in (("2016-40", 1.72e9, 28.94), ("2019-09", 2.9e9, 59.86)):
        row = SNAPSHOTS[f"CC-MAIN-{name}"]
        assert row.warc_bytes == round(tib * TIB)
        assert abs(row.pages / pages - 1) < 0.01
