"""Libraries are built on first use and cached; None replaces those that cannot be built."""

from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gptcli.kernels import build

SUM = """
long threads(void) { long n = 0;
#pragma omp parallel reduction(+ : n)
n += 1;
return n; }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Use an empty folder of sources and an empty cache."""
    sources = tmp_path / "sources"
    sources.mkdir()
    monkeypatch.setattr(build, "HERE", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield sources
    build.library.cache_clear()


@pytest.fixture
def compiler() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")


def built(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/gpt/kernels").iterdir())


@pytest.mark.usefixtures("compiler")
def test_library_is_built_once_and_uses_torchs_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "sum.c").write_text(SUM)
    library = build.library("sum")
    assert library is not None
    library.threads.restype = ctypes.c_long
    assert library.threads() == torch.get_num_threads()
    [first] = built(tmp_path)
    build.library.cache_clear()
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("it is there already"))
    assert build.library("sum") is not None
    assert built(tmp_path) == [first]


@pytest.mark.usefixtures("compiler")
def test_changed_source_is_rebuilt(folder: Path, tmp_path: Path) -> None:
    (folder / "one.c").write_text("int one(void) { return 1; }")
    assert build.library("one").one() == 1  # type: ignore[union-attr]
    build.library.cache_clear()
    (folder / "one.c").write_text("int one(void) { return 2; }")
    assert build.library("one").one() == 2  # type: ignore[union-attr]
    assert len(built(tmp_path)) == 2


@pytest.mark.usefixtures("compiler")
def test_changed_header_causes_a_rebuild(folder: Path) -> None:
    (folder / "one.c").write_text('#include "one.h"\nint one(void) { return ONE; }')
    for value in (1, 2):
        (folder / "one.h").write_text(f"enum {{ ONE = {value} }};")
        assert build.library("one").one() == value  # type: ignore[union-attr]
        build.library.cache_clear()


@pytest.mark.usefixtures("compiler")
def test_library_loads_without_a_cache_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (folder / "one.c").write_text("int one(void) { return 1; }")
    assert build.library("one").one() == 1  # type: ignore[union-attr]


@pytest.mark.usefixtures("compiler")
def test_source_that_does_not_compile_gives_none(folder: Path, tmp_path: Path) -> None:
    (folder / "bad.c").write_text("#error this CPU cannot")
    assert build.library("bad") is None
    assert built(tmp_path) == []


def test_missing_compiler_gives_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    (folder / "one.c").write_text("int one(void) { return 1; }")
    assert build.library("one") is None


@pytest.mark.usefixtures("compiler")
def test_truncated_library_gives_none(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "one.c").write_text("int one(void) { return 1; }")
    monkeypatch.setattr(
        build, "_build", lambda source, compiler, built: built.write_bytes(b"\x7fELF")
    )
    assert build.library("one") is None
