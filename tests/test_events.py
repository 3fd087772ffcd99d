"""The base class of events is silent, and every receiver takes the same reports."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from gptcli.cli.console import ConsoleEvents
from gptcli.events import SILENT, Events

REPORTS: list[Callable[..., None]] = [Events.info, Events.warn, Events.progress, Events.finish]


def test_base_class_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    SILENT.info("text")
    SILENT.warn("text")
    SILENT.progress("training", 1, 2, "steps", loss=3.1)
    SILENT.progress("training", 2.5)
    SILENT.finish("training")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.__name__)
def test_console_takes_every_report_with_the_same_parameters(report: Callable[..., None]) -> None:
    own = ConsoleEvents.__dict__[report.__name__]
    assert inspect.signature(own).parameters == inspect.signature(report).parameters


def test_receivers_of_any_kind_get_parameters_named_for_their_reader() -> None:
    class Heard(Events):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def info(self, text: str) -> None:
            self.texts.append(text)

    class Louder(Heard):
        spell = staticmethod(str.upper)

        def warn(self, text: str) -> None:
            self.info(f"warning: {text}")

    for heard, text in ((Heard(), "raise n_ctx"), (Louder(), "raise N_CTX")):
        heard.info("raise {option:n_ctx}")
        assert heard.texts == [text]
    heard.warn("lower {option:n_ctx}")
    assert heard.texts[1:] == ["warning: lower N_CTX"]


def test_the_console_names_options(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleEvents().warn("raise {option:n_ctx}")
    assert capsys.readouterr().err == "warning: raise --n-ctx\n"
