"""Several seeds are one measurement, and a sweep is a Makefile."""

# ruff: noqa: F811
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.cli.test_train import _one_thread, gpt_inside, here, made  # noqa: F401

Gpt = Callable[..., tuple[str, str]]
OPTIONS = [
    "train", "--n-layer", "1", "--n-head", "1", "--d-model", "8", "--n-ctx", "16", "--tokens", "640",
    "--batch-tokens", "64", "--lr", "3e-3", "--compile", "off", "--precision", "fp32",
    "--samples", "0", "--eval-every", "5",
]  # fmt: skip


def test_seeds_are_trained_continued_and_averaged(gpt_inside: Gpt, here: Path) -> None:
    one = json.loads(gpt_inside(*OPTIONS, "--seeds", "2", "-o", "many", "--json")[0])
    report = json.loads((here / "many/seeds.json").read_text())
    assert report == {"schema": "gpt.train.seeds/1", **{k: one[k] for k in one if k != "schema"}}
    assert one["runs"] == ["many/seed-0", "many/seed-1"]
    assert one["losses"][0] != one["losses"][1]
    assert one["low"] < one["mean"] < one["high"]
    before = (here / "many/seed-0/model.safetensors").stat().st_mtime_ns
    out, err = gpt_inside(*OPTIONS, "--seeds", "3", "-o", "many", "--json", "--resume")
    three = json.loads(out)
    assert three["losses"][:2] == one["losses"]
    assert len(three["losses"]) == 3
    assert "many/seed-1 is finished" in err
    assert (here / "many/seed-0/model.safetensors").stat().st_mtime_ns == before
    gpt_inside("train", "--report", "many", "-o", "page.html")
    page = (here / "page.html").read_text()
    assert "above the lowest" in page
    assert f"{three['mean']:.4f} ±" in page


def test_a_lost_run_of_several_seeds_comes_back_from_the_store(gpt_inside: Gpt, here: Path) -> None:
    again = [*OPTIONS, "--seeds", "2", "-o", "many", "--checkpoint-to", str(here / "store")]
    one = json.loads(gpt_inside(*again, "--json")[0])
    assert sorted(path.name for path in (here / "store").iterdir()) == ["seed-0", "seed-1"]
    err = gpt_inside(*again, "--force", code=2)[1]
    assert "--checkpoint-to" in err
    assert "has checkpoints already" in err
    shutil.rmtree(here / "many" / "seed-1")
    out, err = gpt_inside(*again, "--resume", "--json")
    assert "fetching that of step 10" in err
    assert json.loads(out)["losses"] == one["losses"]


def test_a_sweep_is_written_and_its_mistakes_are_refused(gpt_inside: Gpt, here: Path) -> None:
    wanted = [*OPTIONS[:-2], "--sweep", "ema=0,0.9", "--sweep", "seed=1", "-o", "sweep"]
    gpt_inside(*wanted, "--force", "--checkpoint-to", "memory://b")
    stored = (here / "sweep/commands.txt").read_text().splitlines()
    assert [line.split("--checkpoint-to ")[1].split()[0] for line in stored] == [
        "memory://b/ema-0,seed-1",
        "memory://b/ema-0.9,seed-1",
    ]
    (here / "sweep/Makefile").unlink()
    assert gpt_inside(*wanted)[0] == "sweep/Makefile\n"
    commands = (here / "sweep/commands.txt").read_text().splitlines()
    assert [line.split(" -o ")[1] for line in commands] == [
        "sweep/ema-0,seed-1 --resume",
        "sweep/ema-0.9,seed-1 --resume",
    ]
    assert not (here / "sweep/ema-0,seed-1").exists()
    for items, words in (
        (["--sweep", "lr=1"], "is given and swept"),
        (["--sweep", "emma=1"], "did you mean ema"),
        (["--sweep", "learning_rate=1"], "it is called lr here"),
        (["--sweep", "ema=2"], "2 is out of range"),
        (["--seeds", "2", "--dry-run"], "is about one run"),
    ):
        assert words in gpt_inside(*OPTIONS, *items, "-o", "other", code=2)[1]
