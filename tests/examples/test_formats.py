"""examples/FORMATS.md lists every field that is written, and no other.

The fields are those of real files: of a small chain of commands, and of the golden files.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from gptcli.corpus.recipe import SourceConfig
from gptcli.cost.prices import Offer
from gptcli.evals.task import Task
from gptcli.finetune.task import FinetuneTask
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_config
from tests.fork_server import python
from tests.golden.surface import TINY, keys

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
DOCUMENT = ROOT / "examples" / "FORMATS.md"
OUTPUTS = json.loads((GOLDEN / "outputs.json").read_text(encoding="utf-8"))

# Documented fields that no file of these tests has; the package must name them.
OPTIONAL = {
    "build.toml": set(),
    "run.toml": {
        "size",
        "init_from",
        "checkpoint",
        "continues",
        "mup",
        "optimizer",
        "lr_schedule",
        "cooldown_tokens",
        "ema",
        "weight_decay_schedule",
        "beta2_schedule",
        "end_weight_decay",
        "end_beta2",
        "mixture",
        "checkpoint_to",
        "keep_every",
        "keep_best",
        "checkpoint_minutes",
        "stop_early",
        "val",
        "track",
        "timeout",
    },
    "metrics.jsonl": {
        "skipped",
        "val_loss_NAME",
        "weight_decay",
        "beta2",
        "loss_NAME",
        "tokens_NAME",
        "passes_NAME",
        "rank_data_seconds",
        "rank_own_seconds",
        "rank_probe_seconds",
        "rank_memory",
    },
    "gpt train --json": {"failed_copies"},
    "state.json": {"metrics.running.loss_scale"},
    "tokenizer_config.json": {"unk_token"},
    "eval.json": {
        "tasks[].signatures",
        "tasks[].contamination",
        "suite",
        "left_out",
        "core",
    },
    "TASK.jsonl": {"group"},
}
PAPER_SCORE = {f"tasks[].paper[].{name}" for name in ("metric", "score", "model", "source")}

TASKS = {
    "choice": 'kind = "choice"\nprompt = "{q}"\nchoices = "c"\ngold = "g"\nunconditional = "A:"\n',
    "word": 'kind = "last_word"\nprompt = "{q}"\n',
    "free": 'kind = "freeform"\nprompt = "{q}"\nanswers = "c"\nmetric = ["f1"]\nmax_tokens = 2\n',
    "text": 'kind = "text"\ntarget = "{q}"\n',
}
ITEMS = [{"q": f"the river runs {n} and on", "c": ["low", "high"], "g": n % 2} for n in range(4)]
FINETUNE = """
kind = "classification"
train = "examples.jsonl"
validation = "examples.jsonl"
labels = [0, 1]
epochs = 1
batch = 4
"""


def documented() -> dict[str, set[str]]:
    """Return the fields in the tables of each section of the document."""
    found: dict[str, set[str]] = {}
    for part in re.split(r"^#+ ", DOCUMENT.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in body.splitlines() if line[:1] == "|"]
        heads = [cell.strip() for cell in next((row for row in rows if "field" in str(row)), [])]
        column = heads.index("field") if heads else None
        names = [row[column] for row in rows if column is not None and len(row) > column]
        found[title] = {name for cell in names for name in re.findall(r"`([^`]+)`", cell)}
    return {title: names for title, names in found.items() if names}


DOCUMENTED = documented()


def leaves(found: set[str]) -> set[str]:
    """Return the keys that have no keys below them."""
    return {
        key
        for key in found
        if not any(other.startswith((f"{key}.", f"{key}[]")) for other in found)
    }


def check(section: str, written: set[str], *, optional: bool = True) -> None:
    """Assert that a section lists the fields that are written, and no other."""
    written = leaves(written)
    listed = DOCUMENTED[section]
    patterns = {name: re.escape(name).replace(r"\*", ".+") for name in listed}
    missing = {
        key for key in written if not any(re.fullmatch(some, key) for some in patterns.values())
    }
    assert not missing, f"{section}: not in FORMATS.md"
    stale = {
        name for name in listed if not any(re.fullmatch(patterns[name], key) for key in written)
    }
    assert stale == (OPTIONAL.get(section, set()) if optional else set()), section


def lines_of(path: Path) -> set[str]:
    """Return the keys of a JSON Lines file."""
    return {
        key
        for line in path.read_text(encoding="utf-8").splitlines()
        for key in keys(json.loads(line))
    }


def dataclass_keys(kind: Any, prefix: str = "") -> set[str]:
    """Return the fields of a dataclass, those of dataclasses in it after a dot."""
    found = set()
    hints = get_type_hints(kind)
    for field in fields(kind):
        inner = next((part for part in (*get_args(hints[field.name]),) if is_dataclass(part)), None)
        name = f"{prefix}{field.name}"
        found |= {name} if inner is None else dataclass_keys(inner, f"{name}.")
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which every command that writes files has run."""
    folder = tmp_path_factory.mktemp("formats")
    shutil.copytree(GOLDEN / "fixtures", folder, dirs_exist_ok=True)
    tasks = []
    for name, table in TASKS.items():
        head = f'title = "{name}"\nsource = "here"\nreader = "jsonl"\nfiles = {{items = "items.jsonl"}}\n'
        (folder / f"{name}.toml").write_text(head + table)
        tasks += ["--task", f"{name}.toml"]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (folder / "task.toml").write_text(FINETUNE)
    (folder / "examples.jsonl").write_text(
        "".join(json.dumps({"text": item["q"], "label": item["g"]}) + "\n" for item in ITEMS)
    )
    (folder / "prompts.jsonl").write_text('{"prompt": "the river"}\n')
    reports = {}
    pairs = zip(TINY[::2], TINY[1::2], strict=True)
    without = ("--lr", "--warmup-tokens", "--eval-tokens", "--samples", "--checkpoint-every")
    swept = [word for pair in pairs if pair[0] not in without for word in pair]
    for name, words in {
        "resume": ["train", "--data", "shards", "--out", "run", "--resume", "--samples", "1"],
        "range": ["train", "--data", "shards", "--out", "range", *swept, "--lr-range"],
        "finetune": ["train", "--finetune", "task.toml", "--init-from", "finished", "--out", "tuned", "--json"],
        "eval": ["eval", "finished", *tasks, "--data", ".", "-o", "report.json", "--samples", "items-scored.jsonl"],
        "batch": ["sample", "finished", "--prompts", "prompts.jsonl", "--max-tokens", "2", "-o", "answers.jsonl"],
        "tokenize": ["tokenize", "train", "documents.jsonl", "--vocab-size", "280", "-o", "new.json", "--json"],
        "build": ["build-shards", "documents.jsonl", "-t", "new.json", "-o", "new", "--val-fraction", "0.1", "--json"],
    }.items():  # fmt: skip
        done = python("-m", "gptcli", *words, cwd=folder, env={"OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr.decode()
        if "--json" in words:
            reports[name] = json.loads(done.stdout)
    (folder / "reports.json").write_text(json.dumps(reports))
    return folder


@pytest.mark.parametrize(
    ("section", "path"),
    [
        ("manifest.json", "shards/manifest.json"),
        ("build.toml", "shards/build.toml"),
        ("resume.json", "shards/resume.json"),
        ("run.toml", "run/run.toml"),
        ("generation_config.json", "run/generation_config.json"),
    ],
)
def test_golden_files_have_the_documented_fields(section: str, path: str) -> None:
    check(section, set(OUTPUTS["files"][path]))


def test_state_json_has_the_documented_fields() -> None:
    """The identity consists of options in run.toml, and of the fields that are listed."""
    written = set(OUTPUTS["files"]["run/checkpoints/step-00000010/state.json"])
    check("state.json", written)
    options = {f"identity.{name}" for name in DOCUMENTED["run.toml"]}
    named = {name for name in DOCUMENTED["state.json"] if name != "identity.*"}
    assert {key for key in written if key.startswith("identity.")} <= options | named
    metrics = {f"metrics.{name}" for name in DOCUMENTED["metrics.jsonl"]}
    plain = {key for key in leaves(written) if re.fullmatch(r"metrics\.[^.]+", key)}
    assert plain <= metrics


@pytest.mark.parametrize(
    ("section", "report"),
    [
        ("gpt train --json", "train"),
        ("gpt train --dry-run --json", "train dry run"),
        ("gpt sample --json", "sample"),
        ("gpt cost --json", "cost"),
    ],
)
def test_reports_have_the_documented_fields(section: str, report: str) -> None:
    written = set(OUTPUTS["reports"][report]["keys"])
    check(section, written)
    assert f"`{OUTPUTS['reports'][report]['schema']}`" in DOCUMENT.read_text(encoding="utf-8")


def test_optional_fields_are_named_by_the_package() -> None:
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "gptcli").rglob("*.py"))
    for names in OPTIONAL.values():
        for name in names:
            assert re.search(rf"\b{name.rsplit('.', 1)[-1].removeprefix('tasks[]')}\b", source), (
                name
            )


