"""Libraries are built on first use and cached; None replaces those that cannot be built."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gptcli.errors import UsageError
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
    monkeypatch.setattr(build, "_failed", {})
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
    assert build.lack_compiler() == bool(build.instruction_sets())
    monkeypatch.setenv(build.LIMIT, build.OFF)
    assert not build.lack_compiler()


@pytest.mark.parametrize("missing", ["compiler", "headers", "nothing"])
def test_triton_needs_a_compiler_for_what_starts_its_kernels(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise PyTorch computes, and nothing fails when the first kernel is started."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(build, "_compiler", lambda: None if missing == "compiler" else "/bin/cc")
    (tmp_path / "Python.h").touch()
    headers = tmp_path / ("none" if missing == "headers" else "")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(headers))
    build._triton_starts.cache_clear()
    try:
        assert build.has_triton() == (missing == "nothing")
    finally:
        build._triton_starts.cache_clear()


ONE = "int one(void) { return 1; }"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "for another processor"])
def test_a_library_that_is_not_what_its_name_says_is_built_again(
    folder: Path, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "one.c").write_text(ONE)
    assert build.library("one") is not None
    [sound] = built(tmp_path)
    data = sound.read_bytes()
    build.library.cache_clear()
    if damage == "for another processor":  # with the hash of its bytes in its name
        sets = dict(build.INSTRUCTION_SETS)
        other = {"other": sets[build.instruction_sets()[0]]}
        with monkeypatch.context() as patch:
            patch.setattr(build, "INSTRUCTION_SETS", other)
            assert build.library("one") is not None
        [foreign] = set(built(tmp_path)) - {sound}
        stem = sound.name.rpartition("-")[0]
        sound.unlink()
        foreign.rename(sound.with_name(f"{stem}-{build._digest(foreign.read_bytes())}.so"))
        build.library.cache_clear()
    else:
        sound.unlink()  # this process has it in memory
        sound.write_bytes(
            {"truncated": data[:-99], "changed": data[:-99] + bytes(99), "empty": b""}[damage]
        )
    loaded = build.library("one")
    assert loaded is not None
    assert loaded.one() == 1
    assert sound in built(tmp_path)
    assert sound.read_bytes() == data


@pytest.mark.usefixtures("compiler")
def test_a_library_of_somebody_else_is_not_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "one.c").write_text(ONE)
    assert build.library("one") is not None
    [sound] = built(tmp_path)
    for mode in (0o720, 0o702):
        build.library.cache_clear()
        sound.chmod(mode)
        opened: list[int] = []
        monkeypatch.setattr(
            build, "_open", lambda path, _, found=opened: found.append(path.stat().st_mode & 0o777)
        )
        build.library("one")
        assert opened == [0o700], "only the one that has just been built"


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("fault", ["writable by all", "of another user", "below one for all"])
def test_a_folder_of_others_is_not_used(
    folder: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "one.c").write_text(ONE)
    kernels = build.cache_folder()
    assert kernels is not None
    if fault == "writable by all":
        kernels.chmod(0o777)
    elif fault == "below one for all":
        kernels.parent.chmod(0o777)
    else:
        monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert build.cache_folder() is None
    loaded = build.library("one")
    assert loaded is not None
    assert loaded.one() == 1
    assert built(tmp_path) == []


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("home", ["none", "read-only"])
def test_without_a_home_that_can_be_written_it_is_built_for_this_process(
    folder: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_home() -> Path:
        raise RuntimeError

    (folder / "one.c").write_text(ONE)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", no_home if home == "none" else lambda: Path("/proc/self/no"))
    assert build.cache_folder() is None
    loaded = build.library("one")
    assert loaded is not None
    assert loaded.one() == 1


@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts processes by fork")
def test_processes_may_build_at_the_same_time(folder: Path, tmp_path: Path) -> None:
    (folder / "one.c").write_text(ONE)
    compiler = build._compiler()
    assert compiler is not None
    [name, *_] = build.instruction_sets()
    for _ in range(4):
        children = []
        for _ in range(3):
            if (child := os.fork()) == 0:
                try:
                    kernels = build.cache_folder()
                    assert kernels is not None
                    os._exit(build._load(kernels, folder / "one.c", compiler, name).one() - 1)
                finally:
                    os._exit(9)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
        [only] = built(tmp_path)
        only.unlink()


def compiler_that(does: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a compiler that runs a line of shell before it compiles."""
    path = tmp_path / "own cc"
    path.write_text(f'#!/bin/sh\necho call >> "{tmp_path}/calls"\n{does}\nexec gcc "$@"\n')
    path.chmod(0o700)
    monkeypatch.setenv("CC", str(path))
    return path


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("does", "said"),
    [
        ('[ "$1" = --version ] || exec sleep 60', "it took more than 0.5 s"),
        ("exec sleep 60", "it took more than 0.5 s"),
        ('[ "$1" = --version ] || kill -9 $$', "SIGKILL"),
        ('[ "$1" = --version ] || { echo one.c: error: no memory >&2; exit 1; }', "no memory"),
    ],
)
def test_a_compiler_that_hangs_or_fails_is_named_and_waited_for_once(
    folder: Path, tmp_path: Path, does: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "COMPILER_TIMEOUT_S", 0.5)
    build._version.cache_clear()
    for name in ("linear", "one"):
        (folder / f"{name}.c").write_text(ONE)
    path = compiler_that(does, tmp_path, monkeypatch)
    assert build.library("linear") is None
    calls = (tmp_path / "calls").read_text()
    assert build.library("one") is None
    if "sleep" in does:
        assert calls.count("call") <= 2, "not for each instruction set"
        assert (tmp_path / "calls").read_text() == calls
    assert build.compiler_failure() is not None
    assert str(path) in build.compiler_failure()  # type: ignore[operator]
    assert said in build.compiler_failure()  # type: ignore[operator]
    assert built(tmp_path) == []


