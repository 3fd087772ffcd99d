"""A snapshot of Common Crawl is priced by its name, and never read."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gptcli.corpus.build import begin_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.formats import read_documents
from gptcli.corpus.input_search import find_inputs
from gptcli.corpus.inputs import fingerprint, open_raw
from gptcli.corpus.recipe import SourceConfig
from gptcli.corpus.report import BuildEstimate, estimate_build
from gptcli.corpus.snapshots import SAMPLE_PAGES, find_snapshot, snapshot_of, write_sample
from gptcli.errors import InputError
from gptcli.papers.common_crawl import DOCUMENT_TOKENS, SNAPSHOTS
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

TOKENIZER = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
NAME = "CC-MAIN-2024-10"
pytest.importorskip("resiliparse")


def priced(*inputs: str) -> BuildEstimate:
    source = SourceConfig(inputs=find_inputs(inputs))
    return estimate_build(BuildConfig(sources=[source], tokenizer=TOKENIZER), 4)


def test_only_a_name_of_the_table_is_a_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_snapshot("corpus") is None
    assert find_snapshot("CC-NEWS-2024-10") is None
    for name in (NAME, NAME.lower()):
        path = find_snapshot(name)
        assert path is not None
        assert snapshot_of(path) == SNAPSHOTS[NAME]
    with pytest.raises(InputError, match="CC-MAIN-2099-01: the size of this snapshot") as caught:
        find_inputs(["CC-MAIN-2099-01"])
    assert "from CC-MAIN-2013-20 to" in (caught.value.hint or "")
    monkeypatch.chdir(tmp_path)
    Path(NAME).write_text("a file of that name is a file")
    assert find_inputs([NAME]) == [NAME]


@pytest.mark.parametrize("name", ["CC-MAIN-2024-1O", "cc-main-2024-1", "CC-MAIN-24-10"])
def test_a_mistyped_name_gets_the_nearest(name: str) -> None:
    with pytest.raises(InputError, match="no snapshot of Common Crawl has this name") as caught:
        find_snapshot(name)
    assert "CC-MAIN-2024-10" in (caught.value.hint or "")


def test_a_file_named_as_the_crawls_are_is_no_snapshot() -> None:
    assert find_snapshot("CC-MAIN-20240220211055-20240221001055-00000.warc.gz") is None


def test_pages_of_a_sample_are_as_large_as_the_snapshots(tmp_path: Path) -> None:
    for name in ("CC-MAIN-2013-20", NAME):
        snapshot, path = SNAPSHOTS[name], tmp_path / "pages.warc.gz"
        write_sample(snapshot, path)
        size = path.stat().st_size / SAMPLE_PAGES
        assert size == pytest.approx(snapshot.warc_bytes / snapshot.pages, rel=0.1)
        # whole pages of CC-MAIN-2024-51: 394 TiB without compression, 2.64 billion pages
        whole = len(gzip.decompress(path.read_bytes())) / SAMPLE_PAGES
        assert whole / size == pytest.approx(6, rel=0.3)
        texts = [document.text for document in read_documents(str(path))]
        assert len(texts) == SAMPLE_PAGES
        mean = sum(map(len, texts)) / len(texts)
        assert mean == pytest.approx(DOCUMENT_TOKENS * 4.4, rel=0.15)


def test_a_price_grows_with_pages_and_bytes() -> None:
    small, large = priced("CC-MAIN-2015-40"), priced("CC-MAIN-2015-40", NAME)
    pages = [SNAPSHOTS[name].pages for name in ("CC-MAIN-2015-40", NAME)]
    assert (small.pages, large.pages) == (pages[0], sum(pages))
    assert small.input_bytes == SNAPSHOTS["CC-MAIN-2015-40"].warc_bytes
    for guess in (small, large):
        assert guess.pages is not None
        assert guess.documents == pytest.approx(guess.pages, rel=0.15)
        assert guess.tokens == pytest.approx(guess.pages * DOCUMENT_TOKENS * 4.4, rel=0.3)
        assert guess.disk_bytes is not None
        assert guess.shuffle_bytes is not None
        assert guess.shuffle_bytes >= guess.disk_bytes
        assert guess.cpu_seconds is not None
        # a page takes more than decompression alone, and less than a second
        assert 1e-5 < guess.cpu_seconds / guess.pages < 1


def test_a_warc_file_among_the_inputs_is_the_sample(tmp_path: Path) -> None:
    other = tmp_path / "sample.warc.gz"
    write_sample(SNAPSHOTS[NAME]._replace(warc_tib=30), other)
    whole = priced(str(other), NAME)
    assert whole.documents is not None
    # pages of a third of the size: three times as many fit
    assert whole.documents / SNAPSHOTS[NAME].pages == pytest.approx(90.36 / 30, rel=0.15)


def test_a_snapshot_is_never_read(tmp_path: Path) -> None:
    inputs = find_inputs([NAME])
    assert fingerprint(inputs[0])[0] == SNAPSHOTS[NAME].warc_bytes
    build = BuildConfig(sources=[SourceConfig(inputs=inputs)], tokenizer=TOKENIZER)
    for refused in (
        lambda: begin_build(build, tmp_path / "out", resume=False, force=False),
        lambda: open_raw(inputs[0]),
    ):
        with pytest.raises(InputError, match=f"{NAME}: a snapshot of 90 TiB is priced"):
            refused()
    assert not (tmp_path / "out").exists()
