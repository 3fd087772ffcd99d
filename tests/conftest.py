"""Fixtures of every test."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fork_server import python

# what is right does not depend on how busy the machine is
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
os.environ.setdefault("NO_COLOR", "1")
os.environ.setdefault("COLUMNS", "120")
# torch.compile imports setuptools, which fails once a test has made the import of trafilatura fail
with contextlib.suppress(ImportError):
    import setuptools  # noqa: F401
for forced in ("FORCE_COLOR", "GITHUB_ACTIONS"):  # both make rich paint even into pipes
    os.environ.pop(forced, None)

# A suite started in the background inherits an ignored SIGINT, and one under nohup an ignored SIGHUP;
# every process that a test signals would inherit them in turn. A handler is not inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)

RUNNING = "PYTEST_CURRENT_TEST"  # is pytest's own
Gpt = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """Put back the variables that a test, or what it called, has changed: for the tests after it."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys() - {RUNNING}:
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value and name != RUNNING:
            os.environ[name] = value


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests were skipped, and why: one line a reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section(f"{len(skipped)} skipped")
    for reason, count in sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0])):
        terminalreporter.write_line(f"{count:>5}  {reason}")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data, or a skip."""
    where = os.environ.get("GPT_TEST_DATA")
    if not where or not Path(where).is_dir():
        pytest.skip("set GPT_TEST_DATA to the folder of real data")
    return Path(where)


@pytest.fixture(scope="session")
def free_port() -> Callable[[], str]:
    """A port to meet at. It is not one that the system gives to whoever asks for any: another could
    have it before the first process listens."""

    def find() -> str:
        for port in random.SystemRandom().sample(range(15_000, 32_000), 100):
            with contextlib.suppress(OSError), socket.create_server(("localhost", port)):
                return str(port)
        raise OSError("none of 100 ports is free")

    return find


@pytest.fixture
def gpt(tmp_path: Path) -> Gpt:
    """Run the command line as a user would, in `tmp_path`: gpt("cost", "--size", "175B", code=0) ->
    the finished process. It is a fork with the libraries imported; `started=True` starts Python.
    """

    def run(
        *args: object,
        code: int | None = 0,
        stdin: str | None = None,
        cwd: Path = tmp_path,
        started: bool = False,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        done = python(
            "-m", "gptcli", *map(str, args), cwd=cwd, env=env, stdin=(stdin or "").encode(), started=started
        )  # fmt: skip
        out, err = (stream.decode().replace("\r\n", "\n") for stream in (done.stdout, done.stderr))
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run
