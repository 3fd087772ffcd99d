"""Task files: built-in tasks are valid, and invalid files are refused with their name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.evals.task import TASKS_DIR, find_task, read_task, task_names

HEAD = 'title = "t"\nsource = "s"\nfiles = {items = "*.jsonl"}\nreader = "jsonl"\n'
WORD = HEAD + 'kind = "last_word"\nprompt = "{text}"\n'
CHOICE = HEAD + 'kind = "choice"\nprompt = "Q: {q}\\nA:"\nchoices = "c"\ngold = "g"\n'


def test_every_built_in_task_is_valid() -> None:
    assert "lambada" in task_names()
    for name in task_names():
        assert find_task(name).name == name


def test_a_custom_task_is_read_from_its_path(tmp_path: Path) -> None:
    copy = tmp_path / "lambada.toml"
    copy.write_bytes((TASKS_DIR / "lambada.toml").read_bytes())
    assert find_task(str(copy)) == find_task("lambada")


def test_an_unknown_task_suggests_the_most_similar_name() -> None:
    with pytest.raises(UsageError, match="lambada"):
        find_task("lambda")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (WORD + "promt = 1", "unknown key 'promt'"),
        (WORD.replace('"{text}"', "3"), "prompt: 3 is not text"),
        (WORD + "shots = true", "shots: true is not a number"),
        (WORD + "metric = [3]", "metric[0]: 3 is not text"),
        (WORD.replace('title = "t"\n', ""), "no 'title'"),
        (WORD.replace("last_word", "last_wrd"), "did you mean last_word"),
        (WORD.replace('"jsonl"', '"json"'), "did you mean jsonl"),
        (WORD.replace("items", "itms"), "'files' has no 'items'"),
        (CHOICE.replace('gold = "g"\n', ""), "has no 'gold', which a task of kind 'choice' needs"),
        (WORD.replace("{text}", "{text.__class__}"), "is not a plain field"),
        (WORD.replace("{text}", "{0}"), "is not a plain field"),
        (WORD.replace("{text}", "{text!r}"), "is not a plain field"),
        (WORD.replace("{text}", "{text"), "'prompt'"),
        (WORD + "[paper]\naccuracy = 'gpt2_table_3.lambda'", "did you mean gpt2_table_3.lambada"),
        (WORD + "[paper]\nf1 = 'gpt2_table_3.lambada_acc'", "unknown metric 'f1'"),
        (WORD + "metric = []", "'metric' is empty"),
        (WORD + "max_tokens = 0", "max_tokens: 0 is out of range"),
        (WORD + "shots = -1", "shots: -1 is out of range"),
        (WORD + 'detokenize = "wikitxt"', "did you mean wikitext"),
        (WORD + 'answer = "{text}"', "'answer' contains {text}"),
        (
            WORD.replace('"*.jsonl"', '"../*.jsonl"'),
            "'../*.jsonl' is not a pattern of files in the data folder",
        ),
        (
            WORD.replace('"*.jsonl"', '"a.jsonl|../b.jsonl"'),
            "'a.jsonl|../b.jsonl' is not a pattern of files in the data folder",
        ),
        (WORD.replace('"*.jsonl"', '"/etc/passwd"'), "is not a pattern of files"),
        (WORD.replace('"*.jsonl"', '""'), "is not a pattern of files"),
        (WORD.replace('"*.jsonl"', "[1]"), "files.items: [1] is not text"),
        (WORD.replace('"*.jsonl"', '"a", train = "b"'), "unknown key 'train' in 'files'"),
        (WORD.replace('"s"', '""'), "'source' is empty"),
        (WORD + "choices = 3", "choices: 3 is not text"),
        (WORD + 'hub = {dataset = 3, items = "test"}', "hub.dataset: 3 is not text"),
        (WORD + 'name = "other"', "unknown key 'name'"),
        ("title =", "not valid TOML"),
    ],
)
def test_an_invalid_task_is_refused_with_its_file(tmp_path: Path, toml: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(toml)
    with pytest.raises(InputError) as caught:
        read_task(tmp_path / "bad.toml")
    assert message in str(caught.value)
    assert "bad.toml" in str(caught.value)
