"""Models that can be priced: names, sizes, other families, and their batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gptcli.cost.hardware import USER
from gptcli.cost.options import HardwareOptions
from gptcli.cost.target import (
    OTHER_FAMILIES,
    Target,
    all_targets,
    batch_of,
    estimate_target,
    find_target,
    gpt_alike,
    llama_shape,
    target_names,
    with_days,
)
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.papers.models import MODELS, TABLE_D1


@pytest.mark.parametrize("row", TABLE_D1, ids=lambda row: row.name)
def test_estimates_agree_with_table_d1(row: Any) -> None:
    """Within 0.5 % of the printed values, from the size's name alone."""
    target = find_target(row.size or row.name)
    found = estimate_target(target, None, HardwareOptions(gpu="a100"))
    assert found.flops == pytest.approx(row.flops, rel=0.005)
    assert found.pf_days == pytest.approx(row.pf_days, rel=0.005)
    assert found.tokens == row.tokens
    assert found.parameters == pytest.approx(row.parameters, rel=0.005)


def test_estimate_of_gpt1_agrees_with_its_authors() -> None:
    found = estimate_target(find_target("gpt-1"), None, HardwareOptions())
    assert found.pf_days == pytest.approx(0.96, rel=0.005)
    assert (
        found.parameters == 12 * 12 * 768**2 + 13 * 12 * 768 + (40_478 + 512) * 768 == 116_534_784
    )


def test_every_model_of_the_papers_is_a_target_once() -> None:
    names = [target.name for target in all_targets()]
    assert names == [model.name for model in MODELS] + [row.name for row in OTHER_FAMILIES]
    assert len(names) == len(set(names))
    assert {row.name for row in OTHER_FAMILIES} >= {row.name for row in TABLE_D1 if not row.size}
    assert {"T5-11B", "BERT-Large", "175B"} <= set(target_names())


def test_names_match_whatever_their_case_and_hyphens() -> None:
    assert find_target("bert-LARGE").name == find_target("bertlarge").name == "BERT-Large"
    assert find_target("GPT2XL").name == "gpt2-xl"


def test_unknown_size_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown size 'T5-12B'") as caught:
        find_target("T5-12B")
    assert "T5-11B" in str(caught.value.hint)


def test_layouts_need_a_gpt_shape() -> None:
    options = HardwareOptions(gpu="a100", layout="shard=8")
    with pytest.raises(UsageError, match="is not a GPT"):
        estimate_target(find_target("T5-11B"), None, options)


def test_given_tokens_replace_the_usual_ones() -> None:
    found = estimate_target(find_target("T5-3B"), 2 * 10**9, HardwareOptions())
    assert found.flops == 3 * 3e9 * 2e9
    found = estimate_target(find_target("gpt2"), 2 * 10**9, HardwareOptions())
    assert found.tokens == 2 * 10**9


def test_the_batch_is_the_papers_or_that_of_the_nearest_size() -> None:
    for size, sequences in (
        ("125M", 256),
        ("1.3B", 512),
        ("175B", 1536),
        ("gpt2-xl", 512),
        ("gpt1", 64),
    ):
        target = find_target(size)
        assert batch_of(target.model, target.paper, None)[0] == sequences * target.model.n_ctx
    tiny = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=2**20)
    assert batch_of(tiny, None, None)[0] == 2**20, "never less than one sequence"
    tokens, source = batch_of(find_target("125M").model, None, 10_000)
    assert (tokens, source) == (5 * 2048, USER)


def test_notes_say_what_the_figures_hide() -> None:
    def notes(size: str, **options: Any) -> str:
        return " ".join(
            estimate_target(find_target(size), None, HardwareOptions(gpu="h100", **options)).notes
        )

    assert "at the speed of" in notes("175B")
    assert "fewest that hold it" not in notes("175B", gpus=1024)
    assert "GPUs are idle" in notes("125M", gpus=20_000)
    assert "critical batch" in notes("125M", gpus=8, batch_tokens=2**26)
    assert not notes("13B", gpus=64, mfu=0.4)
    assert "no published run" not in notes("125M", gpus=8)


def test_a_note_says_whose_speeds_a_prediction_rests_on() -> None:
    for gpu, words in (
        (
            "h20",
            "no published run on h20 was compared: its share of the peak is that of other Hopper",
        ),
        ("v100", "no published run on v100 or its family was compared"),
    ):
        found = estimate_target(find_target("125M"), None, HardwareOptions(gpu=gpu, gpus=8))
        assert any(note.startswith(words) for note in found.notes)
        assert found.as_dict()["speed_evidence"] == ("family" if gpu == "h20" else "none")


