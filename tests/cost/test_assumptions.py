"""Every constant of every table has a value, a source and, where there is one, an address and a
date.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import gptcli.cost
from gptcli.cost.cluster import make_cluster
from gptcli.cost.estimate import Estimate, price_training
from gptcli.cost.hardware import gpus
from gptcli.model.config import ModelConfig, find_size

TABLES = sorted(Path(gptcli.cost.__file__).parent.glob("*.toml"))


def sourced(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Every table of a file that names a source, however deep."""
    found = [table] if "source" in table else []
    for value in table.values():
        for inner in value if isinstance(value, list) else [value]:
            found += sourced(inner) if isinstance(inner, dict) else []
    return found


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_tables(path: Path) -> None:
    rows = sourced(tomllib.loads(path.read_text(encoding="utf-8")))
    assert rows
    for row in rows:
        assert len(row["source"]) > 10
        assert re.fullmatch(r"\d{4}(-\d{2}){0,2}", row["date"]), row
        assert all(
            address.startswith("https://") for address in row.get("url", "https://").split(", ")
        ), row


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_estimates_on_every_gpu_say_where_all_is_from(gpu: Any) -> None:
    model = ModelConfig.from_paper(find_size("125M"))
    cluster, plan = make_cluster(gpu, 8, model=model)
    estimate = price_training("125M", model, 10**10, cluster, tokens_source="the test", plan=plan)
    assert estimate.gpu_hours > 0
    assert all(assumption.source and assumption.value > 0 for assumption in estimate.assumptions)
    names = [assumption.name for assumption in estimate.assumptions]
    assert len(names) == len(set(names))
    assert {
        "FLOPs",
        "tokens",
        "throughput",
        "year",
        "PF-day",
        "peak",
        "GPU memory",
        "training state",
    } <= set(names)
    assert ("board power" in names) == (gpu.watts is not None)


def test_flops_alone_rest_on_little() -> None:
    cluster, _ = make_cluster(None, 1, model=None, tflops=10)
    names = [assumption.name for assumption in Estimate("x", 1e20, cluster).assumptions]
    assert names == ["throughput", "year", "PF-day"]
