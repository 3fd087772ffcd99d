"""-q, -v and --log-file are options of every command, and do what they say."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli import messages
from gptcli.cli.command import option_table
from gptcli.cli.console import ConsoleEvents
from gptcli.cli.dashboard import Dashboard
from gptcli.cli.messages import SECRET, LogFile
from gptcli.errors import InputError
from tests.cli.test_command import PATHS, command_at

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d "
FACTS = {"step": 3, "smoothed_loss": 2.5, "lr": 0.1, "tokens_per_second": 10.0, "tflops": 0.25}


@pytest.fixture(autouse=True)
def fresh() -> Any:
    messages.reset()
    yield
    messages.reset()


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_command_has_the_options_in_one_panel(path: tuple[str, ...]) -> None:
    command, ctx = command_at(path)
    table = option_table(command, ctx)
    for short, name in (("-q", "--quiet"), ("-v", "--verbose")):
        assert table[short] is table[name]
    panels = {table[name].rich_help_panel for name in ("-q", "-v", "--log-file")}
    assert panels == {messages.PANEL}


def test_a_command_tells_the_log_of_itself_and_of_its_error(gpt: Any, tmp_path: Path) -> None:
    log = tmp_path / "ü log.txt"
    log.write_text("kept\n", "utf-8")
    done = gpt("sample", "nothing", "-q", "--log-file", log.name, code=2)
    lines = log.read_text("utf-8").splitlines()
    assert lines[0] == "kept"
    assert all(re.match(STAMP, line) for line in lines[1:])
    texts = [re.sub(STAMP, "", line) for line in lines[1:]]
    assert texts[0].startswith("command: gpt sample nothing -q --log-file ")
    assert "Python 3" in texts[1]
    assert texts[2] == done.stderr.splitlines()[0] == "gpt: nothing: no such folder"
    assert texts[-1].endswith("with exit code 2")
    assert "exit code" not in done.stderr


def test_verbose_tells_of_the_surroundings(gpt: Any) -> None:
    done = gpt("cost", "--size", "125M", "-v")
    quiet = gpt("cost", "--size", "125M", "-q")
    assert done.stdout == quiet.stdout
    assert quiet.stderr == ""
    first, second, *_, last = done.stderr.splitlines()
    assert first == "command: gpt cost --size 125M -v"
    assert "Python 3" in second
    assert last.endswith("with exit code 0")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("-q", "-v"), "-q cannot be combined with -v"),
        (("--log-file", "none/x.log"), "none/x.log cannot be written: no such file or directory"),
        (("--log-file", "."), "cannot be written: is a directory"),
        (("--log-file",), "--log-file needs a value"),
        (("--log-file", ""), "--log-file: the value is empty"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    gpt: Any, words: tuple[str, ...], said: str
) -> None:
    done = gpt("cost", "--size", "125M", *words, code=2)
    assert said in done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 2


def test_a_command_after_another_in_one_process_is_told_nothing_of_it() -> None:
    command, ctx = command_at(("cost",))
    command.make_context("cost", ["-q"], parent=ctx.parent)
    assert messages.current_messages().quiet
    command.make_context("cost", [], parent=ctx.parent)
    assert not messages.current_messages().quiet


def test_quiet_events_are_logged_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    current = messages.current_messages()
    current.quiet, current.log = True, LogFile(tmp_path / "log")
    for events in (ConsoleEvents(), Dashboard("run")):
        for done in range(60):
            events.progress("train", done, 60, "tokens", **FACTS)
            clock[0] += 1
        events.info("several\nlines of {option:n_ctx}")
        events.warn("careful")
        events.finish("train")
    assert capsys.readouterr() == ("", "")
    texts = [re.sub(STAMP, "", line) for line in (tmp_path / "log").read_text("utf-8").splitlines()]
    assert texts[3:6] == ["several", "lines of --n-ctx", "warning: careful"]
    assert [text.split()[1] for text in texts if text.startswith("train: ")] == [
        "5/60", "15/60", "35/60", "5/60", "15/60", "35/60",
    ]  # fmt: skip
    assert "tflops 0.25" in texts[0]
    assert "tflops" not in texts[-3], "the dashboard's line has the most important facts"


def test_verbose_progress_has_a_line_each_second_with_all_facts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    messages.current_messages().verbose = True
    events = Dashboard("run")
    for done in range(10):
        events.progress("train", done, 60, "tokens", **FACTS)
        clock[0] += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["2/60", "4/60", "6/60", "8/60"]
    assert all("tflops 0.25" in line for line in lines)


def test_a_full_disk_is_told_once_and_stops_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    log = LogFile(Path("/dev/full"))
    log.write("one")
    log.write("two")
    assert (
        capsys.readouterr().err
        == "warning: /dev/full is not written further: no space left on device\n"
    )


def test_a_log_file_that_is_moved_away_is_begun_anew(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "log")
    log.check()
    assert log.path.read_bytes() == b""
    log.write("one \udcff")
    log.path.rename(tmp_path / "log.1")
    log.write("two")
    assert log.path.read_text("utf-8").endswith(" two\n")
    with pytest.raises(InputError, match="cannot be written"):
        LogFile(tmp_path / "log" / "x").check()


def test_a_key_is_not_told() -> None:
    for line in ("gpt sample r --api-key 'a b' -v", "gpt sample r --api_key=ab -v"):
        shown = SECRET.sub(r"\1...", line)
        assert "ab" not in shown
        assert "a b" not in shown
        assert shown.endswith("... -v")
