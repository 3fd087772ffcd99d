"""One message: what, where, what to do. And it survives the way from a worker."""

from __future__ import annotations

import pickle

import pytest

from gptcli.errors import GptError, InputError, Interrupted, RunError, UsageError, nearest


def test_message_has_all_three_parts() -> None:
    assert str(InputError("no text field", where="a.jsonl:3", hint="add one")) == "a.jsonl:3: no text field\n  add one"
    assert str(UsageError("bad size")) == "bad size"


@pytest.mark.parametrize(("kind", "code"), [(UsageError, 2), (InputError, 2), (RunError, 1), (Interrupted, 130)])
def test_kinds_cross_process_borders(kind: type[GptError], code: int) -> None:
    error = pickle.loads(pickle.dumps(kind("what", where="where", hint="hint")))
    assert type(error) is kind
    assert (error.what, error.where, error.hint, error.exit_code) == ("what", "where", "hint", code)


def test_nearest() -> None:
    assert nearest("350m", ["125M", "350M", "13B"]) == "did you mean 350M?"
    assert nearest("zzz", ["125M", "13B"]) == "one of: 125M, 13B"