def test_every_file_of_the_golden_run_is_named() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for path in OUTPUTS["files"]:
        name = re.sub(r"\d{6,}", lambda match: "0" * len(match[0]), Path(path).name)
        if Path(path).parts[0] in ("run", "shards"):
            assert f"`{name}`" in text, path


def test_run_folder_files_have_the_documented_fields(folder: Path) -> None:
    run = folder / "run"
    check("samples.jsonl", lines_of(run / "samples.jsonl"))
    written = lines_of(run / "metrics.jsonl")
    tuned = lines_of(folder / "tuned" / "metrics.jsonl")
    check("metrics.jsonl", written | tuned)
    check(
        "tokenizer_config.json", set(keys(json.loads((run / "tokenizer_config.json").read_text())))
    )
    check("lr_range.jsonl", lines_of(folder / "range" / "lr_range.jsonl"))
    check("finetune.json", set(keys(json.loads((folder / "tuned" / "finetune.json").read_text()))))
    index = json.loads((run / "checkpoints" / "step-00000020" / "index.json").read_text())
    assert any(name.endswith("/exp_avg") for name in index)
    check(
        "index.json",
        {key.replace("PATH", "NAME") for key in keys({"NAME": next(iter(index.values()))})},
    )


def test_every_family_of_config_json_is_documented(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"n_layer": 2, "n_head": 2, "d_model": 8, "n_ctx": 8, "vocab_size": 9}
    written: set[str] = set()
    for change in ({}, {"attention": "banded", "band": 4}, {"norm": "post"}):
        report = {"note": "", "logit_error": 0.0, "tolerance": 0.0} if change.get("band") else None
        save_config(tmp_path, ModelConfig(**shape, **change), eot_id=8, report=report)
        written |= set(keys(json.loads((tmp_path / "config.json").read_text())))
    check("config.json", written)


