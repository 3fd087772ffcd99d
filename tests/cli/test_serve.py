"""`gpt sample --serve`: options, what is refused, the key, the port, Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
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


def test_a_quiet_server_says_its_address_and_ctrl_c_ends_it_at_once(
    run: Path, tmp_path: Path
) -> None:
    """While a client waits in a stream that never ends by itself soon."""
    log = tmp_path / "log"
    command = [sys.executable, "-m", "gptcli", "sample", str(run), "--serve", "--port", "0", "-q"]
    process = subprocess.Popen(
        [*command, "--log-file", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    address = process.stdout.readline().strip()  # the result of the command
    assert address.startswith("http://127.0.0.1:")
    port = int(address.rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 130
        assert process.stdout.read() == ""
        assert process.stderr.read() == "gpt: interrupted\n"
    assert address in log.read_text()
