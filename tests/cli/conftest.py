"""The command line in this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli import main, messages
from tests.conftest import Gpt


@pytest.fixture
def gpt_here(
    gpt: Gpt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Gpt:
    """As the fixture `gpt`, in this process, which imports the modules of gptcli once and not for
    each command. With a stdin or an environment of its own, the command is still a fork.
    """
    monkeypatch.chdir(tmp_path)

    def run(
        *args: object, code: int | None = 0, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        if options:
            return gpt(*args, code=code, **options)
        words = ["gpt", *map(str, args)]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        messages.reset()
        out, err = capsys.readouterr()
        assert stop.value.code is None or isinstance(stop.value.code, int)
        ended = stop.value.code or 0
        assert code is None or ended == code, f"exit {ended}\n{out}\n{err}"
        return subprocess.CompletedProcess(words, ended, out, err)

    return run
