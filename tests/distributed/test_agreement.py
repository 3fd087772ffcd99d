"""Processes that cannot train together are told so before the first step."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch

from gptcli.distributed.agreement import check_agreement
from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError


class TwoHosts(RankContext):
    """The context of the first of two processes; the other one's values are made from its own."""

    def all_gather(self, value: Any, group: Any = None) -> list[Any]:
        return [value, there(value)]


def there(value: Any) -> Any:
    if isinstance(value, tuple) and isinstance(value[1], dict):
        return ("second", {**value[1], **DIFFERENT})
    return ("second", SEES) if isinstance(value, tuple) else value


DIFFERENT: dict[str, Any] = {}
SEES = True


def test_processes_that_were_started_for_different_runs_are_refused(make_run, monkeypatch):
    run, here = make_run(), socket.gethostname()
    context = TwoHosts(torch.device("cpu"), 0, 2, run.layout)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    check_agreement(run, context)
    assert list(run.out.iterdir()) == []
    monkeypatch.setitem(DIFFERENT, "lr", 1.0)
    monkeypatch.setitem(DIFFERENT, "data", "0f")
    with pytest.raises(UsageError) as caught:
        check_agreement(run, context)
    assert caught.value.where == "second"
    assert f"lr is 1.0 there and 0.003 on {here}" in caught.value.what
    assert "data is '0f' there" in caught.value.what


def test_a_run_folder_that_a_host_does_not_see_is_refused_before_the_first_step(
    make_run, monkeypatch
):
    run = make_run()
    context = TwoHosts(torch.device("cpu"), 0, 2, run.layout)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    monkeypatch.setattr(f"{__name__}.SEES", False)
    with pytest.raises(UsageError, match="is not seen by second") as caught:
        check_agreement(run, context)
    assert (caught.value.where, caught.value.code) == (str(run.out), "folder_not_shared")
    assert list(run.out.iterdir()) == []
