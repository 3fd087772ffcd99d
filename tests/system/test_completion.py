"""Completions that each shell is offered: the shell's own script asks the command through the
environment, and so do these tests.
"""

from __future__ import annotations

import pytest

ASKED = {
    "bash": lambda words: {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)},
    "zsh": lambda words: {"_TYPER_COMPLETE_ARGS": " ".join(words)},
    "fish": lambda words: {
        "_TYPER_COMPLETE_ARGS": " ".join(words),
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    },
}


@pytest.mark.parametrize(
    ("shell", "line", "offered", "not_offered"),
    [
        ("bash", "gpt train --size 35", "350M", "175B"),
        ("zsh", "gpt train --size 35", "350M", "175B"),
        ("fish", "gpt train --size 35", "350M", "175B"),
        ("fish", "gpt tr", "train", "eval"),
        ("fish", "gpt cost --gpu h1", "h100", "a100"),
        ("fish", "gpt eval --task lam", "lambada", "hellaswag"),
        ("fish", "gpt train --micro", "--micro-batch", "--layout"),
    ],
)
def test_it_offers(gpt, shell, line, offered, not_offered):
    shown = gpt(_GPT_COMPLETE=f"complete_{shell}", **ASKED[shell](line.split()), code=None).stdout
    assert offered in shown
    assert not_offered not in shown


@pytest.mark.parametrize("shell", ASKED)
def test_the_script_for_each_shell(gpt, shell):
    script = gpt(
        "--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"
    ).stdout
    assert f"_GPT_COMPLETE=complete_{shell}" in script
