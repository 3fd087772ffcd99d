"""Use the small runs, and a machine without GPUs and launcher."""

from __future__ import annotations

import pytest
import torch

from tests.small_runs import (  # noqa: F401
    make_run,
    shards,
    train_here,
    write_shards,
    write_sources,
)


@pytest.fixture
def cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide GPUs, and the processes of a launcher."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
