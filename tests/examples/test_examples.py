"""Every example, dry: its Makefile chains commands whose options exist, its configurations are
read, its texts are the code's.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from gptcli import toml_json
from gptcli.cli import train_options
from gptcli.cli.command import read_config
from gptcli.corpus import recipe
from gptcli.trainer.resolve import resolve_run

EXAMPLES = Path(__file__).parents[2] / "examples"
MAKEFILES = sorted(EXAMPLES.glob("*/Makefile"))
RECIPES = sorted(EXAMPLES.glob("*/recipe.toml"))
CONFIGS = sorted(
    path
    for name in ("shakespeare", "gpt2-124M", "gpt3-350M")
    for path in (EXAMPLES / name).glob("*.toml")
    if path not in RECIPES
)
GOALS = {
    "shakespeare": ["all", "gpu", "compare", "baseline"],
    "gpt1-finetune": ["all", "compare"],
    "cluster": ["submit", "here", "plan"],
    "gpt2-eval": ["all", "data"],
    "own-task": ["all", "show"],
}


def dry(makefile: Path, goal: str, *more: str) -> str:
    """Return the commands that make would run, with nothing made yet."""
    done = subprocess.run(
        ["make", "-n", "-B", "-C", str(makefile.parent), goal, *more],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("makefile", MAKEFILES, ids=lambda path: path.parent.name)
def test_commands_of_the_makefiles_parse(makefile, parse):
    data = {
        "gpt1-finetune": ("DATA=data",),
        "shakespeare": (f"TEXT={makefile}",),
        "mup": (f"TEXT={makefile}",),
        "gpt2-eval": ("WEIGHTS=gpt2", "DATA=data"),
        "own-task": ("RUN=runs/book",),
    }.get(makefile.parent.name, ())
    for goal in GOALS.get(makefile.parent.name, ["all"]):
        lines = parse.commands(dry(makefile, goal, *data))
        assert lines or makefile.parent.name == "cluster"
        for line in lines:
            parse(line)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize(
    ("name", "goal"),
    [("gpt1-finetune", "all"), ("cluster", "submit"), ("cluster", "here")],
)
def test_data_that_are_not_there_are_asked_for(name, goal, tmp_path):
    shutil.copy(EXAMPLES / "common.mk", tmp_path)
    shutil.copytree(EXAMPLES / name, tmp_path / name, ignore=shutil.ignore_patterns("out"))
    command = tmp_path / "bin" / "gpt"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    environment = {"PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["make", "-C", tmp_path / name, goal, *(["DATA=data"] if name == "gpt1-finetune" else [])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("There ")
    assert "make DATA=folder" in done.stderr.splitlines()[0]
    assert done.stdout.count("FLOP") == 0, "no cost report before the check"


@pytest.mark.parametrize("makefile", MAKEFILES, ids=lambda path: path.parent.name)
def test_an_example_writes_below_out(makefile):
    """So that running it leaves the clone as it was: no tracked picture is drawn over."""
    texts = [makefile, *makefile.parent.glob("*.py")]
    for text in (path.read_text(encoding="utf-8") for path in texts):
        written = re.findall(r"""Path\((?:out, )?["']([\w./-]+)["']\)\.write_text""", text)
        written += re.findall(r"^OUT *\?= *(\S+)", text, re.MULTILINE)
        written += re.findall(r"^\t(?!@echo).* ([\w./-]+\.svg)(?: |$)", text, re.MULTILINE)
        assert all(name.startswith("out") for name in written), written


@pytest.mark.parametrize("makefile", MAKEFILES, ids=lambda path: path.parent.name)
def test_what_a_makefile_says_fits_80_columns(makefile):
    for line in re.findall(r'^\t@echo "(.*)"$', makefile.read_text(encoding="utf-8"), re.MULTILINE):
        assert len(line) <= 80, line


@pytest.mark.parametrize("makefile", MAKEFILES, ids=lambda path: path.parent.name)
def test_a_file_a_rule_needs_is_there_or_made(makefile):
    text = makefile.read_text(encoding="utf-8")
    for name in re.findall(
        r"(?<![\w/$(%.*-])([\w-]+\.(?:py|toml|slurm))\b", re.sub(r"#.*", "", text)
    ):
        assert (makefile.parent / name).is_file(), name


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_configuration_makes_a_plan(config):
    given = train_options.given_values({}, config, resume=False)
    # no machine
    given.put(
        {
            "layout": "dp=1",
            "micro_batch": 1,
            "precision": "fp32",
            "compile": "off",
            "recompute": "none",
        },
        "this test",
    )
    plan = resolve_run(given, vocab_size=257 if config.parent.name == "shakespeare" else None)
    readme = (config.parent / "README.md").read_text(encoding="utf-8")
    assert f"{plan.model.parameters:,}" in readme


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_is_read(path, monkeypatch):
    monkeypatch.setattr(recipe, "find_inputs", lambda inputs, **options: list(inputs))
    monkeypatch.setattr(recipe, "find_reader", lambda *_, **options: None)
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    names = [source.name for source in recipe.read_sources(table["sources"])]
    assert sum(recipe.preset_weights(table["mixture"], names).values()) > 0
    assert recipe.read_decontaminate(table["decontaminate"])


@pytest.mark.parametrize(("name", "steps"), [("cpu", 2000), ("gpu", 5000)])
def test_shakespeare_s_recipes_are_nanogpt_s(name, steps):
    values = read_config(EXAMPLES / "shakespeare" / f"{name}.toml", train_options.READERS)
    assert values["tokens"] == steps * values["batch_tokens"]
    assert values["warmup_tokens"] == 100 * values["batch_tokens"]
    assert (values["lr"], values["min_lr_ratio"], values["beta2"]) == (1e-3, 0.1, 0.99)


def test_the_schema_is_what_the_options_are():
    """examples/config.schema.json: gpt train --schema > examples/config.schema.json"""
    from gptcli.cli.train import schema

    text = (EXAMPLES / "config.schema.json").read_text(encoding="utf-8")
    assert text == toml_json.dumps(schema(), indent=2) + "\n"
