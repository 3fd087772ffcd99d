from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gptcli.cost.layout import Layout
from gptcli.model.config import ModelConfig, find_size
from gptcli.shards.manifest import Manifest, Shard, Source, read_manifest
from gptcli.trainer.forecast import disk_bytes, forecast, forecast_facts
from gptcli.trainer.machine import Machine
from gptcli.trainer.memory import process_memory

LARGE = Machine(
    name="a large one",
    memory_bytes=10**15,
    disk_free_bytes=10**15,
    tokens_per_second=(1e3, 4e3),
    step_seconds=(0.01, 0.1),
)


def manifest_of(
    train: dict[str, int], val: int = 10**6, weights: dict[str, float] | None = None
) -> Manifest:
    rows = [
        Shard(file=f"{name}.bin", split="train", tokens=n, documents=1, sha256="", source=name)
        for name, n in train.items()
    ]
    first = next(iter(train))
    rows.append(
        Shard(file="val.bin", split="val", tokens=val, documents=1, sha256="", source=first)
    )
    sources = [
        Source(
            name=name,
            documents_in=1,
            documents_kept=1,
            dropped={},
            text_bytes=1,
            tokens=n,
            weight=(weights or {}).get(name, 1.0),
        )
        for name, n in train.items()
    ]
    return Manifest(
        tokenizer_sha256="", vocab_size=260, eot_id=0, seed=0, val_fraction=0.0, split_rule="", shards=rows, sources=sources
    )  # fmt: skip


@pytest.fixture
def foretell(make_run):
    """Forecast a run of 200 steps of 64 tokens on 12,800 tokens of data, with anything changed."""

    def make(manifest=None, machine=LARGE, done=0, **changes):
        run = make_run(
            **{"tokens": 12_800, "decay_tokens": 12_800, "checkpoint_every": 20, **changes}
        )
        return forecast(
            run.model, run.train, manifest or manifest_of({"a": 12_800}), machine, done=done
        )

    return make


def codes(found) -> list[str]:
    return [caution.code for caution in found.warnings]


def test_a_run_that_gives_no_cause_for_warnings(foretell, make_run):
    found = foretell()
    assert (found.steps, found.tokens, found.batch_tokens, found.warmup_steps) == (
        200,
        12_800,
        64,
        2,
    )
    assert (found.passes, found.passes_by_source, found.train_tokens) == (1.0, {}, 12_800)
    assert found.seconds_low == pytest.approx(12_800 / 4e3 + 200 * 0.01)
    assert found.seconds_high == pytest.approx(12_800 / 1e3 + 200 * 0.1)
    run = make_run()
    assert found.memory_bytes == process_memory(run.model, Layout(), run.train, 4)
    assert (found.fits, found.warnings) == (True, ())


def test_a_step_has_no_more_tokens_than_the_run(foretell):
    found = foretell(tokens=640, batch_tokens=64_000)
    assert forecast_facts(found)["steps"].startswith("1 of 640 tokens")


def test_a_resumed_run_takes_the_time_of_its_rest(foretell):
    whole, half = foretell(), foretell(done=6_400)
    assert half.seconds_low == pytest.approx(whole.seconds_low / 2)
    assert half.steps == whole.steps


def test_the_forecast_counts_the_steps_that_a_run_takes(make_run, train_here):
    run = make_run(ramp_tokens=640, ramp_from=16, tokens=2000)
    found = forecast(run.model, run.train, read_manifest(run.data), LARGE)
    report = train_here(run)
    assert (found.steps, found.tokens) == (report["step"], report["tokens"])
    files = run.out.glob("checkpoints/*/*.safetensors")
    assert sum(path.stat().st_size for path in files) < found.disk_bytes


def test_sources_of_a_mixture_are_passed_over_at_their_own_rates(foretell):
    manifest = manifest_of({"web": 10_000, "books": 1_000}, weights={"web": 3.0, "books": 1.0})
    found = foretell(manifest)
    assert found.passes == pytest.approx(12_800 / 11_000)
    assert found.passes_by_source == pytest.approx({"web": 0.96, "books": 3.2})
    assert codes(found) == []
    changing = foretell(manifest, mixture="6400: web=1,books=0")
    assert changing.passes_by_source == pytest.approx({"web": 1.12, "books": 1.6})
    warned = foretell(manifest, tokens=17_600)
    assert codes(warned) == ["many-passes"]
    assert "source 'books' 4.4 times" in warned.warnings[0].message


