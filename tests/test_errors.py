"""One message: what, where, what to do. And it survives the way from a worker."""

from __future__ import annotations

import pickle
import re
import sys
from pathlib import Path

import pytest

import gptcli
from gptcli import errors
from gptcli.errors import (
    GptError,
    InputError,
    Interrupted,
    RunError,
    UsageError,
    close_to,
    install_hint,
    nearest,
)


def test_message_has_all_three_parts() -> None:
    assert (
        str(InputError("no text field", where="a.jsonl:3", hint="add one"))
        == "a.jsonl:3: no text field\n  add one"
    )
    assert str(UsageError("bad size")) == "bad size"


@pytest.mark.parametrize(
    ("kind", "code"), [(UsageError, 2), (InputError, 2), (RunError, 1), (Interrupted, 130)]
)
def test_kinds_cross_process_borders(kind: type[GptError], code: int) -> None:
    error = pickle.loads(pickle.dumps(kind("what", where="where", hint="hint")))
    assert type(error) is kind
    assert (error.what, error.where, error.hint, error.exit_code) == ("what", "where", "hint", code)


def test_nearest() -> None:
    assert nearest("350m", ["125M", "350M", "13B"]) == "did you mean 350M?"
    assert nearest("zzz", ["125M", "13B"]) == "one of: 125M, 13B"


NAMES = [
    "tokenize",
    "build-shards",
    "train",
    "sample",
    "eval",
    "cost",
    "--n-layer",
    "--batch-tokens",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_slip_of_one_letter_is_close(name: str) -> None:
    first = len(name) - len(name.lstrip("-"))
    for at in range(first, len(name)):
        assert name in close_to(name[:at] + name[at + 1 :], NAMES)
        assert name in close_to(name[:at] + "x" + name[at:], NAMES)
        assert name in close_to(name[:at] + "x" + name[at + 1 :], NAMES)
        assert name in close_to(name[:at] + name[at : at + 2][::-1] + name[at + 2 :], NAMES)
    assert name in close_to(name[: first + 3], NAMES)


@pytest.mark.parametrize(
    "word",
    [
        "nonsense",
        "foo",
        "hello",
        "prune",
        "scale",
        "status",
        "--colour",
        "--verbose-mode",
        "x",
        "-x",
        "",
    ],
)
def test_another_word_is_close_to_nothing(word: str) -> None:
    assert (
        close_to(word, [*NAMES, "tokenise", "run", "ls", "-o", "--lr", "--clip", "--d-model"]) == []
    )


@pytest.mark.parametrize(
    ("python", "on_path", "pip", "hint"),
    [
        ("/v/bin/python", "/v/bin/python", True, "python -m pip install ray"),
        ("/v/bin/python", "/usr/bin/python", True, "/v/bin/python -m pip install ray"),
        ("/my v/bin/python", None, True, "'/my v/bin/python' -m pip install ray"),
        ("/v/bin/python", "/v/bin/python", False, "uv pip install --python python ray"),
        ("/v/bin/python", None, False, "uv pip install --python /v/bin/python ray"),
        ("", None, True, "python -m pip install ray"),
    ],
)
def test_install_hint_names_the_python_that_runs(monkeypatch, python, on_path, pip, hint) -> None:
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setattr(errors.shutil, "which", {"python": on_path}.get)
    monkeypatch.setattr(errors.importlib.util, "find_spec", {"pip": pip or None}.get)
    assert install_hint("ray") == hint


def test_no_other_form_of_the_hint_is_left() -> None:
    """Nothing names a package index's gptcli, which is not this one, or a pip of unknown Python."""
    package = Path(gptcli.__file__).parent
    root = package.parent
    documents = [
        root / "README.md",
        *root.glob("examples/*/README.md"),
        *root.glob("examples/*/Makefile"),
    ]
    for path in [*package.rglob("*.py"), *root.glob("examples/*/*.py"), *documents]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"install\s+['\"]?gptcli", text), path
        if path != package / "errors.py":
            assert not re.search(r"(?<!-m )(?<!uv )\bpip install", text), path