def test_evaluation_files_have_the_documented_fields(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    with_losses = json.loads((GOLDEN / "fixtures" / "eval.json").read_text())
    written = set(keys(report)) | set(keys(with_losses)) | PAPER_SCORE
    written -= {"losses", "tasks[].paper"}
    metrics = {name for task in report["tasks"] for name in task["metrics"]}
    for key in list(written):
        if (name := key.removeprefix("tasks[].")).removesuffix("_stderr") in metrics:
            written.discard(key)
            written.add(f"tasks[].METRIC{'_stderr' * name.endswith('_stderr')}")
    objects = ("skipped", "accuracy_by_normaliser", "calibration", "controls")
    written = {
        next((f"tasks[].{name}" for name in objects if key.startswith(f"tasks[].{name}.")), key)
        for key in written
    }
    check("eval.json", written)
    items = lines_of(folder / "items-scored.jsonl") - {"task"}
    check("TASK.jsonl", {key for key in items if key not in metrics})
    header = json.loads((folder / "report.records" / "choice.jsonl").read_text().splitlines()[0])
    assert (header["format"], header["task"]) == (1, "choice")


def test_batches_of_samples_have_the_documented_fields(folder: Path) -> None:
    check("prompts.jsonl", lines_of(folder / "answers.jsonl"))


def test_other_reports_have_the_documented_fields(folder: Path) -> None:
    reports = json.loads((folder / "reports.json").read_text())
    check("gpt tokenize train --json", set(keys(reports["tokenize"])))
    check("gpt build-shards --json", set(keys(reports["build"])))
    tuned = {name for name in keys(reports["finetune"]) if not name.startswith("task.")}
    assert tuned - {"schema", "out", "interrupted", "task"} <= DOCUMENTED["finetune.json"]


def test_task_and_recipe_files_are_documented() -> None:
    check("task.toml of an evaluation", dataclass_keys(Task) - {"name"})
    check("task.toml of a fine-tuning", dataclass_keys(FinetuneTask))
    check("recipe.toml", dataclass_keys(SourceConfig) - {"name"})
    check("prices.toml", dataclass_keys(Offer))


def table_rows(section: str) -> dict[str, list[str]]:
    """Return the cells of an offset table by field."""
    part = DOCUMENT.read_text(encoding="utf-8").split(f"### {section}\n", 1)[1].split("\n#", 1)[0]
    rows = [line.split("|")[1:-1] for line in part.splitlines() if re.match(r"\| \d", line)]
    return {row[2].strip(" `"): [cell.strip() for cell in row] for row in rows}


def test_shards_are_laid_out_as_documented() -> None:
    shards = GOLDEN / "fixtures" / "shards"
    manifest = json.loads((shards / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (shards / shard["file"]).read_bytes()
        rows = table_rows("NAME.bin")
        magic, version, tokens = (
            struct.unpack_from("<i", data, int(rows[name][0]))[0]
            for name in ("magic", "version", "tokens")
        )
        assert str(magic) in rows["magic"][3]
        assert str(version) in rows["version"][3]
        assert tokens == shard["tokens"]
        ids = int(rows["ids"][0])
        assert not any(data[int(rows["zeros"][0]) : ids])
        assert len(data) == ids + 2 * tokens
        index = (shards / shard["file"]).with_suffix(".idx").read_bytes()
        at = {name: row[0] for name, row in table_rows("NAME.idx").items()}
        n = shard["documents"]
        assert index.startswith(b"MMIDIDX\0\0")
        assert struct.unpack_from("<Q", index, int(at["version"]))[0] == 1
        assert index[int(at["dtype"])] == 8
        assert struct.unpack_from("<Q", index, int(at["sequences"]))[0] == n
        assert struct.unpack_from("<Q", index, int(at["documents"]))[0] == n + 1
        first, *rest = (34, 34 + 4 * n, 34 + 12 * n)
        assert [at["lengths"], at["pointers"], at["borders"]] == ["34", "34 + 4n", "34 + 12n"]
        assert sum(struct.unpack_from(f"<{n}i", index, first)) == tokens
        assert struct.unpack_from("<q", index, rest[0])[0] == ids
        assert struct.unpack_from(f"<{n + 1}q", index, rest[1]) == tuple(range(n + 1))
        assert len(index) == rest[1] + 8 * (n + 1)
