from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import rank_memory
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer import fit
from gptcli.trainer.fit import check_division, check_memory, fitting

GPT2 = ModelConfig.from_paper(find_size("gpt2"))


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        (Layout(tp=5), {}, "tp=5 does not divide 12 heads"),
        (Layout(tp=3), {}, "tp=3 does not divide a context of 1024"),
        (Layout(pp=13), {}, "more stages than the model's 12 layers"),
        (
            Layout(pp=8),
            {"schedule": "interleaved1f1b"},
            "16 stages of pp=8, more than the model's 12 layers",
        ),
        (Layout(dp=65), {}, "a batch is 64"),
        (Layout(dp=32, pp=4), {}, "a batch is 64 sequences"),
        (Layout(shard=5, tp=2), {}, "does not divide a width of 768"),
    ],
)
def test_what_does_not_divide(layout, changes, message):
    with pytest.raises(UsageError, match=message):
        check_division(GPT2, layout, **{"schedule": "1f1b", "sequences": 64, **changes})


def test_a_batch_too_small_is_told_what_would_do():
    with pytest.raises(UsageError, match="reads 16 sequences at a time, but a batch is 8") as error:
        check_division(GPT2, Layout(dp=16), "1f1b", 8)
    assert "{option:layout}" in error.value.hint
    for text in error.value.hint.removeprefix("for example {option:layout} ").split(", or "):
        check_division(GPT2, fit.division.parse_layout(text), "1f1b", 8)


def test_what_does_not_fit_is_told_what_would(make_run, monkeypatch):
    run = make_run(precision="bf16")
    monkeypatch.setattr(fit, "device_memory", lambda processes: 8 * 10**9)
    check_memory(run.model, Layout(dp=4), run.train, 64)
    large = ModelConfig.from_paper(find_size("760M"))
    with pytest.raises(
        UsageError, match=r"a process of dp=4 needs .* GB of memory, and has 8 GB"
    ) as error:
        check_memory(large, Layout(dp=4), run.train, 64)
    named = [re.findall(r"\{option:\S+\} (\S+)", text) for text in error.value.hint.split("; or ")]
    assert len(named) > 1
    for layout, micro_batch, recompute in named:
        work = replace(run.train, layout=layout, micro_batch=int(micro_batch), recompute=recompute)
        check_memory(large, fit.division.parse_layout(layout), work, 64)
    with pytest.raises(UsageError) as error:
        check_memory(ModelConfig.from_paper(find_size("13B")), Layout(dp=4), run.train, 64)
    assert "use more processes" in error.value.hint
    assert "the largest paper size that fits here is 1558M" in error.value.hint
    for name in ("1558M", "2.7B"):
        config = ModelConfig.from_paper(find_size(name), vocab_size=run.model.vocab_size)
        assert bool(fitting(config, 4, 4, "bf16", fit.device(4), micro_batch=1)) == (
            name == "1558M"
        )


def test_fitting_layouts_fit_and_divide():
    gpu = replace(find_gpu("a100"), memory_bytes=16 * 10**9)
    model = ModelConfig.from_paper(find_size("1.3B"))
    found = fitting(model, 8, 64, "bf16", gpu)
    assert len({layout for layout, _ in found}) == len(found) > 3
    for layout, work in found:
        check_division(model, layout, "1f1b", 64)
        assert rank_memory(model, layout, work).total <= gpu.memory_bytes
