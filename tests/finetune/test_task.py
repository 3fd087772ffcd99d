"""Task files and examples are read as written, and broken ones are refused with their place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gptcli.errors import GptError, InputError
from gptcli.finetune.task import (
    Example,
    FinetuneTask,
    InputTransform,
    Kind,
    collate,
    read_examples,
    read_task,
)
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

TOKENIZER = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a file of one example."""
    (tmp_path / "dev.jsonl").write_text('{"sentence": "a good", "label": "yes"}\n')
    return tmp_path


def test_task_and_its_examples_are_read(folder: Path) -> None:
    (folder / "task.toml").write_text(
        'kind = "classification"\ntrain = "dev.jsonl"\nvalidation = "dev.jsonl"\n'
        'labels = ["no", "yes"]\nlr = 1\n[fields]\ntext = "sentence"\n'
    )
    task = read_task(folder / "task.toml")
    assert task == FinetuneTask(
        kind="classification",
        train="dev.jsonl",
        validation="dev.jsonl",
        labels=["no", "yes"],
        fields={"text": "sentence"},
        lr=1,
    )
    assert (task.epochs, task.batch, task.lm_weight) == (3, 32, 0.5)  # of GPT-1
    transform = InputTransform("classification", TOKENIZER, 16)
    examples = read_examples(task, folder / task.train, transform)
    assert examples == [Example(transform.sequences({"text": "a good"}), 1)]


def test_file_without_examples_is_refused(folder: Path) -> None:
    task = FinetuneTask(kind="classification", train="t", validation="v", labels=[0, 1])
    transform = InputTransform("classification", TOKENIZER, 16)
    with pytest.raises(InputError, match="no such file"):
        read_examples(task, folder / "absent.jsonl", transform)
    (folder / "empty.jsonl").write_text("\n\n")
    with pytest.raises(InputError, match="the file has no examples"):
        read_examples(task, folder / "empty.jsonl", transform)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ('kind = "clasification"\ntrain = "t"\nvalidation = "v"', "did you mean classification?"),
        ('kind = "entailment"\ntrain = "t"', "no 'validation'"),
        ('kind = "entailment"\ntrain = "t"\nvalidation = "v"', "no 'labels'"),
        ('kind = "entailment"\nepoch = 3', "unknown key 'epoch'"),
        ('kind = "entailment"\nepochs = "3"', "epochs: '3' is not a number"),
        ('kind = "entailment"\nepochs = 1.5', "epochs: 1.5 is not a whole number"),
        ('kind = "entailment"\nlr = inf', "lr: 'inf' is not a number"),
        ('kind = "entailment"\ndropout = 1.5', "dropout: 1.5 is out of range"),
        ('kind = "entailment"\ntrain = ""', "train: is empty"),
        ('kind = "entailment"\nlabels = "a"', "labels: 'a' is not a list"),
        ('kind = "entailment"\nfields = {text = 5}', "fields.text: 5 is not text"),
        ('kind = "entailment"\ntrain = "t"\nvalidation = "v"\nlabels = ["a", "a"]', "the label 'a' is given twice"),
        ('kind = "entailment"\ntrain = "t"\nvalidation = "v"\nlabels = [nan]', "nan cannot be a label"),
        ('kind = "classification"\ntrain = "."\nvalidation = "v"\nlabels = [0, 1]', "is a folder, not a file"),
        ('kind = "entailment"\nfields = 3', "fields: 3 is not a table"),
        ('kind = "entailment"\ntrain = "t"\nvalidation = "v"\nlabels = [0, 1]\n[fields]\ntext = "x"', "entailment has no field 'text'"),
        ('kind = "classification"\ntrain = "dev.jsonl"\nvalidation = "v"\nlabels = [0, 1]', "dev.jsonl:1: not an example of this task"),
        ('kind = "classification"\ntrain = "dev.jsonl"\nvalidation = "v"\nlabels = [0, 1]\nfields = {text = "sentence"}', "not one of [0, 1]"),
    ],
)  # fmt: skip
def test_impossible_tasks_are_refused(folder: Path, task: str, message: str) -> None:

    (folder / "bad.toml").write_text(task)
    with pytest.raises(GptError) as caught:
        read = read_task(folder / "bad.toml")
        read_examples(
            read,
            folder / read.train,
            InputTransform(read.kind, TOKENIZER, 16),
        )
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("classification", '{"text": null, "label": 1}', "'text' is null, not text"),
        ("classification", '{"text": 3, "label": 1}', "'text' is 3, not text"),
        ("classification", '{"text": ["a"], "label": 1}', "'text' is [\"a\"], not text"),
        ("classification", '{"text": "a", "label": true}', "label true is not one of [0, 1]"),
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
def test_examples_of_other_types_are_refused_with_their_line(
    folder: Path, kind: Kind, line: str, message: str
) -> None:

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
    path = folder / "other.jsonl"
    path.write_text("\ufeff" + json.dumps(whole) + "\n\n" + line + "\n", encoding="utf-8")
    task = FinetuneTask(
        kind=kind,
        train="t",
        validation="v",
        labels=[] if kind == "multiple-choice" else [0, 1],
    )
    with pytest.raises(InputError) as caught:
        read_examples(task, path, InputTransform(kind, TOKENIZER, 16))
    assert caught.value.where == f"{path}:3"
    assert message in caught.value.what


