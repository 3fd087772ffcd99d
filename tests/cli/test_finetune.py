"""`gpt train --finetune` and `gpt eval` of its run, as a user meets them: a task so easy that it is
learnt.
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from gptcli.finetune.inputs import Kind
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

Gpt = Callable[..., Any]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """base/, a model that has learnt nothing yet; a task whose answer is a word of its text."""
    config = ModelConfig(n_layer=1, n_head=2, d_model=32, n_ctx=16, vocab_size=257, norm="post")
    model = GPT(config)
    model.init_weights(0)
    save_model(tmp_path / "base", model, config, eot_id=256)
    Tokenizer([*byte_alphabet(), END_OF_TEXT], []).save(tmp_path / "base" / "tokenizer.json")
    rows = [
        {"sentence": f"{a} {word}", "label": label}
        for a in string.ascii_lowercase
        for word, label in (("good", "yes"), ("sad", "no"))
    ]
    for name, part in (("train", rows[:40]), ("dev", rows[40:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    (tmp_path / "task.toml").write_text(
        'kind = "classification"\ntrain = "train.jsonl"\nvalidation = "dev.jsonl"\nlabels = ["no", "yes"]\n'
        'batch = 8\nepochs = 12\nlr = 1e-2\nlm_weight = 0.1\n[fields]\ntext = "sentence"\n'
    )
    return tmp_path


def test_from_a_task_to_an_accuracy(gpt: Gpt, workplace: Path) -> None:
    argv = ("train", "--init-from", "base", "--finetune", "task.toml", "--out")
    report = json.loads(gpt(*argv, "run", "--json", OMP_NUM_THREADS="1").stdout)
    assert (report["schema"], report["steps"], report["examples"]) == ("gpt.train/1", 60, 40)
    assert report["val_accuracy"] == 1.0
    assert report["lr"] == 0.0
    lines = [
        json.loads(line) for line in (workplace / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 60
    assert sum("val_accuracy" in line for line in lines) == 60
    assert lines[-1]["task_loss"] < 0.1 < lines[0]["task_loss"]
    assert gpt("eval", "run").stdout == "accuracy 100.00% (12 of 12) on dev.jsonl\n"
    assert (
        json.loads(gpt("eval", "run", "--data", "train.jsonl", "--json").stdout)["examples"] == 40
    )

    def figures(name: str) -> list[dict[str, float]]:
        """The lines of a run's metrics, but for when each was written."""
        texts = (workplace / name / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(text).items() if key != "time"}
            for text in texts
        ]

    command = [sys.executable, "-m", "gptcli", *argv, "killed"]
    process = subprocess.Popen(
        command,
        cwd=workplace,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list(workplace.glob("killed/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (workplace / "killed" / "finetune.json").exists()
    assert "resuming after step" in gpt(*argv, "killed", "--resume", OMP_NUM_THREADS="1").stderr
    assert [figures(run) for run in ("run", "killed")] == [figures("run")] * 2
    for name in ("model.safetensors", "classifier.safetensors", "finetune.json"):
        assert (workplace / "run" / name).read_bytes() == (
            workplace / "killed" / name
        ).read_bytes(), name
    assert "is finished" in gpt(*argv, "run", "--resume").stderr
    assert "not empty" in gpt(*argv, "run", code=2).stderr
    shared = json.loads(
        gpt(*argv, "shared", "--layout", "dp=2", "--json", OMP_NUM_THREADS="1").stdout
    )
    assert (shared["steps"], shared["val_accuracy"]) == (60, 1.0)
    assert (workplace / "shared" / "model.safetensors").read_bytes() != (
        workplace / "run" / "model.safetensors"
    ).read_bytes()
    assert gpt("sample", "run", "a good", "--max-tokens", 8).stdout.startswith("a good")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ('kind = "clasification"\ntrain = "t"\nvalidation = "v"', "did you mean classification?"),
        ('kind = "entailment"\ntrain = "t"', "no 'validation'"),
        ('kind = "entailment"\ntrain = "t"\nvalidation = "v"', "no 'labels'"),
        ('kind = "entailment"\nepoch = 3', "unknown key 'epoch'"),
        ('kind = "entailment"\nepochs = "3"', "epochs is not of type int"),
        ('kind = "entailment"\nfields = 3', "fields is not of type dict"),
        ('kind = "entailment"\ntrain = "t"\nvalidation = "v"\nlabels = [0, 1]\n[fields]\ntext = "x"', "entailment has no field 'text'"),
        ('kind = "classification"\ntrain = "dev.jsonl"\nvalidation = "v"\nlabels = [0, 1]', "dev.jsonl:1: not an example of this task"),
        ('kind = "classification"\ntrain = "dev.jsonl"\nvalidation = "v"\nlabels = [0, 1]\nfields = {text = "sentence"}', "not one of [0, 1]"),
    ],
)  # fmt: skip
def test_what_is_no_task(workplace: Path, task: str, message: str) -> None:
    from gptcli.errors import GptError
    from gptcli.finetune.inputs import InputTransform
    from gptcli.finetune.task import read_examples, read_task
    from gptcli.tokenizer.tokenizer import load_tokenizer

    (workplace / "bad.toml").write_text(task)
    with pytest.raises(GptError) as caught:
        read = read_task(workplace / "bad.toml")
        read_examples(
            read,
            workplace / read.train,
            InputTransform(read.kind, load_tokenizer(workplace / "base"), 16),
        )
    assert message in str(caught.value)


def test_what_it_needs_and_what_it_does_not_take(gpt: Gpt, workplace: Path) -> None:
    assert "needs a model to start from" in gpt("train", "--finetune", "task.toml", code=2).stderr
    refused = gpt(
        "train", "--init-from", "base", "--finetune", "task.toml", "--lr", "1e-3", code=2
    ).stderr
    assert "--lr: is not supported with --finetune" in refused
    divided = gpt(
        "train", "--init-from", "base", "--finetune", "task.toml", "--layout", "tp=2", code=2
    ).stderr
    assert "--layout: tp=2 divides the model, but fine-tuning supports replicas only" in divided
    assert not (workplace / "runs").exists()


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("classification", '{"text": null, "label": 1}', "'text' is null, not text"),
        ("classification", '{"text": 3, "label": 1}', "'text' is 3, not text"),
        ("classification", '{"text": ["a"], "label": 1}', "'text' is [\"a\"], not text"),
        ("classification", '{"text": "a", "label": true}', "label True is not one of [0, 1]"),
        ("classification", '{"text": "a", "label": 1.0}', "label 1.0 is not one of [0, 1]"),
        ("classification", '{"text": "a", "label": [1]}', "label [1] is not one of [0, 1]"),
        ("classification", '{"text": "a"}', "no 'label'"),
        ("classification", '["a", 1]', "not a JSON object"),
        (
            "classification",
            r'{"text": "a \ud83d", "label": 1}',
            "'text': the text holds a lone surrogate, U+D83D, at character 2",
        ),
        (
            "entailment",
            '{"premise": "a", "hypothesis": {}, "label": 1}',
            "'hypothesis' is {}, not text",
        ),
        ("similarity", '{"a": "a", "b": false, "label": 1}', "'b' is false, not text"),
        (
            "multiple-choice",
            '{"context": "a", "answers": null, "label": 0}',
            "'answers' is null, not a list of texts",
        ),
        (
            "multiple-choice",
            '{"context": "a", "answers": [], "label": 0}',
            "'answers' is [], not a list of texts",
        ),
        (
            "multiple-choice",
            '{"context": "a", "answers": "b", "label": 0}',
            "'answers' is one text, not a list of texts",
        ),
        (
            "multiple-choice",
            '{"context": "a", "answers": ["b", 3], "label": 0}',
            "'answers' is 3, not a list of texts",
        ),
        (
            "multiple-choice",
            '{"context": "a", "answers": ["b", "c", "d"], "label": 2}',
            "3 answers, but the examples before have 2",
        ),
    ],
)
def test_examples_of_other_types(workplace: Path, kind: str, line: str, message: str) -> None:
    from gptcli.errors import InputError
    from gptcli.finetune.inputs import InputTransform
    from gptcli.finetune.task import FinetuneTask, read_examples
    from gptcli.tokenizer.tokenizer import load_tokenizer

    whole = {
        "text": "a",
        "premise": "a",
        "hypothesis": "b",
        "a": "a",
        "b": "b",
        "context": "a",
        "answers": ["b", "c"],
        "label": 1,
    }
    path = workplace / "other.jsonl"
    path.write_text("\ufeff" + json.dumps(whole) + "\n\n" + line + "\n", encoding="utf-8")
    task = FinetuneTask(
        kind=cast(Kind, kind),
        train="t",
        validation="v",
        labels=[] if kind == "multiple-choice" else [0, 1],
    )
    with pytest.raises(InputError) as caught:
        read_examples(
            task, path, InputTransform(cast(Kind, kind), load_tokenizer(workplace / "base"), 16)
        )
    assert caught.value.where == f"{path}:3"
    assert message in caught.value.what