@pytest.mark.usefixtures("compiler")
def test_a_cache_on_a_full_disk_is_not_needed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("linear", "one"):
        (folder / f"{name}.c").write_text(ONE)
    compiler_that(f'case "$*" in *"{tmp_path}/cache"*) exit 1;; esac', tmp_path, monkeypatch)
    assert build.library("one").one() == 1  # type: ignore[union-attr]
    assert build.compiler_failure() is None
    assert built(tmp_path) == []


@pytest.mark.usefixtures("compiler")
def test_paths_may_have_any_characters_and_tmpdir_may_be_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path / "mit Lücke \"und' mehr"
    folder.rename(sources)
    (sources / "one.c").write_text(ONE)
    monkeypatch.setattr(build, "HERE", sources)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "Käsch mit $HOME"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    assert build.library("one").one() == 1  # type: ignore[union-attr]
    [path] = (tmp_path / "Käsch mit $HOME/gpt/kernels").iterdir()
    assert path.suffix == ".so"


def test_the_first_instruction_set_of_the_processor_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everything = {feature for needs in build.INSTRUCTION_SETS.values() for feature in needs}
    monkeypatch.delenv(build.LIMIT, raising=False)
    monkeypatch.setattr(build, "has_fast_bf16", lambda: True)
    for missing, first in (
        (set(), "amx"),
        ({"amx_int8"}, "avx512-bf16"),
        ({"amx_tile", "avx512_bf16"}, "avx512-vnni"),
        ({"amx_tile", "avx512_bf16", "avx512_vnni"}, "avx512"),
        ({"amx_tile", "avx512_vnni", "avx512vl"}, "avx2"),
        ({"amx_tile", "avx512_vnni", "avx512vl", "fma"}, "neon"),
    ):
        monkeypatch.setattr(build, "_features", lambda gone=missing: everything - gone)
        assert build.instruction_sets()[0] == first
    monkeypatch.setattr(build, "_features", set)
    assert build.instruction_sets() == []


def test_products_are_in_fp32_where_those_of_bf16_are_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "_features", lambda: set(build.INSTRUCTION_SETS["avx512-bf16"]))
    for fast, found in (
        (True, ["avx512-bf16", "avx512-fma", "avx512-vnni", "avx512", "avx2"]),
        (False, ["avx512-fma", "avx512-bf16", "avx512-vnni", "avx512", "avx2"]),
    ):
        monkeypatch.setattr(build, "has_fast_bf16", lambda is_fast=fast: is_fast)
        for limit in ("", *found):
            monkeypatch.setenv(build.LIMIT, limit)
            assert build.instruction_sets() == found[found.index(limit) if limit else 0 :]
    assert {"-mavx512bf16", "-DWIDEN"} <= set(build._flags("avx512-fma"))


def test_the_environment_limits_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_features", lambda: set(build.INSTRUCTION_SETS["avx512"]))
    for value, found in (
        ("", ["avx512", "avx2"]),
        ("avx512", ["avx512", "avx2"]),
        ("avx2", ["avx2"]),
        ("off", []),
    ):
        monkeypatch.setenv(build.LIMIT, value)
        assert build.instruction_sets() == found
    for value in ("amx", "neon", "avx3"):
        monkeypatch.setenv(build.LIMIT, value)
        with pytest.raises(UsageError, match=f"GPT_KERNELS is '{value}'"):
            build.instruction_sets()


@pytest.mark.usefixtures("compiler")
def test_a_compiler_that_does_not_know_the_first_set_builds_for_the_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "one.c").write_text(ONE)
    [first, *_] = build.instruction_sets()
    unknown = {"newest": {"fpu": "-mno-such-thing"}}
    monkeypatch.setattr(build, "INSTRUCTION_SETS", unknown | build.INSTRUCTION_SETS)
    found = build._features()
    monkeypatch.setattr(build, "_features", lambda: found | {"fpu"})
    assert build.instruction_sets()[:2] == ["newest", first]
    assert build.library("one") is not None
    [path] = built(tmp_path)
    assert path.name.startswith(f"one-{first}-")
