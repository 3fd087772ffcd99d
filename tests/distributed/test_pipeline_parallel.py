"""Stages of a pipeline; tests/system/test_layouts.py runs them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gptcli.cost.layout import Layout
from gptcli.cost.memory import SCHEDULES
from gptcli.distributed.context import RankContext
from gptcli.distributed.pipeline_parallel import (
    SCHEDULE_CLASSES,
    merge_stages,
    split_stages,
)
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT

CONFIG = ModelConfig(n_layer=11, n_head=2, d_model=8, n_ctx=8, vocab_size=50)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("pp", [2, 3, 5])
def test_every_parameter_is_held_once_under_its_plain_name(pp, schedule, tied):
    config = ModelConfig(**{**CONFIG.as_dict(), "tied": tied})
    held: Counter[str] = Counter()
    layers = []
    for rank in range(pp):
        with torch.device("meta"):
            model = GPT(config)
            stages = split_stages(
                model, RankContext(torch.device("cpu"), rank, pp, Layout(pp=pp)), schedule
            )
        assert len(stages) == SCHEDULES[schedule]
        held.update(name for name, _ in merge_stages(stages).named_parameters())
        layers += [len(stage.h) for stage in stages]
    plain = Counter(name for name, _ in GPT(config).named_parameters())
    if tied:  # the first and the last stage
        assert held.pop("wte.weight") == 2
        plain.pop("wte.weight")
    assert held == plain
    assert max(layers) - min(layers) <= 1


def test_every_schedule_runs():
    assert SCHEDULE_CLASSES.keys() == SCHEDULES.keys()
