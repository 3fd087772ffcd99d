"""Tasks of every kind on small sets: scores equal transformers', whatever the batch size, item
order, number of processes or interruptions.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.errors import InputError, UsageError
from gptcli.evals.check import EvalOptions
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.records import Record, Records
from gptcli.evals.rolling import evaluate_loss, token_byte_lengths
from gptcli.evals.runner import OWN_SET, Processes, run_task
from gptcli.evals.task import Task, read_task
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.evals.conftest import varied_model
from tests.extent import WHOLE
from tests.run_python import run_python

HEAD = 'title = "t"\nsource = "s"\nfiles = {items = "items*", shots = "train*"}\nreader = "jsonl"\n'
CHOICE = (
    HEAD
    + 'kind = "choice"\nprompt = "def {query}:"\nchoices = "choices"\ngold = "gold"\nunconditional = "text: "\n'
)
PARTIAL = HEAD + 'kind = "partial"\ncontexts = "contexts"\ntarget = "{target}"\ngold = "gold"\n'
FREE = (
    HEAD
    + 'kind = "freeform"\nprompt = "{query}:"\nanswers = "answers"\nmetric = ["exact_match"]\nmax_tokens = 6\n'
)
WORDS = [
    "self",
    "text",
    "width",
    "naïve café",
    "日本語",
    "line,",
    "🙂",
    "indent the text",
    "return",
    "if not lines",
]


@pytest.fixture(scope="module")
def large(tokenizer: Tokenizer) -> GPT:
    """Return a model with a context for a few examples, and with varied predictions."""
    return varied_model(tokenizer.vocab_size, n_ctx=160)


@pytest.fixture(scope="module")
def theirs(large: GPT, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("transformers")
    save_model(folder, large, large.config)
    return GPT2LMHeadModel.from_pretrained(folder).eval()


def phrase(random: np.random.Generator, most: int) -> str:
    return " ".join(random.choice(WORDS, size=random.integers(1, most)))


def items(count: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "id": f"{seed}-{number}",
            "query": phrase(random, 9),
            "choices": [phrase(random, 4) for _ in range(random.integers(2, 5))],
            "contexts": [f"{phrase(random, 3)} in", f"{phrase(random, 3)} in"],
            "target": f" {phrase(random, 4)}",
            "gold": int(random.integers(0, 2)),
            "answers": [phrase(random, 2)],
        }
        for number in range(count)
    ]


def prepare(
    folder: Path, toml: str, rows: list[dict[str, Any]], train: list[dict[str, Any]] | None = None
) -> Task:
    folder.mkdir(exist_ok=True)
    (folder / "mine.toml").write_text(toml)
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if train:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    return read_task(folder / "mine.toml")


def log_prob(theirs: Any, tokenizer: Tokenizer, context: str, continuation: str) -> float:
    target = tokenizer.encode(continuation)
    read = tokenizer.encode(context) + target
    with torch.no_grad():
        logits = theirs(torch.tensor([read[:-1]])).logits[0, -len(target) :]
    return float(logits.double().log_softmax(-1)[torch.arange(len(target)), target].sum())


def test_choice_scores_equal_transformers_under_every_normaliser(
    large: GPT, theirs: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = items()
    task = prepare(tmp_path, CHOICE, rows)
    [result], records = run_task(large, tokenizer, task, tmp_path)
    right = dict.fromkeys(("token", "sum", "character", "unconditional"), 0)
    for row, record in zip(rows, records, strict=True):
        texts = [f" {choice}" for choice in row["choices"]]
        exact = np.array(
            [log_prob(theirs, tokenizer, f"def {row['query']}:", text) for text in texts]
        )
        alone = np.array([log_prob(theirs, tokenizer, "text:", text) for text in texts])
        np.testing.assert_allclose(record["log_probs"], exact, atol=1e-4)
        np.testing.assert_allclose(record["unconditional"], alone, atol=1e-4)
        lengths = {
            "token": [len(tokenizer.encode(text)) for text in texts],
            "sum": 1,
            "character": [len(text) - 1 for text in texts],
        }
        for rule in right:
            value = exact - alone if rule == "unconditional" else exact / np.array(lengths[rule])
            right[rule] += int(value.argmax()) == row["gold"]
    assert len(set(right.values())) > 1  # the rules differ on this fixture
    found = result.as_dict()
    assert found["accuracy_by_normaliser"] == {
        rule: 100 * count / 40 for rule, count in right.items()
    }
    assert (found["scoring"], found["correct"], found["accuracy"]) == (
        "token",
        right["token"],
        100 * right["token"] / 40,
    )
    share = right["token"] / 40
    assert found["accuracy_stderr"] == pytest.approx(100 * math.sqrt(share * (1 - share) / 39))
    [by_sum], _ = run_task(large, tokenizer, task, tmp_path, EvalOptions(normalise="sum"))
    assert (by_sum.scoring, by_sum.correct) == ("sum", right["sum"])


def test_partial_scores_equal_transformers(
    large: GPT, theirs: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = items()
    [result], records = run_task(large, tokenizer, prepare(tmp_path, PARTIAL, rows), tmp_path)
    right = 0
    for row, record in zip(rows, records, strict=True):
        exact = [log_prob(theirs, tokenizer, context, row["target"]) for context in row["contexts"]]
        np.testing.assert_allclose(record["log_probs"], exact, atol=1e-4)
        right += int(np.argmax(exact)) == row["gold"]
    assert result.correct == right


def test_running_text_metrics_are_its_loss_per_unit(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = "the text\nself , self .\n" * 40
    toml = (
        HEAD
        + 'kind = "text"\ntarget = "{text}"\nmetric = ["perplexity", "bits_per_byte", "bits_per_character"]\n'
    )
    task = prepare(tmp_path, toml, [{"text": text}])
    tokens = np.array([tokenizer.eot_id, *tokenizer.encode(text)])
    for stride in (None, 50):
        [result], records = run_task(large, tokenizer, task, tmp_path, EvalOptions(stride=stride))
        loss = evaluate_loss(large, tokens, token_byte_lengths(tokenizer), name="t", stride=stride)
        total, units = loss.loss * loss.tokens, len(text.split()) + text.count("\n")
        assert result.metrics["perplexity"].value == pytest.approx(
            math.exp(total / units), rel=1e-5
        )
        assert result.metrics["bits_per_byte"].value == pytest.approx(loss.bits_per_byte, rel=1e-5)
        assert result.metrics["bits_per_character"].value == pytest.approx(
            total / math.log(2) / len(text), rel=1e-5
        )
        assert loss.loss_stderr is not None
        assert result.metrics["bits_per_byte"].stderr == pytest.approx(
            loss.loss_stderr * loss.tokens / math.log(2) / len(text.encode()), rel=1e-4
        )
        assert (result.conditions.stride, len(records)) == (stride or 160, loss.windows)
    with pytest.raises(UsageError, match="161 is out of range"):
        run_task(large, tokenizer, task, tmp_path, EvalOptions(stride=161))


@pytest.mark.parametrize("beam", [1, 4])
def test_freeform_answers_end_at_the_stop_string(
    large: GPT, theirs: Any, tokenizer: Tokenizer, tmp_path: Path, beam: int
) -> None:
    rows = items(8)
    task = prepare(tmp_path, FREE + f'beam = {beam}\nstop = ["e"]\n', rows)
    [result], records = run_task(large, tokenizer, task, tmp_path)
    assert result.scoring == ("beam 4" if beam > 1 else "greedy")
    assert not any("e" in record["prediction"] for record in records)
    assert {record["finish_reason"] for record in records} == {"stop", "length"}
    if beam == 1:
        for row, record in zip(rows, records, strict=True):
            prompt = torch.tensor([tokenizer.encode(f"{row['query']}:")])
            made = theirs.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
            )
            text = tokenizer.decode(made[0, prompt.shape[1] :].tolist())
            assert record["prediction"] == text.partition("e")[0].strip()
    rows[3]["answers"] = ["x", records[3]["prediction"]]
    task = prepare(tmp_path, FREE + f'beam = {beam}\nstop = ["e"]\n', rows)
    assert run_task(large, tokenizer, task, tmp_path)[0][0].metrics[
        "exact_match"
    ].value == pytest.approx(100 / 8)


@pytest.mark.parametrize("shared", [False, True])
def test_few_shot_contexts_contain_the_drawn_examples(
    large: GPT, theirs: Any, tokenizer: Tokenizer, tmp_path: Path, shared: bool
) -> None:
    rows, train = items(12), items(9, seed=1)
    task = prepare(tmp_path, CHOICE, rows, train)
    options = EvalOptions(fewshot=FewShotConfig(shots=2, seed=3, shared=shared))
    [result], records = run_task(large, tokenizer, task, tmp_path, options)
    under = result.conditions
    assert (under.shots, under.shots_from, under.shots_seed, under.items) == (
        2,
        str(tmp_path / "train.jsonl"),
        3,
        12,
    )
    solved = [f"def {row['query']}: {row['choices'][row['gold']]}" for row in train]
    contexts = set()
    for row, record in zip(rows, records, strict=True):

        def is_it(shots: list[str], row: Any = row, record: Record = record) -> bool:
            context = "\n\n".join([*shots, f"def {row['query']}:"])
            longest = max(len(tokenizer.encode(f" {choice}")) for choice in row["choices"])
            return len(tokenizer.encode(context)) + longest <= 161 and all(
                np.isclose(log_prob(theirs, tokenizer, context, f" {choice}"), wanted, atol=1e-3)
                for choice, wanted in zip(row["choices"], record["log_probs"], strict=True)
            )

        if record["shots"] == 2:
            found = [(a, b) for a in solved for b in solved if a != b and is_it([a, b])]
            assert len(found) == 1
            contexts.update(found)
    assert (len(contexts) == 1) == shared


def test_examples_from_the_evaluated_set_exclude_the_item(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    task = prepare(tmp_path, CHOICE, items(5))
    [result], records = run_task(
        large, tokenizer, task, tmp_path, EvalOptions(fewshot=FewShotConfig(shots=4))
    )
    assert result.conditions.shots_from == OWN_SET
    # not all examples fit
    assert result.conditions.mean_shots == sum(record["shots"] for record in records) / 5 < 4
    [result], records = run_task(
        large, tokenizer, task, tmp_path, EvalOptions(fewshot=FewShotConfig(shots=1, shared=True))
    )
    assert (result.conditions.skipped, len(records)) == ({"a shared shot": 1}, 4)
    with pytest.raises(UsageError, match="shots 5 needs more"):
        run_task(large, tokenizer, task, tmp_path, EvalOptions(fewshot=FewShotConfig(shots=5)))


@pytest.mark.parametrize(
    "fewshot", [FewShotConfig(), FewShotConfig(shots=2), FewShotConfig(shots=2, shared=True)]
)
def test_scores_do_not_depend_on_batch_size_or_item_order(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path, fewshot: FewShotConfig
) -> None:
    rows, train = items(66), items(9, seed=1)
    _, exact = run_task(
        large,
        tokenizer,
        prepare(tmp_path, CHOICE, rows, train),
        tmp_path,
        EvalOptions(fewshot=fewshot),
    )
    for size in (1, 7, 64):
        _, records = run_task(
            large,
            tokenizer,
            read_task(tmp_path / "mine.toml"),
            tmp_path,
            EvalOptions(fewshot=fewshot, batch_size=size),
        )
        same(records, exact)
    shuffled = [rows[number] for number in np.random.default_rng(0).permutation(66)]
    task = prepare(tmp_path / "shuffled", CHOICE, shuffled, train)
    _, records = run_task(
        large, tokenizer, task, tmp_path / "shuffled", EvalOptions(fewshot=fewshot)
    )
    by_id = {record["id"]: record for record in records}
    same([{**by_id[record["id"]], "index": record["index"]} for record in exact], exact)


def same(records: list[Record], others: list[Record]) -> None:
    for record, other in zip(records, others, strict=True):
        plain = {
            key: value for key, value in record.items() if key not in ("log_probs", "unconditional")
        }
        assert plain == {key: other[key] for key in plain}
        for key in ("log_probs", "unconditional"):
            np.testing.assert_allclose(record[key], other[key], atol=1e-5)


def test_records_cut_at_any_byte_resume_to_the_same_records(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    task = prepare(tmp_path, CHOICE, items(30))
    options = EvalOptions(batch_size=4, records=tmp_path / "records")
    results, records = run_task(large, tokenizer, task, tmp_path, options)
    path = tmp_path / "records" / "mine.jsonl"
    whole, order = path.read_bytes(), np.random.default_rng(0).permutation(30)
    header, *lines = whole.splitlines(keepends=True)
    # batches are not in the order of the items
    as_written = header + b"".join(lines[number] for number in order)
    for cut in np.random.default_rng(1).integers(0, len(whole), 20):
        path.write_bytes(as_written[:cut])
        assert run_task(large, tokenizer, task, tmp_path, options) == (results, records)
        assert path.read_bytes() == whole


def test_processes_share_the_batches(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = prepare(tmp_path, CHOICE, items(30))
    _, records = run_task(
        large, tokenizer, task, tmp_path, EvalOptions(batch_size=4, records=tmp_path / "alone")
    )
    others: list[Record] = []
    monkeypatch.setattr(Processes, "gather", lambda self, made: others + list(made.done.values()))
    monkeypatch.setattr(
        "gptcli.evals.runner.compute_results", lambda task, records, *rest: [len(records)]
    )
    options = EvalOptions(batch_size=4, records=tmp_path / "two")
    parts = [run_task(large, tokenizer, task, tmp_path, options, processes=Processes(1, 2))[1]]
    others += parts[0]
    assert 0 < len(others) < 30
    assert (
        run_task(large, tokenizer, task, tmp_path, options, processes=Processes(0, 2))[1] == records
    )
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["mine.jsonl"]
    assert (tmp_path / "two" / "mine.jsonl").read_bytes() == (
        tmp_path / "alone" / "mine.jsonl"
    ).read_bytes()


def test_records_of_another_evaluation_are_refused(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    task = prepare(tmp_path, CHOICE, items(5), items(5, seed=1))
    options = EvalOptions(records=tmp_path / "records")
    run_task(large, tokenizer, task, tmp_path, options)
    with pytest.raises(UsageError, match="different: shots"):
        run_task(
            large,
            tokenizer,
            task,
            tmp_path,
            EvalOptions(records=tmp_path / "records", fewshot=FewShotConfig(shots=1)),
        )
    prepare(tmp_path, CHOICE, items(6))
    with pytest.raises(UsageError, match="different: data_sha256"):
        run_task(large, tokenizer, task, tmp_path, options)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_an_evaluation_killed_at_many_moments_resumes_to_the_same_report(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_model(tmp_path / "run", large, large.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    prepare(tmp_path, CHOICE, items(60))
    asked = ["run", "--task", "mine.toml", "--data", ".", "--batch-size", "2"]
    kills = 50 if WHOLE else 10
    out = run_python(Path(__file__).with_name("kill_and_resume.py"), kills, *asked, cwd=tmp_path)
    left = json.loads(out[out.rindex("[") :])
    assert len(left) == kills
    # kills came before the first record and after various numbers of records
    assert len(set(left)) > 5


def test_skipped_and_truncated_items_are_counted(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = items(4)
    rows[1]["choices"] = ["", "x"]
    rows[2]["choices"] = ["x", "日本語 " * 200]
    rows[3]["query"] = "text " * 300
    task = prepare(tmp_path, CHOICE + 'choice = "{choice}"\n', rows)
    [result], records = run_task(large, tokenizer, task, tmp_path)
    assert result.conditions.skipped == {
        "an empty answer": 1,
        "an answer longer than the context": 1,
    }
    assert (result.conditions.truncated, [record["index"] for record in records]) == (1, [0, 3])
    with pytest.raises(InputError, match=r"items\.jsonl.*\n*.*no 'choices'|has no field 'choices'"):
        run_task(large, tokenizer, prepare(tmp_path, CHOICE, [{"query": "?", "gold": 0}]), tmp_path)


def test_an_empty_prompt_is_the_end_of_text_token(
    large: GPT, theirs: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    row = {"query": " ", "choices": ["self", "text"], "gold": 0}
    task = prepare(tmp_path, CHOICE.replace("def {query}:", "{query}"), [row])
    _, [record] = run_task(large, tokenizer, task, tmp_path)
    with torch.no_grad():
        first = theirs(torch.tensor([[tokenizer.eot_id]])).logits[0, -1].log_softmax(-1)
    # the space of the prompt moves to the continuation: "  self"
    ids = tokenizer.encode("  self")
    assert record["log_probs"][0] <= float(first[ids[0]]) + 1e-4
    assert record["tokens"][0] == len(ids)


def test_records_without_a_folder_stay_in_memory() -> None:
    records = Records(None, "t", {})
    records.add([{"index": 1}, {"index": 0}])
    assert (records.contains_all([0, 1]), records.contains_all([2])) == (True, False)
    assert records.finish() == [{"index": 0}, {"index": 1}]


def test_two_processes_give_the_same_report_as_one(
    large: GPT, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tmp_path / "run", large, large.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    prepare(tmp_path, CHOICE, items(30))
    asked = ["eval", "run", "--task", "mine.toml", "--data", ".", "--batch-size", "4", "-o"]
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "gptcli",
    ]
    done = subprocess.run(
        [*torchrun, *asked, "two.json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path)
    assert (
        CliRunner()
        .invoke(build_app([*asked, "one.json"]), [*asked, "one.json"], catch_exceptions=False)
        .exit_code
        == 0
    )
    one, two = (
        json.loads((tmp_path / name).read_text())["tasks"] for name in ("one.json", "two.json")
    )
    assert one[0]["correct"] == two[0]["correct"]
    assert [path.name for path in (tmp_path / "two.records").iterdir()] == ["mine.jsonl"]
    lists = (
        [
            json.loads(line)
            for line in (tmp_path / f"{name}.records" / "mine.jsonl").read_text().splitlines()[1:]
        ]
        for name in ("one", "two")
    )
    same(*lists)
