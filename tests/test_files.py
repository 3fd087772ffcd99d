"""Whole or not at all, also when the writer is killed; and the rule for folders that hold
something.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError, RunError, UsageError
from gptcli.files import (
    PARTIAL,
    atomic_folder,
    atomic_write,
    check_output,
    check_writable,
    claim_file,
    claim_output,
    contents,
    missing_file,
    naming,
    read_json,
    read_toml,
    sha256,
    similar,
    sweep,
    temporary_room,
    write_json,
    written_through,
)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path, "w") as file:
        file.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_folder(tmp_path / "step") as folder:
        (folder / "a").write_text("x")
    with atomic_folder(tmp_path / "step") as folder:
        (folder / "b").write_text("y")
    assert os.listdir(tmp_path / "step") == ["b"]


@pytest.mark.parametrize("at", range(6))
def test_killed_while_writing(tmp_path: Path, at: int) -> None:
    """kill -9 after any number of blocks: the file is the old one, whole, and the leftover is swept
    by the next run.
    """
    path = tmp_path / "out" / "big.bin"
    path.parent.mkdir()
    path.write_bytes(b"old")
    program = f"""
import os, signal
from pathlib import Path
from gptcli.files import atomic_write
with atomic_write(Path({str(path)!r})) as file:
    for block in range(5):
        if block == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        file.write(b"x" * 100_000)
