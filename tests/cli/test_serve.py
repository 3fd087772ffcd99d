"""`gpt sample --serve`: options, what is refused, the key, the port, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.errors import GptError
from tests.small_runs import save_small_model
from tests.waiting import HANG_S


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "run"
    return save_small_model(folder, "some words of prose " * 9, 270)


def sample(*args: object) -> None:
    """Run `gpt sample` in this process; its errors are raised."""
    argv = ["sample", *map(str, args)]
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--temperature", "1"], "--temperature has no effect with --serve"),
        (["--json"], "--json has no effect with --serve"),
        (["--example", "a"], "--example has no effect with --serve"),
        (["--config", "serve.toml"], "top_p has no effect with --serve"),
        (["--host", "0.0.0.0"], "it needs a key"),
        (["--port", "70000"], "out of range"),
        (["--api-key", ""], "the value is empty"),
        (["--checkpoint", "1", "--port", "0"], "no checkpoint of step 1"),
        ([".", "--checkpoint", "1"], "cannot be combined with two runs"),
        (["Once upon a time"], "'Once upon a time' is not a folder"),
        ([""], "'' is not a folder"),
        (["8001"], "'8001' is not a folder"),
        (["a", "b"], "--serve takes one run, or two to compare"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, list) else "",
)
def test_serve_refuses_what_a_request_says_and_what_is_not_there(
    run: Path, words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("serve.toml").write_text("top-p = 0.9\n")
    with pytest.raises(GptError, match=says) as caught:
        sample(run, *words, "--serve")
    assert caught.value.exit_code == 2


def test_options_of_the_server_need_it(run: Path) -> None:
    for words in (["--host", "::1"], ["--port", "80"], ["--api-key", "k"]):
        with pytest.raises(GptError, match=f"{words[0]} needs --serve"):
            sample(run, *words)


def test_a_key_of_the_environment_is_a_key(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.serving import server

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(server, "serve", lambda models, listening, **options: calls.append(options))
    sample(run, "--serve", "--port", 0)
    monkeypatch.setenv("GPT_API_KEY", "k")
    sample(run, run, "--serve", "--port", 0, "--host", "0.0.0.0", "--batch-size", 3)
    assert [(one["api_key"], one["batch_size"]) for one in calls] == [(None, 16), ("k", 3)]
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        with pytest.raises(GptError, match=f"port {port} of 127.0.0.1 is in use") as caught:
            sample(run, "--serve", "--port", port)
    assert caught.value.exit_code == 2


def started(run: Path, *options: str) -> tuple[subprocess.Popen[str], str]:
    """Return the process of a server, and its address."""
    command = [sys.executable, "-m", "gptcli", "sample", str(run), "--serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    address = process.stdout.readline().strip()  # the result of the command
    assert address.startswith("http://127.0.0.1:")
    return process, address


def test_a_quiet_server_says_its_address_and_sigterm_ends_it_silently(
    run: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process, address = started(run, "-q", "--log-file", str(log))
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=HANG_S)
    assert (process.returncode, output, errors) == (0, "", "")
    assert address in log.read_text()


def test_ctrl_c_ends_a_server_that_has_answered_in_order(run: Path) -> None:
    process, address = started(run)
    body = json.dumps({"max_tokens": 2}).encode()
    request = urllib.request.Request(f"{address}/v1/completions", body)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["usage"]["completion_tokens"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 0
    assert errors.endswith("Ctrl-C ends the server\nthe server has ended\n")


def test_a_signal_counts_the_requests_that_it_cuts_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many are under way when a signal arrives depends on the clock; what is said does not."""
    from gptcli.serving import server

    left: list[tuple[object, ...]] = []
    monkeypatch.setattr(server, "leave", lambda *how: left.append(how))
    for count in (0, 1, 2):
        ending = server.EndServer(SimpleNamespace(requests=count), "ended\n")  # type: ignore[arg-type]
        ending.act(signal.SIGTERM)
        if not count:
            assert left == [("ended\n", 0)]
        else:
            assert f"answer to {count} request" in str(left[-2][0])