@pytest.mark.parametrize(
    ("code", "just", "over"),
    [
        ("few-steps", {"tokens": 100 * 64}, {"tokens": 99 * 64}),
        ("long-warmup", {"warmup_tokens": 12_800}, {"warmup_tokens": 12_801}),
        ("many-passes", {"tokens": 4 * 12_800}, {"tokens": 4 * 12_800 + 64}),
        (
            "data-too-short",
            {"manifest": manifest_of({"a": 12_800})},
            {"manifest": manifest_of({"a": 16}), "tokens": 64, "batch_tokens": 16},
        ),
        (
            "no-validation",
            {"manifest": manifest_of({"a": 12_800}, val=17)},
            {"manifest": manifest_of({"a": 12_800}, val=16)},
        ),
        (
            "best-not-measured",
            {"keep_best": "val_loss", "checkpoint_every": 30, "eval_every": 15},
            {"keep_best": "val_loss", "checkpoint_every": 31, "eval_every": 15},
        ),
        ("disk-space", {}, {"machine": replace(LARGE, disk_free_bytes=1)}),
        ("does-not-fit", {}, {"machine": replace(LARGE, memory_bytes=1)}),
        (
            "over-a-week",
            {
                "machine": replace(
                    LARGE, tokens_per_second=(12_800 / 1e6, 12_800 / 3e5), step_seconds=(0, 0)
                )
            },
            {
                "machine": replace(
                    LARGE, tokens_per_second=(12_800 / 1e6, 12_800 / 4e5), step_seconds=(0, 0)
                )
            },
        ),
    ],
)
def test_each_warning_begins_at_its_bound(foretell, code, just, over):
    assert code not in codes(foretell(**just))
    found = foretell(**over)
    assert code in codes(found)
    caution = next(caution for caution in found.warnings if caution.code == code)
    assert caution.hint
    assert caution.text == f"{caution.message}; {caution.hint}"
    assert "option:" not in str(caution)


@pytest.mark.parametrize("tokens", [16, 640, 1599, 1600, 3000, 6300])
@pytest.mark.parametrize("batch_tokens", [64, 1000])
def test_the_advice_for_few_steps_is_enough(foretell, tokens, batch_tokens):
    run = {
        "tokens": tokens,
        "batch_tokens": batch_tokens,
        "manifest": manifest_of({"a": 10**6}),
        "warmup_tokens": 0,
    }
    [caution] = foretell(**run).warnings
    assert (caution.code, "1 step is" in caution.message) == (
        "few-steps",
        foretell(**run).steps == 1,
    )
    advised = dict(re.findall(r"\{option:(tokens|batch_tokens)\} to ([\d,.]+k?)", caution.hint))
    assert ("batch_tokens" in advised) == (tokens >= 1600), "a hundred steps of a sequence"
    for name, value in advised.items():
        number = float(value.replace(",", "").rstrip("k")) * (1000 if value.endswith("k") else 1)
        assert codes(foretell(**{**run, name.replace("-", "_"): int(number)})) == []


def test_no_validation_data_at_all_is_a_choice(foretell):
    manifest = manifest_of({"a": 12_800})
    assert codes(foretell(replace(manifest, shards=manifest.shards[:1]))) == []


def test_without_data_passes_are_unknown(make_run):
    run = make_run(tokens=12_800)
    found = forecast(run.model, run.train, None, LARGE)
    assert (found.passes, found.train_tokens, found.warnings) == (None, None, ())


def test_a_batch_that_follows_the_noise_is_judged_by_its_first_steps(foretell):
    assert codes(foretell(batch_tokens=1280, follow_noise=True, ramp_from=64)) == []
    assert codes(foretell(batch_tokens=1280, follow_noise=True, ramp_from=1280)) == ["few-steps"]


def test_disk_holds_the_checkpoints_kept_one_more_the_model_and_its_copy(make_run):
    run = make_run(checkpoint_every=5, keep=2)
    assert disk_bytes(run.model, run.train, 20) == (3 * 12 + 2 * 4) * run.model.parameters
    assert disk_bytes(run.model, run.train, 5) == (12 + 2 * 4) * run.model.parameters


def test_a_run_that_does_not_fit_names_the_largest_size_that_does(make_run, monkeypatch):
    monkeypatch.setattr("gptcli.trainer.memory.host_memory", lambda: 24 * 10**9)
    train = make_run().train
    for name, memory in (("175B", "TB"), ("13B", "GB")):
        model = ModelConfig.from_paper(find_size(name))
        here = replace(LARGE, memory_bytes=int(0.93 * 24e9))
        caution = forecast(
            model, replace(train, tokens=10**6, batch_tokens=4096, precision="bf16"), None, here
        ).warnings[0]
        assert caution.code == "does-not-fit"
        assert memory in caution.message
        assert "22.3 GB" in caution.message
        assert "the largest paper size that fits here is 774M" in caution.hint