"""
    done = subprocess.run([sys.executable, "-c", program])
    if at < 5:
        assert done.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"old"
        assert len(os.listdir(path.parent)) == 2
        claim_output(path.parent, resume=True, force=False)
        assert os.listdir(path.parent) == ["big.bin"]
    else:
        assert path.read_bytes() == b"x" * 500_000


def test_claim_output(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    claim_output(folder, resume=False, force=False)
    assert folder.is_dir()
    claim_output(folder, resume=False, force=False)  # still empty
    (folder / "x").write_text("x")
    check_output(folder, resume=False, force=True)
    assert (folder / "x").exists()  # nothing is touched yet
    with pytest.raises(UsageError, match="not empty") as caught:
        claim_output(folder, resume=False, force=False)
    assert "resume" in str(caught.value)
    assert "force" in str(caught.value)
    claim_output(folder, resume=True, force=False)
    assert (folder / "x").exists()
    claim_output(folder, resume=False, force=True)
    assert not (folder / "x").exists()
    with pytest.raises(UsageError, match="contradict"):
        claim_output(folder, resume=True, force=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a folder"):
        claim_output(tmp_path / "file", resume=False, force=True)


@pytest.mark.parametrize(
    ("mark", "kind"),
    [
        ("run.toml", "a run of gpt train"),
        ("manifest.json", "shards of"),
        (".git", "a git repository"),
    ],
)
def test_force_empties_no_output_of_another_kind(tmp_path: Path, mark: str, kind: str) -> None:
    (tmp_path / mark).touch()
    with pytest.raises(UsageError, match=f"contains {kind}") as caught:
        claim_output(tmp_path, resume=False, force=True)
    assert "choose another" in str(caught.value.hint)
    assert (tmp_path / mark).exists()
    claim_output(tmp_path, resume=False, force=True, own=mark)
    assert not (tmp_path / mark).exists()


def test_locks_are_nothing_that_a_folder_holds(tmp_path: Path) -> None:
    for name in (".lock", ".lock.0123abcd", ".eval.json.lock", ".eval.json.lock.0123abcd"):
        (tmp_path / name).touch()
    claim_output(tmp_path, resume=False, force=False)
    assert contents(tmp_path) == []
    for name in ("a.lock", ".locked", "lock", "b"):
        (tmp_path / name).touch()
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    assert len(contents(tmp_path)) == 5
    claim_output(tmp_path, resume=False, force=True)
    assert contents(tmp_path) == []
    assert len(os.listdir(tmp_path)) == 4
    assert contents(tmp_path / "none") == []


def test_an_output_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "x").touch()
    (tmp_path / "link").symlink_to("big")  # which is not there yet
    claim_output(tmp_path / "link", resume=False, force=False)
    (tmp_path / "big" / "y").touch()
    (tmp_path / "big" / "inner").symlink_to(tmp_path / "kept")
    with pytest.raises(UsageError, match="link: the output folder is not empty"):
        claim_output(tmp_path / "link", resume=False, force=False)
    claim_output(tmp_path / "link", resume=False, force=True)
    assert (tmp_path / "link").is_symlink()
    assert os.listdir(tmp_path / "big") == []
    assert os.listdir(tmp_path / "kept") == ["x"], "what a link in it leads to is not its own"
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "z").touch()
    assert os.listdir(tmp_path / "big") == ["z"]
    assert (tmp_path / "link").is_symlink()


def test_a_link_is_followed_to_the_file_that_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real").write_text("old")
    (tmp_path / "link").symlink_to("far/hop")
    (tmp_path / "far" / "hop").symlink_to("real")
    with pytest.raises(UsageError, match="exists already"):
        claim_file(tmp_path / "link", force=False)
    with atomic_write(tmp_path / "link", "w") as file:
        file.write("new")
    assert (tmp_path / "far" / "real").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert sorted(os.listdir(tmp_path / "far")) == ["hop", "real"]
    (tmp_path / "dangling").symlink_to("not/there")
    with atomic_write(tmp_path / "dangling", "w") as file:
        file.write("made")
    assert (tmp_path / "not" / "there").read_text() == "made"


def test_links_in_a_circle_are_refused_and_stay(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UsageError, match="leads back to itself"):
        check_writable(tmp_path / "a")
    with pytest.raises(UsageError, match="leads back to itself"), atomic_write(tmp_path / "a"):
        pass
    assert (tmp_path / "a").readlink() == Path("b")


def test_a_device_a_pipe_and_an_open_file_are_written_to_and_never_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    (tmp_path / "null").symlink_to("/dev/null")
    for name, kind in (("link", stat.S_ISFIFO), ("null", stat.S_ISCHR)):
        claim_file(tmp_path / name, force=False)  # nothing is lost there
        write_json(tmp_path / name, {"a": 1})
        assert kind((tmp_path / name).stat().st_mode)
    assert json.loads(os.read(reader, 1000)) == {"a": 1}
    os.close(reader)
    assert sorted(os.listdir(tmp_path)) == ["link", "null", "pipe"]
    with open(tmp_path / "out", "w") as out:  # as the shell opens it for `-o /dev/stdout > out`
        descriptor = Path(f"/proc/self/fd/{out.fileno()}")
        if descriptor.exists():
            claim_file(descriptor, force=False)
            inode = (tmp_path / "out").stat().st_ino
            write_json(descriptor, {"b": 2})
            assert (tmp_path / "out").stat().st_ino == inode
    (tmp_path / "round").symlink_to("round")
    assert not written_through(tmp_path / "round")


def test_force_never_empties_where_the_user_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    for folder in (Path(".."), tmp_path, Path.home(), Path("/")):
        with pytest.raises(UsageError, match="force=True would empty"):
            claim_output(folder, resume=False, force=True)


def test_claim_file(tmp_path: Path) -> None:
    claim_file(tmp_path / "new", force=False)
    (tmp_path / "old").write_text("x")
    with pytest.raises(UsageError, match="exists already"):
        claim_file(tmp_path / "old", force=False)
    claim_file(tmp_path / "old", force=True)
    with pytest.raises(UsageError, match="is a folder"):
        claim_file(tmp_path, force=True)


def test_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"é": 1})
    assert read_json(tmp_path / "a.json") == {"é": 1}
    (tmp_path / "b.json").write_text('{"a": 1,\n oops}')
    with pytest.raises(InputError, match=r"b\.json:2: not valid JSON"):
        read_json(tmp_path / "b.json")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid UTF-8"):
        read_json(tmp_path / "c.json")
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "d.json")


def test_toml_says_where_it_is_broken(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('kind = "é"', encoding="utf-8")
    assert read_toml(tmp_path / "a.toml") == {"kind": "é"}
    (tmp_path / "b.toml").write_text("a = 1\nb = = 2")
    with pytest.raises(InputError, match=r"b\.toml:2: not valid TOML: .*b = = 2"):
        read_toml(tmp_path / "b.toml")
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not valid UTF-8 at byte 0"):
        read_toml(tmp_path / "c.toml")
    with pytest.raises(InputError, match="no such file"):
        read_toml(tmp_path / "d.toml")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    # FIPS 180-2, B.1
    assert (
        sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize(
    "text",
    [b"[" * 100_000, b"9" * 5000, b'{"a": \xff}', b"{", b"\xff"],
    ids=["deep", "digits", "bytes", "open", "no text"],
)
def test_json_and_toml_that_cannot_be_read_are_one_clear_error(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a").write_bytes(text)
    with pytest.raises(InputError, match="a"):
        read_json(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"a = " + text)
    with pytest.raises(InputError, match="not valid"):
        read_toml(tmp_path / "a")


def test_leftovers_are_swept_but_for_one(tmp_path: Path) -> None:
    for name in (f".a{PARTIAL}", f"b/.c{PARTIAL}/d", f".kept{PARTIAL}/e", "f"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path, keep=tmp_path / f".kept{PARTIAL}")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        f".kept{PARTIAL}",
        f".kept{PARTIAL}/e",
        "b",
        "f",
    ]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "b.json"])
def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path, name: str) -> None:
    check_writable(tmp_path / name)
    with atomic_write(tmp_path / name, "w") as file:
        file.write("x")
    with atomic_folder(tmp_path / "folder" / name) as folder:
        (folder / "x").touch()
    assert sorted(os.listdir(tmp_path)) == sorted([name, "folder"])


CHECKS: list[Callable[[Path], None]] = [
    check_writable,
    lambda path: claim_file(path, force=True),
    lambda path: check_output(path, resume=False, force=True),
]


@pytest.mark.parametrize("check", CHECKS)
def test_an_unwritable_output_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check: Any
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="file is a file, not a folder"):
        check(tmp_path / "file" / "deep" / "out")
    with pytest.raises(UsageError, match="longer than 255 bytes"):
        check(tmp_path / ("a" * 256))
    with pytest.raises(UsageError, match="longer than 255 bytes"):
        check(tmp_path / ("é" * 128) / "out")
    # the superuser may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for path in (tmp_path / "out", tmp_path / "new" / "out"):
        with pytest.raises(UsageError, match=f"no permission to write in {tmp_path}\n") as caught:
            check(path)
        assert caught.value.where == str(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
@pytest.mark.parametrize("atomic", [atomic_write, atomic_folder])
def test_errors_name_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, atomic: Any, number: int
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number), str(self), None, str(target))

    for method in ("replace", "rename"):
        monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(OSError, match=os.strerror(number)) as caught, atomic(tmp_path / "out"):
        pass
    assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / "out"), None)
    assert PARTIAL not in str(caught.value)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as caught, atomic_write(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")  # written through, never replaced
    with (
        pytest.raises(OSError, match="No space") as piped,
        open(os.open(tmp_path / "pipe", os.O_RDWR), "rb"),
        atomic_write(tmp_path / "pipe"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert piped.value.filename == str(tmp_path / "pipe")
    with pytest.raises(OSError, match="No space") as beside, naming(tmp_path / "x.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert beside.value.filename == str(tmp_path / "x.bin")
    with (
        pytest.raises(RunError, match="must hold all of the text") as told,
        temporary_room("all of the text"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert told.value.where == tempfile.gettempdir()
    assert "TMPDIR" in str(told.value.hint)
    with pytest.raises(FileNotFoundError), temporary_room("x"):
        (tmp_path / "none").read_bytes()


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").touch()
    claim_output(tmp_path / "out", resume=False, force=True)
    assert os.listdir(tmp_path / "out") == []


def test_a_byte_order_mark_is_no_part_of_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


def test_a_folder_and_a_path_through_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder, not a file"):
        read_json(tmp_path)
    (tmp_path / "a").touch()
    with pytest.raises(InputError, match="a part of its path is a file"):
        read_toml(tmp_path / "a" / "b")


def test_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / ".shard").mkdir()
    assert similar(tmp_path / "shard") == tmp_path / "shards"
    assert similar(tmp_path / "zzz") is None
    assert similar(tmp_path / "none" / "shards") is None
    (tmp_path / "runs" / "book").mkdir(parents=True)
    for typed in ("run/book", "runs/bok", "run/bok", "Runs/Book"):
        assert similar(tmp_path / typed) == tmp_path / "runs" / "book"
    assert similar(tmp_path / "run" / "other") is None


def test_a_file_name_that_is_not_utf8_can_be_written_about(tmp_path: Path) -> None:
    name = b"sh\xe9".decode("utf-8", "surrogateescape")
    write_json(tmp_path / "a.json", {"data": name})
    assert read_json(tmp_path / "a.json") == {"data": name}
    with atomic_write(tmp_path / "a.txt", "w") as file:
        file.write(name)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "sh\\udce9"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_no_output_is_written_to_proc() -> None:
    with pytest.raises(UsageError, match="no file can be created there"):
        claim_file(Path("/proc/no-such-file.json"), force=False)
    assert not written_through(Path("/proc/no-such-file.json"))
    assert written_through(Path("/proc/self/fd/1"))


def test_a_missing_file_is_told_with_the_closest_name_or_where_its_path_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").touch()
    assert missing_file(Path("bok.txt")).hint == "did you mean book.txt?"
    begins = f"a relative path begins at the current folder, {tmp_path}"
    assert missing_file(Path("other.jsonl")).hint == begins
    assert missing_file(tmp_path / "other.jsonl").hint is None