TOKENIZER = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])  # an id a byte: a is 64
S, D, E = 257, 258, 259  # after 256 bytes and end-of-text
A, B, C = ([TOKENIZER.encode(letter)[0]] for letter in "abc")


def sequences(kind: Kind, n_ctx: int = 64, **texts: object) -> list[list[int]]:
    return InputTransform(kind, TOKENIZER, n_ctx).sequences(texts)


def test_the_four_transformations_give_the_expected_sequences() -> None:
    assert sequences("classification", text="ab") == [[S, *A, *B, E]]
    assert sequences("entailment", premise="ab", hypothesis="c") == [[S, *A, *B, D, *C, E]]
    assert sequences("similarity", a="ab", b="c") == [[S, *A, *B, D, *C, E], [S, *C, D, *A, *B, E]]
    assert sequences("multiple-choice", context="a", answers=["b", "ca"]) == [
        [S, *A, D, *B, E],
        [S, *A, D, *C, *A, E],
    ]


def test_texts_are_truncated_to_half_the_context_less_two() -> None:
    n_ctx = 16  # 6 tokens a segment: 1 + 6 + 1 + 6 + 1 = 15
    assert sequences("entailment", n_ctx, premise="a" * 20, hypothesis="b" * 7) == [
        [S, *A * 6, D, *B * 6, E]
    ]
    assert sequences("classification", n_ctx, text="a" * 20) == [[S, *A * 6, E]]


def test_text_that_spells_a_special_token_is_encoded_as_text() -> None:
    (ids,) = sequences("classification", text="_start_")
    assert ids == [S, *TOKENIZER.encode("_start_"), E]


def test_a_batch_is_padded_at_the_end() -> None:
    batch = collate([Example([[S, *A, E], [S, *B, *B, E]], 1), Example([[S, E], [S, *C, E]], 0)])
    assert batch.ids.tolist() == [[[S, *A, E, 0], [S, *B, *B, E]], [[S, E, 0, 0], [S, *C, E, 0]]]
    assert batch.lengths.tolist() == [[3, 4], [2, 3]]
    assert batch.labels.tolist() == [1, 0]
    with pytest.raises(InputError, match="examples of 1 and of 2 answers"):
        collate([Example([[S, E]], 0), Example([[S, E], [S, E]], 0)])


def test_a_file_of_another_format_is_answered_with_an_example_of_a_line(folder: Path) -> None:
    for text in ("text,label\na,1\n", '[\n{"text": "a", "label": 1}\n]\n'):
        (folder / "dev.jsonl").write_text(text)
        task = FinetuneTask(kind="classification", train="", validation="", labels=[0, 1])
        with pytest.raises(InputError) as caught:
            read_examples(task, folder / "dev.jsonl", InputTransform(task.kind, TOKENIZER, 16))
        assert caught.value.where == f"{folder / 'dev.jsonl'}:1"
        assert caught.value.hint == (
            'one example a line, as a JSON object: {"text": "...", "label": "..."}'
        )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b'text,label\n"a, b",1\nc,0\n'),
        ("a.tsv", b"text\tlabel\na, b\t1\nc\t0\n"),
        ("a.json", b'[{"text": "a, b", "label": 1}, {"text": "c", "label": 0}]'),
        ("a.csv.gz", gzip.compress(b'text,label\n"a, b",1\nc,0\n', mtime=0)),
    ],
)
def test_examples_may_be_in_a_table(folder: Path, name: str, content: bytes) -> None:
    task = FinetuneTask(kind="classification", train="", validation="", labels=[0, 1])
    transform = InputTransform(task.kind, TOKENIZER, 16)
    (folder / name).write_bytes(content)
    assert read_examples(task, folder / name, transform) == [
        Example(transform.sequences({"text": "a, b"}), 1),
        Example(transform.sequences({"text": "c"}), 0),
    ]


def test_an_open_quote_in_a_table_is_refused_with_its_line(folder: Path) -> None:
    task = FinetuneTask(kind="classification", train="", validation="", labels=[0, 1])
    (folder / "a.csv").write_text('text,label\na,1\n"b,0\nc,"1"\n')
    with pytest.raises(InputError, match=r"a.csv:3: not valid CSV"):
        read_examples(task, folder / "a.csv", InputTransform(task.kind, TOKENIZER, 16))