def test_days_on_the_fewest_gpus_and_on_more() -> None:
    """A model that one GPU cannot hold is not priced in days of one GPU."""
    options = HardwareOptions(gpu="h100")
    one = with_days(estimate_target(find_target("125M"), None, options), options)
    assert one.days_by_gpus == ()
    estimate = estimate_target(find_target("13B"), None, options)
    many = with_days(estimate, options)
    counts = [gpus for gpus, _ in many.days_by_gpus]
    assert estimate.plan is not None
    least = estimate.plan.layout.processes
    assert least > 1
    assert counts[0] == least
    assert counts[1:] == sorted({1 << (n * least - 1).bit_length() for n in (16, 64)})
    for gpus, days in many.days_by_gpus:
        given = replace(options, gpus=gpus)
        assert days == pytest.approx(estimate_target(find_target("13B"), None, given).days)
        assert with_days(many, given) == many
    assert many.as_dict()["days_by_gpus"][0] == {"gpus": least, "days": many.days_by_gpus[0][1]}
    mfu = HardwareOptions(gpu="h100", mfu=0.4)
    assert with_days(estimate_target(find_target("13B"), None, mfu), mfu).days_by_gpus == ()


LLAMAS: dict[str, tuple[dict[str, int], int]] = {  # shape, parameters as published
    "Llama 2 7B": ({"n_layer": 32, "n_head": 32, "d_model": 4096}, 6_738_415_616),
    "Llama 2 13B": (
        {"n_layer": 40, "n_head": 40, "d_model": 5120, "d_ff": 13824},
        13_015_864_320,
    ),
    "Llama 2 70B": (
        {"n_layer": 80, "n_head": 64, "d_model": 8192, "n_kv_head": 8, "d_ff": 28672},
        68_976_648_192,
    ),
    "Llama 3.1 70B": (
        {"n_layer": 80, "n_head": 64, "d_model": 8192, "n_kv_head": 8, "d_ff": 28672},
        70_553_706_496,
    ),
}
LLAMA_2 = {"n_ctx": 4096, "vocab_size": 32_000}


@pytest.mark.parametrize(
    ("name", "tokens", "gpu", "gpus", "batch_tokens", "hours"),
    [  # Llama 2 (Touvron et al. 2023, Table 2), Llama 3.1's model card; numbers of GPUs: assumed
        ("Llama 2 7B", 2e12, "a100", 1024, 4e6, 184_320),
        ("Llama 2 13B", 2e12, "a100", 1024, 4e6, 368_640),
        ("Llama 2 70B", 2e12, "a100", 2000, 4e6, 1_720_320),
        ("Llama 3.1 70B", 15e12, "h100", 4096, 16e6, 7.0e6),
    ],
)
def test_gpu_hours_of_llamas(
    name: str, tokens: float, gpu: str, gpus: int, batch_tokens: float, hours: float
) -> None:
    """Published GPU-hours are in the printed range. Llama 3.1 8B took 1.9 times the predicted, and
    405B, whose trainer frees activations that ours counts, half of it.
    """
    words, parameters = LLAMAS[name]
    shape = llama_shape(**words, **(LLAMA_2 if "2 " in name else {}))
    assert shape.parameters == parameters
    hardware = HardwareOptions(
        gpu=gpu, gpus=gpus, batch_tokens=int(batch_tokens), trainer="megatron"
    )
    found = estimate_target(Target("llama", shape, 1, ""), int(tokens), hardware)
    assert found.flops == 6 * parameters * tokens
    low, high = found.between(found.gpu_hours) or (0, 0)
    assert low < hours < high
    assert found.gpu_hours == pytest.approx(hours, rel=0.4)


def test_a_gpt_like_a_llama_has_its_size() -> None:
    for words, _ in LLAMAS.values():
        shape = llama_shape(**words)
        alike = gpt_alike(shape)
        assert alike.parameters == pytest.approx(shape.parameters, rel=0.03)
        assert (alike.d_model, alike.n_ctx) == (shape.d_model, shape.n_ctx)


def test_a_llama_by_default_and_what_does_not_divide() -> None:
    shape = llama_shape(n_layer=2, n_head=4, d_model=1000)
    assert (shape.n_kv_head, shape.d_ff, shape.tied, shape.gated) == (4, 2816, False, True)
    with pytest.raises(UsageError, match="3 does not divide 1000"):
        llama_shape(n_layer=2, n_head=3, d_model=1000)
    with pytest.raises(UsageError, match="3 does not divide 4"):
        llama_shape(n_layer=2, n_head=4, n_kv_head=3, d_model=1000)
    with pytest.raises(UsageError, match="priced by its FLOPs alone"):
        _ = Target("llama", shape, 1, "").model
