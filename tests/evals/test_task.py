"""Tasks as data: every built-in one is sound, and what is not a task, or not its data, is refused with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.evals.task import TASKS, find_data, find_task, read_items, read_task, task_names
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

OWN = 'title = "t"\nsource = "s"\nfile = "*.jsonl"\nfield = "text"\nscoring = ["last_word"]\n'


def test_every_built_in_task_is_sound() -> None:
    assert "lambada" in task_names()
    for name in task_names():
        assert find_task(name).name == name


def test_a_users_own_task(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(OWN)
    task = find_task(str(tmp_path / "mine.toml"))
    assert (task.name, task.scoring, task.paper) == ("mine", ["last_word"], {})
    copy = tmp_path / "lambada.toml"
    copy.write_bytes((TASKS / "lambada.toml").read_bytes())
    assert find_task(str(copy)) == find_task("lambada")


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="lambada"):
        find_task("lambda")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (OWN + "promt = 1", "unknown key 'promt'"),
        (OWN.replace('"text"', "3"), "'field' is not a str"),
        (OWN.replace('["last_word"]', "[]"), "'scoring' is not a list with something in it"),
        (OWN.replace("last_word", "last_wrd"), "unknown scoring 'last_wrd'"),
        (OWN.replace('title = "t"\n', ""), "has no 'title'"),
        (OWN + "[paper]\naccuracy = 'gpt2_table_3.lambda'", "did you mean gpt2_table_3.lambada"),
        (OWN + "[paper]\nf1 = 'gpt2_table_3.lambada_acc'", "unknown metric 'f1'"),
        ("title =", "not valid TOML"),
    ],
)
def test_what_is_not_a_task(tmp_path: Path, toml: str, message: str) -> None:
    (tmp_path / "bad.toml").write_text(toml)
    with pytest.raises(InputError) as caught:
        read_task(tmp_path / "bad.toml")
    assert message in str(caught.value)
    assert "bad.toml" in str(caught.value)


def test_data_is_found_in_the_folder_or_one_below_or_named(tmp_path: Path) -> None:
    task = find_task("lambada")
    below = tmp_path / "lambada" / "lambada_test.jsonl"
    below.parent.mkdir()
    below.touch()
    assert find_data(task, tmp_path) == find_data(task, below.parent) == find_data(task, below) == below
    (below.parent / "lambada_dev.jsonl").touch()
    with pytest.raises(InputError, match=r"2 files match(.|\n)*lambada_dev.jsonl, lambada_test.jsonl"):
        find_data(task, tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_data(task, tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="get it from OpenAI"):
        find_data(task, tmp_path / "empty")
    with pytest.raises(UsageError, match="--data DIR"):
        find_data(task, None)


def test_items_are_passages_and_their_last_words(tmp_path: Path, tokenizer: Tokenizer) -> None:
    passages = ["the cat sat on the mat", "“Stop,” said\n\nthe naïve café owner", "a  b", "one two."]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "more": 1}) + "\n\n" for text in passages))
    items = read_items(find_task("lambada"), path, tokenizer)
    assert [item.target for item in items] == [" mat", " owner", " b", " two."]
    assert [item.line for item in items] == [1, 3, 5, 7]
    for item, text in zip(items, passages, strict=True):
        assert item.tokens == tokenizer.encode(text)  # the cut before the word costs nothing
        assert tokenizer.decode(item.tokens[-item.count :]) == item.target
    assert read_items(find_task("lambada"), path, tokenizer, limit=2) == items[:2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text'}", "not valid JSON"),
        (b'{"txt": "a b"}', "no text under 'text'"),
        (b'["a b"]', "no text under 'text'"),
        (b'{"text": 3}', "no text under 'text'"),
        (b'{"text": "word"}', "no last word"),
        (b'{"text": "a b "}', "no last word"),
        (b'{"text": " b"}', "no last word"),
        (b'{"text": "a \xff"}', "not valid UTF-8"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, tokenizer: Tokenizer, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a b"}\n' + line + b"\n")
    with pytest.raises(InputError) as caught:
        read_items(find_task("lambada"), path, tokenizer)
    assert message in str(caught.value)
    assert "a.jsonl:2" in str(caught.value)


def test_an_empty_file(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.jsonl").touch()
    with pytest.raises(InputError, match="no items"):
        read_items(find_task("lambada"), tmp_path / "a.jsonl", tokenizer)


@pytest.mark.real_data
def test_lambada_with_gpt2s_vocabulary(real_data: Path) -> None:
    task, gpt2 = find_task("lambada"), load_tokenizer(real_data / "gpt2-vocab")
    items = read_items(task, find_data(task, real_data), gpt2)
    assert len(items) == 5153
    assert round(100 * sum(item.count == 1 for item in items) / len(items), 1) == 77.8
    lines = [json.loads(line)["text"] for line in find_data(task, real_data).read_text(encoding="utf-8").splitlines()]
    assert [item.tokens for item in items] == gpt2.encode_batch(lines)
