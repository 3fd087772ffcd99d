from __future__ import annotations

import json
from dataclasses import replace

import torch

from gptcli.distributed.context import RankContext
from gptcli.events import Events
from gptcli.model.source import TRACE
from gptcli.trainer.loop import train


class Told(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def info(self, text):
        self.texts.append(text)

    warn = info


def test_a_trace_and_the_top_operators(make_run):
    run, told = replace(make_run(), profile=True), Told()
    train(run, RankContext(torch.device("cpu")), told)
    names = {
        event.get("name") for event in json.loads((run.out / TRACE).read_text())["traceEvents"]
    }
    assert "aten::addmm" in names
    assert any("aten::addmm" in text and "Self CPU" in text for text in told.texts)


def test_a_run_too_short_says_so(make_run):
    run, told = replace(make_run(tokens=64), profile=True), Told()
    train(run, RankContext(torch.device("cpu")), told)
    assert any("left no trace" in text for text in told.texts)
